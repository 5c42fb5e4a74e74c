"""Gaussian policies: densities, pathwise samples, and the squashing's correction."""

import math

import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.distributions import kl_divergence as kl

from polyalign.errors import ModelError, NeedsError, OptionError
from polyalign.policies.control import GaussianPolicy, log_slope, normal
from polyalign.policies.modules import Quadratic
from polyalign.protocols import Sampling
from polyalign.types import Rows
from polyalign.worlds.lqr import Lqr


def policy_with(squash=False, **more):
    policy = GaussianPolicy(2, 1, squash=squash, log_std=-0.3, **more)
    if "hidden" not in more:
        policy.load({"trunk.0.weight": torch.tensor([[0.4, -0.2]])})
    return policy


def rows_of(policy, slots):
    return Rows.collate([policy.encode(s, a) for s, a in slots])


SLOTS = [((0.5, 1.0), (0.3,)), ((-1.0, 0.2), (-0.8,))]


def law(policy, states):
    mean, log_std = policy.moments(torch.tensor(states, dtype=torch.float64))
    return Normal(mean, log_std.exp())


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("more", [{}, {"hidden": (8,), "seed": 1}])
def test_the_density_is_that_of_torchs_distributions(squash, more):
    policy = policy_with(squash, **more)
    base = law(policy, [s for s, _ in SLOTS])
    reference = TransformedDistribution(base, [TanhTransform()]) if squash else base
    actions = torch.tensor([a for _, a in SLOTS], dtype=torch.float64)
    logp = policy.score(rows_of(policy, SLOTS)).logp
    torch.testing.assert_close(logp, reference.log_prob(actions))


def test_the_tanh_correction_agrees_with_the_direct_formula_and_stays_finite_far_out():
    u = torch.linspace(-3, 3, 61, dtype=torch.float64).unsqueeze(-1)
    torch.testing.assert_close(log_slope(u), torch.log(1 - u.tanh() ** 2).squeeze(-1))
    assert torch.isfinite(log_slope(torch.tensor([[20.0], [-20.0]]))).all()


@pytest.mark.parametrize("squash", [False, True])
def test_a_pathwise_sample_carries_gradient_and_its_own_density(squash):
    policy = policy_with(squash)
    rows = rows_of(policy, SLOTS)
    draws = {"noise": torch.tensor([[[0.7]], [[-1.1]]])}
    signals = policy.score(rows, frozenset({"sample", "sample_logp"}), draws).signals
    action = signals["sample"]
    again = rows_of(
        policy, [(s, tuple(a)) for (s, _), a in zip(SLOTS, action[:, 0].tolist(), strict=True)]
    )
    torch.testing.assert_close(signals["sample_logp"], policy.score(again).logp)
    (grad,) = torch.autograd.grad(action.sum(), policy.log_std)
    assert float(grad.abs()) > 0


def test_seeds_give_the_same_noise_whatever_the_company():
    policy = policy_with()
    both = policy.score(
        rows_of(policy, SLOTS), frozenset({"sample"}), {"seed": torch.tensor([5, 6])}
    )
    one = policy.score(
        rows_of(policy, SLOTS[1:]), frozenset({"sample"}), {"seed": torch.tensor([6])}
    )
    torch.testing.assert_close(both.signals["sample"][1:], one.signals["sample"])


def test_a_pathwise_sample_without_random_numbers_is_refused():
    policy = policy_with()
    with pytest.raises(NeedsError, match="random numbers"):
        policy.score(rows_of(policy, SLOTS), frozenset({"sample"}))


@pytest.mark.parametrize("squash", [False, True])
def test_divergences_are_those_of_the_gaussians(squash):
    policy, other = policy_with(squash), GaussianPolicy(2, 1, squash=squash, log_std=0.2)
    states = [s for s, _ in SLOTS]
    want = frozenset({"kl(ref|policy)", "kl(policy|ref)"})
    signals = policy.score(rows_of(policy, SLOTS), want, against={"ref": other.freeze()}).signals
    p, q = law(policy, states), law(other, states)
    torch.testing.assert_close(signals["kl(policy|ref)"], kl(p, q))
    torch.testing.assert_close(signals["kl(ref|policy)"], kl(q, p))


