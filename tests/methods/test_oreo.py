"""oreo against its card."""

import itertools

import numpy as np
import pytest

from polyalign import objective
from polyalign.errors import NumericsError, OptionError
from tests.methods.by_hand import close

B, T = 3, 5
DRAW = np.random.default_rng(0)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 0, 1]])
A = {
    "logp": -DRAW.uniform(0.1, 3, (B, T)),
    "ref": -DRAW.uniform(0.1, 3, (B, T)),
    "value": DRAW.uniform(0, 1, (B, T)),
    "kl": DRAW.uniform(0, 1, (B, T)),
    "mask": MASK,
    "reward": np.array([1.0, 0.0, 1.0]),
}
SEGMENT = np.array([[0, 0, 1, 1, 1], [4, 5, 0, 0, 0], [0, 2, 2, 0, 3]])


def by_hand(level, beta, alpha):
    """Both losses [B] and the gradients by logp and value, from loops over decisions."""
    policy, value = np.zeros(B), np.zeros(B)
    by_logp, by_value, by_kl = np.zeros((B, T)), np.zeros((B, T)), np.zeros((B, T))
    for b in range(B):
        own = np.flatnonzero(MASK[b])
        if level == "token":
            groups = [[t] for t in own]
        elif level == "response":
            groups = [list(own)]
        else:
            groups = [list(g) for _, g in itertools.groupby(own, key=lambda t: SEGMENT[b, t])]
        lr = A["logp"][b] - A["ref"][b]
        K = len(groups)
        for k, group in enumerate(groups):
            rest = sum(lr[t] for g in groups[k:] for t in g)
            delta = A["value"][b, group[0]] - A["reward"][b] + beta * rest
            policy[b] += delta**2 / K
            value[b] += delta**2 / K
            by_value[b, group[0]] += 2 * delta / K / B
            by_logp[b, group] += 2 * beta * delta / K / B
        policy[b] += alpha * A["kl"][b, own].mean()
        by_kl[b, own] = alpha / len(own) / B
    return policy, value, by_logp, by_value, by_kl


@pytest.mark.parametrize("level", ["token", "step", "response"])
def test_oreo_losses_and_gradients_are_the_cards(level):
    beta, alpha = 0.3, 0.2
    policy, value, by_logp, by_value, by_kl = by_hand(level, beta, alpha)
    arrays = A | ({"segment": SEGMENT} if level == "step" else {})
    hyper = {"beta": beta, "alpha": alpha, "level": level}
    of_policy = objective("oreo", update="policy", **hyper)(arrays)
    close(of_policy.per_unit, policy)
    close(of_policy.gradients["logp"], by_logp)
    close(of_policy.gradients["kl"], by_kl)
    assert (of_policy.gradients["value"] == 0).all()
    plain = {k: v for k, v in arrays.items() if k != "kl"}
    of_value = objective("oreo", update="value", **hyper)(plain)
    close(of_value.per_unit, value)
    close(of_value.gradients["value"], by_value)
    assert (of_value.gradients["logp"] == 0).all()


def test_both_updates_together_are_the_sum_of_their_losses():
    both = objective("oreo")(A)
    parts = [
        objective("oreo", update="policy")(A),
        objective("oreo", update="value")({k: v for k, v in A.items() if k != "kl"}),
    ]
    close(both.value, sum(p.value for p in parts))
    close(both.gradients["logp"], parts[0].gradients["logp"])
    close(both.gradients["value"], parts[1].gradients["value"])


def test_a_token_gets_its_own_residual_only():
    # Without the stop-gradient token i would get the sum of the residuals up to i.
    g = objective("oreo", update="policy", beta=0.3, alpha=0)(
        {k: v for k, v in A.items() if k != "kl"}
    )
    lr = A["logp"][0] - A["ref"][0]
    delta = A["value"][0] - 1.0 + 0.3 * np.cumsum(lr[::-1])[::-1]
    close(g.gradients["logp"][0], 2 * 0.3 / T * delta / B)
    assert np.abs(np.cumsum(delta)[-1] - delta[-1]) > 0.1


def test_both_losses_vanish_at_the_soft_optimum_of_a_tree():
    # Depth 2, two choices, all paths: V* = beta log sum ref exp(Q*/beta), pi* from the residuals.
    beta, V = 0.5, 2
    reward = DRAW.uniform(0, 1, (V, V))
    ref0, ref1 = np.log([0.3, 0.7]), np.log([[0.6, 0.4], [0.2, 0.8]])
    v1 = beta * np.log(np.exp(ref1 + reward / beta).sum(1))
    v0 = beta * np.log(np.exp(ref0 + v1 / beta).sum())
    pi1, pi0 = ref1 + (reward - v1[:, None]) / beta, ref0 + (v1 - v0) / beta
    paths = [(i, j) for i in range(V) for j in range(V)]
    arrays = {
        "logp": [[pi0[i], pi1[i, j]] for i, j in paths],
        "ref": [[ref0[i], ref1[i, j]] for i, j in paths],
        "value": [[v0, v1[i]] for i, j in paths],
        "reward": [reward[i, j] for i, j in paths],
    }
    result = objective("oreo", beta=beta, alpha=0)(arrays)
    close(result.value, 0, 1e-20)
    close(result.gradients["logp"], 0, 1e-10)


def test_at_response_level_the_difference_of_residuals_is_dpos_implicit_reward_difference():
    arrays = {k: v[:2] for k, v in A.items() if k != "kl"} | {"reward": [0.5, 0.5]}
    arrays["value"] = np.full((2, T), 0.25)
    g = objective("oreo", level="response", alpha=0, beta=0.3)(arrays).gradients["logp"]
    residual = g[:, 0] * 2 / (2 * 0.3)
    lr = ((A["logp"] - A["ref"]) * MASK).sum(1)[:2]
    close(residual[0] - residual[1], 0.3 * (lr[0] - lr[1]))


def test_alpha_follows_the_level_when_not_given():
    for level, alpha in (("token", 0.01), ("step", 0.1), ("response", 0.3)):
        arrays = A | {"segment": SEGMENT} if level == "step" else A
        close(
            objective("oreo", level=level)(arrays).value,
            objective("oreo", level=level, alpha=alpha)(arrays).value,
        )


@pytest.mark.parametrize("missing", ["reward", "ref", "value"])
def test_what_is_missing_is_named(missing):
    with pytest.raises(OptionError, match=f"oreo needs the array '{missing}'"):
        objective("oreo")({k: v for k, v in A.items() if k != missing})


def test_a_response_without_steps_is_refused():
    with pytest.raises(NumericsError, match="Example 1 has no step"):
        objective("oreo")(dict(A, mask=MASK * np.array([[1], [0], [1]])))


def test_the_step_level_needs_segments():
    with pytest.raises(OptionError, match="segment"):
        objective("oreo", level="step")(A)
