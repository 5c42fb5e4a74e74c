"""Credit within groups."""

import numpy as np
import pytest
import torch

from polyalign.credit import (
    GroupCredit,
    group_advantages,
    has_spread,
    leave_one_out,
    overlong_punishment,
)

R = torch.tensor([[1.0, 0.0, 0.5, 0.25], [3.0, 3.0, -1.0, 2.0]], dtype=torch.float64)


def test_advantages_divide_by_the_samples_standard_deviation():
    r = R.numpy()
    expected = (r - r.mean(1, keepdims=True)) / (r.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(group_advantages(R).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("reward", [0.1, 1e8 + 0.1, -3.3])
def test_equal_rewards_give_exactly_zero(reward):
    assert (group_advantages(torch.full((1, 7), reward)) == 0).all()
    assert (group_advantages(torch.full((1, 7), reward), eps=0.0 + 1e-30) == 0).all()


def test_T27_the_spread_of_large_rewards_is_measured_in_two_passes():
    # E[x^2] - E[x]^2 is lost in rounding here, and may even be negative.
    base = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    far = group_advantages(base + 1e9)
    torch.testing.assert_close(far, group_advantages(base), rtol=1e-6, atol=1e-6)


def test_T27_a_completion_without_steps_moves_no_baseline():
    valid = torch.tensor([[True, True, False, True]] * 2)
    short = torch.stack([R[:, 0], R[:, 1], R[:, 3]], 1)
    for scale in ("group", "none"):
        got = group_advantages(R, scale, valid=valid)
        torch.testing.assert_close(got[:, [0, 1, 3]], group_advantages(short, scale))
        assert (got[:, 2] == 0).all()


def test_T27_a_group_of_one_trains_nothing_and_stays_finite():
    one = torch.tensor([[5.0]])
    assert group_advantages(one) == 0
    assert leave_one_out(one) == 0


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others():
    others = (R.sum(1, keepdim=True) - R) / 3
    torch.testing.assert_close(leave_one_out(R), R - others)
    torch.testing.assert_close(group_advantages(R, "none"), leave_one_out(R) * 3 / 4)


def test_the_overlong_punishment_is_dapos():
    lengths = torch.tensor([5, 6, 8, 10, 11])
    expected = torch.tensor([0.0, 0.0, -0.5, -1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(overlong_punishment(lengths, 10, 4), expected)


def test_only_groups_with_spread_are_kept():
    rewards = torch.tensor([[1.0, 1.0], [0.1, 0.1], [0.0, 1.0]])
    assert has_spread(rewards).tolist() == [False, False, True]


def test_group_credit_gives_the_fields_that_loops_and_objectives_read():
    lengths, finished = torch.full((2, 4), 3), torch.tensor([[True, True, False, True]] * 2)
    plain = GroupCredit()(R, lengths=lengths, finished=finished)
    assert set(plain) == {"advantage", "finished"}
    torch.testing.assert_close(plain["finished"], finished.double())
    kept = GroupCredit(dynamic_sampling=True)(
        torch.stack([R[0], torch.ones(4).double()]), lengths=lengths, finished=finished
    )
    assert kept["keep"].tolist() == [[1.0] * 4, [0.0] * 4]


def test_lengths_alone_do_not_make_a_group_worth_keeping():
    credit = GroupCredit(dynamic_sampling=True, L_max=4, L_cache=4)
    fields = credit(
        torch.zeros(1, 2),
        lengths=torch.tensor([[1, 4]]),
        finished=torch.ones(1, 2, dtype=torch.bool),
    )
    assert fields["keep"].tolist() == [[0.0, 0.0]]