def test_entropy_is_offered_only_where_it_has_a_closed_form():
    policy = policy_with()
    entropy = policy.score(rows_of(policy, SLOTS), frozenset({"entropy"})).signals["entropy"]
    torch.testing.assert_close(entropy, law(policy, [s for s, _ in SLOTS]).entropy())
    assert "entropy" not in policy_with(squash=True).offers


@pytest.mark.parametrize("squash", [False, True])
def test_samples_report_the_law_that_drew_them(squash):
    policy = policy_with(squash)
    drawn = policy.sample([(0.5, 1.0)], 4, Sampling(temperature=0.25), range(4))
    torch.testing.assert_close(
        policy.score(Rows.collate(drawn.rows)).logp.detach(), drawn.logp, atol=1e-9, rtol=1e-9
    )
    # At temperature t the density before squashing is raised to 1/t: a quarter of the variance.
    narrow = policy_with(squash)
    narrow.load({"log_std": policy.log_std.detach() + 0.5 * math.log(0.25)})
    torch.testing.assert_close(
        narrow.score(Rows.collate(drawn.rows)).logp.detach(), drawn.old, atol=1e-9, rtol=1e-9
    )


def test_cutting_a_density_and_wrong_sizes_are_refused():
    policy = policy_with()
    with pytest.raises(OptionError, match="top_p"):
        policy.sample([(0.0, 0.0)], 1, Sampling(top_p=0.9), [0])
    with pytest.raises(ModelError, match="reads 2"):
        policy.encode((1.0,), (0.0,))
    with pytest.raises(ModelError, match="makes 1"):
        policy.encode((1.0, 2.0), (0.0, 1.0))


def test_a_frozen_policy_keeps_its_network():
    policy = policy_with(hidden=(4,), seed=3)
    rows, frozen = rows_of(policy, SLOTS), policy.freeze()
    before = frozen.score(rows).logp
    policy.load({k: v.detach() + 1 for k, v in policy.trainable().items()})
    torch.testing.assert_close(frozen.score(rows).logp, before)
    assert not torch.allclose(policy.score(rows).logp, before)


def test_quadratic_features_hold_a_linear_quadratic_worlds_action_value_exactly():
    best = Lqr.make(noise=0.1).optimum(0.2)
    s, a = torch.randn(60, 2).double(), torch.randn(60, 1).double()
    critic = Quadratic(2, 1)
    x = torch.cat([s, a], -1)
    first, second = critic.index
    features = torch.cat([torch.ones(60, 1).double(), x, x[:, first] * x[:, second]], -1)
    solved = torch.linalg.lstsq(features, best.action_value(s, a)).solution
    critic.load_state_dict({"index": critic.index, "weight": solved})
    torch.testing.assert_close(critic(s, a), best.action_value(s, a))


@pytest.mark.parametrize("options", [{}, {"hidden": (8,), "seed": 0}])
def test_a_critic_gives_one_number_for_rows_and_for_fresh_actions(options):
    policy = policy_with()
    q = policy.build("q", options)
    for p in q.parameters():
        torch.nn.init.normal_(p)
    rows = rows_of(policy, SLOTS)
    states = torch.tensor([s for s, _ in SLOTS], dtype=torch.float64)
    torch.testing.assert_close(q(rows)[:, 0], q(states, rows.steps[:, 0]))
    torch.testing.assert_close(q(rows), q(states, rows.steps))
    assert policy.build("value", options)(rows).shape == (2, 1)


def test_seeded_noise_is_standard_normal_and_independent_across_seeds_and_places():
    noise = normal(torch.arange(20_000), 2, 1).squeeze(-1)
    assert noise.mean(0).abs().max() < 0.03
    assert (noise.std(0) - 1).abs().max() < 0.03
    assert abs(float(torch.corrcoef(noise.T)[0, 1])) < 0.03
    assert abs(float(torch.corrcoef(torch.stack([noise[:-1, 0], noise[1:, 0]]))[0, 1])) < 0.03
    assert abs(float((noise**4).mean()) - 3) < 0.2
