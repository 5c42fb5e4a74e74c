"""The worlds' closed forms against minimisers and sums written out from the papers' formulas."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from polyalign.errors import OptionError
from polyalign.worlds.bandit import Bandit, soft_greedy
from polyalign.worlds.discrete import kl_divergence, total_variation
from polyalign.worlds.loglinear import LogLinear, interaction
from polyalign.worlds.lqr import Lqr
from polyalign.worlds.sequences import Sequences, enumerate_sequences, node, path_sums


def minimised(loss, start):
    """The log-law that minimises a loss of logits [Y], by scipy from the start's logits."""

    def value(x):
        logits = torch.tensor(x, requires_grad=True)
        out = loss(logits.log_softmax(-1))
        (grad,) = torch.autograd.grad(out, logits)
        return out.item(), grad.numpy()

    found = minimize(value, start.numpy(), jac=True, method="BFGS", options={"gtol": 1e-10})
    return torch.tensor(found.x).log_softmax(-1)


def weighted_pairs(world, x):
    """Chosen, rejected and weight of every pair record of one prompt, as feedback gives them."""
    rows = [(p.chosen, p.rejected, p.weight) for p in world.pairs() if p.prompt == x]
    w, l, weight = zip(*rows, strict=True)  # noqa: E741
    return torch.tensor(w), torch.tensor(l), torch.tensor(weight, dtype=torch.float64)


def test_the_logistic_loss_over_the_population_is_minimised_by_the_regularised_optimum():
    world = Bandit.make(1, 8, seed=3)
    w, l, weight = weighted_pairs(world, 0)  # noqa: E741

    def dpo(law):
        h = law - world.start[0]
        return -(weight * torch.nn.functional.logsigmoid(0.7 * (h[w] - h[l]))).sum()

    found = minimised(dpo, world.start[0])
    assert total_variation(found, world.regularised(0.7)[0]) < 1e-6


@pytest.mark.parametrize("preferences", ["bradley-terry", "intransitive", "deterministic"])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_weighted_least_squares_gives_ipos_optimum(preferences, noise):
    world = Bandit.make(1, 7, seed=1, preferences=preferences, noise=noise)
    tau = 0.3
    w, l, weight = weighted_pairs(world, 0)  # noqa: E741
    design = np.zeros((len(w), 7))
    design[np.arange(len(w)), w] += 1
    design[np.arange(len(w)), l] -= 1
    root = weight.sqrt().numpy()
    target = np.full(len(w), 1 / (2 * tau))
    h = np.linalg.lstsq(design * root[:, None], target * root, rcond=None)[0]
    law = (world.start[0] + torch.tensor(h)).log_softmax(-1)
    # Pairs of y with itself carry D = 0 and a constant loss, so leaving them out moves nothing.
    assert total_variation(law, world.ipo(tau)[0]) < 1e-12


def test_ipos_optimum_stays_within_one_over_tau_under_deterministic_preferences():
    world = Bandit.make(3, 9, preferences="deterministic")
    ratio = world.ipo(0.5) - world.start
    assert float((ratio.max(-1).values - ratio.min(-1).values).max()) <= 2.0 + 1e-12


def test_no_policy_of_the_same_kl_beats_the_frontier():
    world = Bandit.make(1, 6, seed=5)
    best = world.point(world.regularised(0.5))
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        other = torch.randn(1, 6, generator=generator, dtype=torch.float64) * 2
        point = world.point((world.start + other).log_softmax(-1))
        assert point.reward - 0.5 * point.kl <= best.reward - 0.5 * best.kl + 1e-12


def test_population_pairs_have_the_probabilities_of_drawing_and_labelling_two_answers():
    world = Bandit.make(2, 5, noise=0.1)
    same = float((world.coverage**2).sum(-1).mean())
    assert sum(p.weight for p in world.pairs()) == pytest.approx(1 - same)
    drawn = world.pairs(20_000, seed=1)
    share = np.mean([p.prompt == 0 and p.chosen == 1 and p.rejected == 2 for p in drawn])
    # Sampled second answers differ from the first by construction.
    mu = world.coverage[0]
    expected = 0.5 * (mu[1] * mu[2] / (1 - mu[1]) + mu[2] * mu[1] / (1 - mu[2]))
    assert share == pytest.approx(float(expected * world.observed[0, 1, 2]), abs=0.004)


def test_sampled_flips_are_recorded_and_have_the_worlds_rate():
    world = Bandit.make(2, 8, noise=0.25, preferences="deterministic")
    drawn = world.pairs(4000, seed=0)
    assert np.mean([p.meta["flipped"] for p in drawn]) == pytest.approx(0.25, abs=0.03)
    for p in drawn[:200]:
        agrees = world.reward[p.prompt, p.chosen] > world.reward[p.prompt, p.rejected]
        assert bool(agrees) != p.meta["flipped"]


def test_thumbs_have_both_labels_with_probabilities_that_sum_to_one():
    world = Bandit.make(3, 4)
    assert sum(b.weight for b in world.binary()) == pytest.approx(1.0)
    up = sum(b.weight for b in world.binary() if b.label)
    drawn = world.binary(8000, seed=2)
    assert np.mean([b.label for b in drawn]) == pytest.approx(up, abs=0.02)


def test_noise_of_one_half_is_refused():
    with pytest.raises(OptionError, match="0.5"):
        Bandit.make(noise=0.5)


