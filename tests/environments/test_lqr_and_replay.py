"""Acting and remembering are functions of seeds and survive being saved."""

import pytest
import torch

from polyalign.environments.base import Transition
from polyalign.environments.lqr import LqrEnvironment
from polyalign.environments.replay import Replay
from polyalign.errors import OptionError
from polyalign.worlds.lqr import Lqr


def transition(i):
    return Transition((float(i), 0.0), (1.0,), -float(i), (i + 1.0, 0.0), False, i % 3 == 0)


def trajectory(environment, steps, state=None):
    seen = []
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = environment.step([0.3])
        seen.append((*observation.tolist(), reward, terminated, truncated))
        if truncated:
            environment.reset()
    return seen


def test_the_same_seed_gives_the_same_episodes_and_another_seed_others():
    def played(seed):
        environment = LqrEnvironment(Lqr.make(noise=0.1), horizon=4)
        environment.reset(seed=seed)
        return trajectory(environment, 10)

    assert played(1) == played(1)
    assert played(1) != played(2)


def test_time_running_out_truncates_and_never_terminates():
    environment = LqrEnvironment(Lqr.make(), horizon=3)
    environment.reset(seed=0)
    flags = [row[3:] for row in trajectory(environment, 6)]
    assert flags == [(False, False), (False, False), (False, True)] * 2


def test_an_environment_goes_on_exactly_from_its_saved_state():
    environment = LqrEnvironment(Lqr.make(noise=0.2), horizon=5)
    environment.reset(seed=3)
    trajectory(environment, 7)
    kept = environment.state_dict()
    expected = trajectory(environment, 9)
    other = LqrEnvironment(Lqr.make(noise=0.2), horizon=5)
    other.load_state_dict(kept)
    assert trajectory(other, 9) == expected


def test_a_full_replay_forgets_the_oldest_and_knows_each_by_its_number():
    replay = Replay(4)
    for i in range(6):
        replay.add(transition(i))
    drawn = {u.key: u.fields["reward"] for s in range(40) for u in replay.sample(4, 0, s)}
    assert drawn == {str(i): -float(i) for i in (2, 3, 4, 5)}


def test_draws_are_a_function_of_seed_and_step_and_survive_saving():
    replay = Replay(100)
    for i in range(9):
        replay.add(transition(i))
    other = Replay(100)
    other.load_state_dict(replay.state_dict())
    keys = [u.key for u in replay.sample(20, 5, 7)]
    assert keys == [u.key for u in other.sample(20, 5, 7)]
    assert keys != [u.key for u in replay.sample(20, 5, 8)]
    assert replay.kept == other.kept


def test_a_replay_of_another_capacity_and_an_empty_one_are_refused():
    with pytest.raises(OptionError, match="capacity"):
        Replay(5).load_state_dict(Replay(4).state_dict())
    with pytest.raises(OptionError, match="empty"):
        Replay(5).sample(1, 0, 0)


def test_a_time_limit_is_not_a_terminal_state_for_the_unit():
    unit = transition(3).unit("3")
    assert unit.fields == {"reward": -3.0, "terminated": 0.0}
    assert unit.roles["next"][0] == (4.0, 0.0)


def test_gym_vectors_become_tuples_of_floats():
    from polyalign.environments.base import vector

    assert vector(torch.tensor([[1.0], [2.5]])) == (1.0, 2.5) == vector([1, 2.5])
