"""The closed forms of population optima against minimisers of the papers' own objectives.

Expected values come from scipy on formulas written out here in numpy; nothing is shared with the
closed forms or with the objectives.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar

from polyalign.worlds import closed_forms
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.discrete import total_variation
from polyalign.worlds.sequences import Sequences, path_sums

BANDIT = Bandit.make(1, 5, seed=3)
ENDING = Sequences.make(1, 3, 2, eos=0, seed=5)
R, REF = BANDIT.reward[0].numpy(), BANDIT.start[0].exp().numpy()


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def best_law(cost, size):
    """The law that minimises a smooth cost of laws, by scipy over its logits."""
    found = minimize(lambda x: cost(softmax(x)), np.zeros(size), jac="3-point", method="BFGS",
                     options={"gtol": 1e-9})  # fmt: skip
    return torch.tensor(np.log(softmax(found.x)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(0, x)


F = {
    "reverse_kl": lambda u: u * np.log(u),
    "forward_kl": lambda u: -np.log(u),
    "js": lambda u: u * np.log(u) - (u + 1) * np.log((u + 1) / 2),
    "alpha": lambda u: (u - (u**0.5) / 0.5 + 1) / 0.5,
}
"""f of each divergence; alpha 0.5 is the integral of (1 - u^-0.5)/0.5 from 1."""


@pytest.mark.parametrize("name", F)
def test_a_divergences_optimum_is_the_best_trade_of_reward_and_divergence(name):
    def cost(pi):
        return -(pi @ R - 0.7 * REF @ F[name](pi / REF))

    closed = closed_forms.divergence(BANDIT, 0.7, name)
    assert total_variation(best_law(cost, 5), closed[0]) < 1e-5


def test_scaling_the_entropy_gives_a_tempered_reference_and_reward():
    def cost(pi):
        return -(pi @ R - 0.7 * (0.8 * pi @ np.log(pi) - pi @ np.log(REF)))

    closed = closed_forms.entropy_scaled(BANDIT, 0.7, 0.8)
    assert total_variation(best_law(cost, 5), closed[0]) < 1e-5


def test_a_length_cost_lowers_the_reward_of_long_answers():
    ref, r, n = ENDING.start[0].exp().numpy(), ENDING.reward[0].numpy(), ENDING.lengths.numpy()

    def cost(pi):
        return -(pi @ (r - 0.3 * n) - 0.5 * pi @ np.log(pi / ref))

    closed = closed_forms.with_length_cost(ENDING, 0.5, 0.3)
    assert total_variation(best_law(cost, len(r)), closed[0]) < 1e-5


def test_lengths_are_those_of_the_completions():
    assert ENDING.lengths.tolist() == [len(y) for y in ENDING.completions]
    assert set(ENDING.lengths.tolist()) == {1.0, 2.0}
    assert BANDIT.lengths.tolist() == [1.0] * 5


REWARDS = {
    "per token": (
        lambda: closed_forms.per_token(ENDING, 2.0),
        lambda lp, ref, n: 2.0 * (lp - ref) / n,
    ),
    "average": (
        lambda: closed_forms.per_token(ENDING, 2.5, reference=False),
        lambda lp, ref, n: 2.5 * lp / n,
    ),
    "odds": (
        lambda: closed_forms.odds(ENDING, 1.5),
        lambda lp, ref, n: 1.5 * (lp / n - np.log1p(-np.exp(lp / n))),
    ),
    "power": (
        lambda: closed_forms.powered(ENDING, 2.5, 0.25),
        lambda lp, ref, n: 2.5 * (1 - np.exp(-0.25 * lp / n)) / 0.25,
    ),
    "negative power": (
        lambda: closed_forms.powered(ENDING, 2.5, -0.25),
        lambda lp, ref, n: 2.5 * (1 - np.exp(0.25 * lp / n)) / -0.25,
    ),
}


@pytest.mark.parametrize("name", REWARDS)
def test_the_law_sums_to_one_and_its_rewards_differ_as_the_gold_rewards_do(name):
    closed, reward = REWARDS[name]
    law = closed()[0].numpy()
    found = reward(law, ENDING.start[0].numpy(), ENDING.lengths.numpy())
    shift = found - ENDING.reward[0].numpy()
    assert np.exp(law).sum() == pytest.approx(1, abs=1e-12)
    assert shift.max() - shift.min() < 1e-9


@settings(deadline=None, max_examples=40)
@given(st.floats(0.05, 0.95), st.floats(-2, 2), st.floats(-2, 2))
def test_margined_odds_minimise_the_pair_loss_with_a_margin_each_way(p, win, lose):
    def loss(z):
        return p * softplus(-(z - win)) + (1 - p) * softplus(z + lose)

    expected = minimize_scalar(loss, bounds=(-15, 15), options={"xatol": 1e-10}).x
    found = closed_forms.margined_odds(torch.tensor([p], dtype=torch.float64), win, lose)
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_without_margins_the_odds_are_the_labels_own():
    p = torch.tensor([0.2, 0.7], dtype=torch.float64)
    torch.testing.assert_close(closed_forms.margined_odds(p, 0.0, 0.0), p.logit())


def test_winners_and_losers_are_what_the_population_of_pairs_holds():
    world = Bandit.make(1, 4, noise=0.1, seed=1)
    won, lost = np.zeros(4), np.zeros(4)
    for pair in world.pairs():
        won[pair.chosen] += pair.weight
        lost[pair.rejected] += pair.weight
    np.testing.assert_allclose(closed_forms.winners(world)[0].exp(), won / won.sum())
    np.testing.assert_allclose(closed_forms.losers(world)[0].exp(), lost / lost.sum())


def test_anchored_winners_minimise_what_saturates_on_both_sides():
    net = np.array([0.3, 0.1, -0.1, 0.05, -0.35])

    def cost(pi):
        return -(net @ sigmoid(0.5 * np.log(pi / REF)))

    closed = closed_forms.anchored_winners(BANDIT, 0.5, torch.tensor(net).unsqueeze(0))
    found = best_law(cost, 5)
    assert total_variation(found, closed[0]) < 1e-3
    assert cost(closed[0].exp().numpy().clip(1e-300)) <= cost(found.exp().numpy()) + 1e-12
    assert closed[0].exp()[[2, 4]].max() < 1e-12


@pytest.mark.parametrize(
    ("phi", "weight"),
    [
        (lambda t: t - t**2 / 4, lambda t: 1 - t / 2),
        (lambda t: -np.exp(-(t + 1)), lambda t: torch.exp(-(t + 1))),
    ],
    ids=["pearson", "reverse-kl"],
)
def test_imitation_that_weakens_ends_where_its_pull_matches_the_laws(phi, weight):
    shown = BANDIT.regularised(0.5)

    def cost(pi):
        return -(shown[0].exp().numpy() @ phi(0.5 * np.log(pi / REF)))

    closed = closed_forms.likelihood_ratio_matched(BANDIT, shown, lambda h: weight(0.5 * h))
    assert total_variation(best_law(cost, 5), closed[0]) < 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_a_charged_shortfall_ends_where_its_formula_is_smallest(seed):
    world = Bandit.make(1, 2, seed=seed)
    ref, p = world.start[0].numpy(), float(world.prefer[0, 0, 1])

    def loss(gap):
        h = np.array([-softplus(-gap), -softplus(gap)]) - ref
        z = [h[0] - h[1] - 0.2 * max(0, -h[0]), h[1] - h[0] - 0.2 * max(0, -h[1])]
        return p * softplus(-0.5 * z[0]) + (1 - p) * softplus(-0.5 * z[1])

    expected = minimize_scalar(loss, bounds=(-20, 20), options={"xatol": 1e-11}).x
    law = closed_forms.shortfall_charged(world, 0.5, 0.2)[0]
    assert float(law[0] - law[1]) == pytest.approx(expected, abs=1e-4)


def test_tails_beyond_the_shorter_answer_count_less():
    long, short = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3.0])
    gap = closed_forms.discounted_tails([long, short], 0.5)
    assert gap.tolist() == [[0.0, 1.0], [-1.0, 0.0]]


def test_gaps_of_bent_rewards_are_inverted():
    gap = closed_forms.gap_of_rewards(lambda a: -torch.exp(-a), torch.tensor([0.8]).double())
    law = torch.stack([-softplus(-gap), -softplus(gap)]).squeeze()
    assert float(-torch.exp(-law[0]) + torch.exp(-law[1])) == pytest.approx(0.8)


def test_conditionals_spell_a_law_over_sequences():
    law = ENDING.regularised(0.4)
    torch.testing.assert_close(path_sums(ENDING.conditionals(law), ENDING.completions), law)


def test_duels_and_lists_hold_the_population_as_scores():
    assert sum(d.weight for d in BANDIT.duels()) == pytest.approx(
        sum(p.weight for p in BANDIT.pairs())
    )
    assert {d.scores for d in BANDIT.duels()} == {(1.0, 0.0)}
    (whole,) = BANDIT.lists()
    assert whole.scores == tuple(BANDIT.reward[0].tolist())
    scores = [(p.fields["score_chosen"], R[p.chosen]) for p in BANDIT.pairs()]
    assert all(a == b for a, b in scores)