def test_softmax_of_q_over_alpha_maximises_reward_plus_entropy_in_one_state():
    q = torch.tensor([0.3, -1.0, 0.9, 0.1], dtype=torch.float64)
    law, value = soft_greedy(q, 0.4)
    found = minimised(lambda p: (p.exp() * (0.4 * p - q)).sum(), torch.zeros(4).double())
    assert total_variation(law, found) < 1e-7
    assert float((law.exp() * (q - 0.4 * law)).sum()) == pytest.approx(float(value))


@pytest.mark.parametrize(("eos", "count"), [(None, 27), (0, 15)])
def test_every_sequence_is_enumerated_once_and_its_probabilities_sum_to_one(eos, count):
    world = Sequences.make(2, 3, 3, eos=eos)
    assert len(set(world.completions)) == count == len(enumerate_sequences(3, 3, eos))
    torch.testing.assert_close(world.start.exp().sum(-1), torch.ones(2).double())


@pytest.mark.parametrize("eos", [None, 0])
def test_soft_values_spell_the_sequence_level_optimum_token_by_token(eos):
    world = Sequences.make(2, 3, 3, eos=eos, seed=4)
    soft = world.soft_values(0.4)
    law = path_sums(soft.policy, world.completions)
    assert world.distance(law, world.regularised(0.4)) < 1e-14
    partition = 0.4 * (world.start + world.reward / 0.4).logsumexp(-1)
    torch.testing.assert_close(soft.value[:, 0], partition)


def test_path_consistency_residuals_vanish_at_the_soft_optimum():
    world = Sequences.make(1, 3, 3, eos=0)
    soft = world.soft_values(0.3)
    ratio = soft.policy - world.logits
    for i, y in enumerate(world.completions):
        prefixes = [node(y[:t], 3) for t in range(len(y))]
        later = 0.0
        for s, v in reversed(list(zip(prefixes, y, strict=True))):
            later = later + ratio[0, s, v]
            assert float(soft.value[0, s] - world.reward[0, i] + 0.3 * later) == pytest.approx(
                0, abs=1e-12
            )


def test_the_forward_kl_along_a_sequence_is_the_sum_over_its_prefixes_by_brute_force():
    world = Sequences.make(1, 3, 3, seed=2)
    other = Sequences.make(1, 3, 3, seed=9).logits
    total = world.forward_kl(other)[0]
    ref, pi = world.logits[0].exp().numpy(), other[0].exp().numpy()
    y = (2, 0, 1)
    nodes = [0, 3, 3 * 3 + 1]
    expected = sum(ref[s] @ np.log(ref[s] / pi[s]) for s in nodes)
    assert float(total[world.completions.index(y)]) == pytest.approx(expected)


def test_a_log_linear_reward_is_all_interaction_and_quadruples_cover_it():
    world = LogLinear.make()
    torch.testing.assert_close(interaction(world.reward), world.reward)
    torch.testing.assert_close(world.iopo(0.5), world.reward / 0.5)
    assert sum(q.weight for q in world.quadruples()) == pytest.approx(1.0)
    assert all(q.prompts[0] != q.prompts[1] for q in world.quadruples(200))
    assert all(q.completions[0] != q.completions[1] for q in world.quadruples(200))


def test_the_gold_law_has_full_accuracy_both_ways_and_noise_has_half():
    world = LogLinear.make(seed=1)
    every = torch.arange(20)
    assert world.accuracies(world.regularised(1.0), every)[0] == 1.0
    # log Z(x) shifts an instruction's row, so rewards themselves are compared across instructions.
    assert world.accuracies(world.start + world.reward, every) == (1.0, 1.0)
    other = LogLinear.make(seed=2)
    assert 0.3 < world.accuracies(world.start + other.reward, every)[0] < 0.7


def test_the_soft_bellman_equation_holds_for_the_quadratic_value():
    world = Lqr.make(gamma=0.9, noise=0.3)
    best = world.optimum(0.2)
    grid = torch.linspace(-40, 40, 400_001, dtype=torch.float64).unsqueeze(-1)
    for state in ([0.5, -1.0], [2.0, 1.0]):
        s = torch.tensor([state], dtype=torch.float64)
        q = best.action_value(s.expand(len(grid), 2), grid)
        integral = 0.2 * (torch.logsumexp(q / 0.2, 0) + torch.log(grid[1, 0] - grid[0, 0]))
        assert float(integral) == pytest.approx(float(best.value(s)), rel=1e-9)
        density = best.log_density(s.expand(len(grid), 2), grid).exp()
        mean = float((density * grid[:, 0]).sum() / density.sum())
        assert mean == pytest.approx(float(best.mean(s)), abs=1e-9)
        spread = float((density * (grid[:, 0] - mean) ** 2).sum() / density.sum())
        assert math.sqrt(spread) == pytest.approx(float(best.std), rel=1e-9)


def test_the_temperature_of_an_entropy_inverts_the_entropy_of_a_temperature():
    world = Lqr.make()
    best = world.optimum(0.37)
    entropy = 0.5 * math.log(2 * math.pi * math.e * float(best.covariance))
    assert world.alpha_at(entropy) == pytest.approx(0.37)


def test_kl_and_total_variation_of_a_law_with_itself_are_zero():
    law = torch.randn(3, 5).double().log_softmax(-1)
    assert float(kl_divergence(law, law).abs().max()) < 1e-15
    assert float(total_variation(law, law).max()) == 0.0
