"""ln-dpo, sigmoid-norm, ld-dpo and r-dpo against their cards, worked out by hand in float64."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import OptionError, PolyalignWarning
from tests.methods.by_hand import close, neg_logsig, pairs, sig

SIZE = 6
A = pairs(seed=7, size=SIZE)


def ratios(a):
    return a["lp_w"] - a["rf_w"], a["lp_l"] - a["rf_l"]


def steps(seed, n_w, n_l, width=9):
    """Log-probabilities by step, the answer's own steps not at the row's start nor in one piece."""
    draw = np.random.default_rng(seed)
    out = {}
    for s, counts in (("w", n_w), ("l", n_l)):
        mask = np.zeros((len(counts), width), dtype=bool)
        for row, n in enumerate(counts):
            mask[row, np.sort(draw.choice(width, n, replace=False))] = True
        for name in ("logp", "ref"):
            out[f"{name}_{s}"] = -draw.uniform(0.1, 2, mask.shape)
        out[f"mask_{s}"] = mask
    return out


@pytest.mark.parametrize("id", ["ln-dpo", "sigmoid-norm"])
@pytest.mark.parametrize("beta", [5.0, 0.4])
def test_averaged_loss_and_gradient_are_the_cards(id, beta):
    h_w, h_l = ratios(A)
    z = beta * (h_w / A["n_w"] - h_l / A["n_l"])
    result = objective(id, beta=beta)(A)
    close(result.per_unit, neg_logsig(z))
    close(result.gradients["lp_w"], -beta / (SIZE * A["n_w"]) * sig(-z))
    close(result.gradients["lp_l"], beta / (SIZE * A["n_l"]) * sig(-z))


def test_ln_dpo_and_sigmoid_norm_are_one():
    one, other = objective("ln-dpo")(A), objective("sigmoid-norm")(A)
    assert one.value == other.value
    assert one.metrics == other.metrics


def test_averaging_over_equal_lengths_is_dpo_with_beta_over_the_length():
    equal = dict(A, n_w=np.full(SIZE, 4), n_l=np.full(SIZE, 4))
    close(objective("ln-dpo", beta=2.0)(equal).per_unit, objective("dpo", beta=0.5)(A).per_unit)


def test_averaging_over_a_uniform_reference_is_simpo_without_a_margin():
    uniform = dict(A, rf_w=-3.0 * A["n_w"], rf_l=-3.0 * A["n_l"])
    free = {k: A[k] for k in ("lp_w", "lp_l", "n_w", "n_l")}
    close(
        objective("sigmoid-norm", beta=2.0)(uniform).per_unit,
        objective("simpo", beta=2.0, gamma_beta_ratio=0)(free).per_unit,
    )


@given(st.integers(2, 5))
def test_repeating_each_token_leaves_ln_dpo_and_multiplies_dpos_margin(times):
    more = {k: v * times for k, v in A.items()}
    close(objective("ln-dpo")(more).per_unit, objective("ln-dpo")(A).per_unit)
    close(objective("dpo", beta=0.1)(more).per_unit, objective("dpo", beta=0.1 * times)(A).per_unit)


def ld_by_hand(s, beta, alpha):
    """Loss per pair and the weight of every step, token by token."""
    out, weights = [], {"w": np.zeros_like(s["logp_w"]), "l": np.zeros_like(s["logp_l"])}
    for row in range(len(s["logp_w"])):
        shared = min(s["mask_w"][row].sum(), s["mask_l"][row].sum())
        h = {}
        for side in "wl":
            h[side] = 0.0
            for seen, t in enumerate(np.flatnonzero(s[f"mask_{side}"][row])):
                weight = 1.0 if seen < shared else alpha
                h[side] += weight * (s[f"logp_{side}"][row, t] - s[f"ref_{side}"][row, t])
                weights[side][row, t] = weight
        out.append(beta * (h["w"] - h["l"]))
    return np.array(out), weights


@pytest.mark.parametrize("alpha", [0.5, 0.0, 1.0, 0.3])
def test_ld_dpo_loss_and_gradient_are_the_cards(alpha):
    s = steps(1, [3, 7, 5, 1], [6, 2, 5, 8])
    z, weights = ld_by_hand(s, 0.4, alpha)
    result = objective("ld-dpo", beta=0.4, alpha=alpha)(s)
    close(result.per_unit, neg_logsig(z))
    push = (0.4 / len(z) * sig(-z))[:, None]
    close(result.gradients["logp_w"], -push * weights["w"])
    close(result.gradients["logp_l"], push * weights["l"])


def test_ld_dpo_is_dpo_at_alpha_1_and_for_equal_lengths():
    s = steps(2, [3, 7], [6, 2])
    dpo = objective("dpo", beta=0.2)
    close(objective("ld-dpo", beta=0.2, alpha=1)(s).per_unit, dpo(s).per_unit)
    equal = steps(3, [4, 6], [4, 6])
    close(objective("ld-dpo", beta=0.2, alpha=0.1)(equal).per_unit, dpo(equal).per_unit)


def test_ld_dpo_asks_for_log_probabilities_by_step():
    with pytest.raises(OptionError, match="ld-dpo looks at single steps"):
        objective("ld-dpo")(A)


@pytest.mark.parametrize(("beta", "alpha"), [(0.1, 0.01), (0.3, 0.5), (0.2, 0.0)])
def test_r_dpo_loss_and_gradient_are_the_cards(beta, alpha):
    h_w, h_l = ratios(A)
    z = beta * (h_w - h_l) + alpha * (A["n_w"] - A["n_l"])
    result = objective("r-dpo", beta=beta, alpha=alpha)(A)
    close(result.per_unit, neg_logsig(z))
    close(result.gradients["lp_w"], -beta / SIZE * sig(-z))
    close(result.gradients["lp_l"], beta / SIZE * sig(-z))


def test_r_dpo_weighs_pairs_less_whose_winner_is_longer():
    same = {"lp_w": [-3.0] * 2, "lp_l": [-4.0] * 2, "rf_w": [-3.0] * 2, "rf_l": [-4.0] * 2}
    result = objective("r-dpo", alpha=0.1)({**same, "n_w": [5, 3], "n_l": [3, 3]})
    assert result.per_unit[0] < math.log(2)
    close(result.per_unit[1], math.log(2))
    assert abs(result.gradients["lp_w"][0]) < abs(result.gradients["lp_w"][1])


def test_r_dpo_is_dpo_for_equal_lengths():
    equal = dict(A, n_l=A["n_w"])
    close(
        objective("r-dpo", beta=0.3, alpha=0.7)(equal).per_unit,
        objective("dpo", beta=0.3)(A).per_unit,
    )


def test_r_dpo_asks_for_lengths_and_warns_of_a_reward_for_length():
    with pytest.raises(OptionError, match="r-dpo depends on the completions' lengths"):
        objective("r-dpo")({k: v for k, v in A.items() if k[0] != "n"})
    with pytest.warns(PolyalignWarning, match="pays for length"):
        objective("r-dpo", alpha=-0.1)


@pytest.mark.parametrize(
    ("id", "hyper"),
    [
        ("ln-dpo", {"beta": 0}),
        ("sigmoid-norm", {"beta": -1}),
        ("ld-dpo", {"beta": 0}),
        ("ld-dpo", {"alpha": 1.1}),
        ("ld-dpo", {"alpha": -0.1}),
        ("r-dpo", {"beta": 0}),
        ("r-dpo", {"alpha": "inf"}),
    ],
)
def test_coefficients_out_of_range_are_refused(id, hyper):
    (name,) = hyper
    with pytest.raises(OptionError, match=f"{id}: {name}="):
        objective(id, **hyper)


@pytest.mark.parametrize("id", ["ln-dpo", "sigmoid-norm", "ld-dpo", "r-dpo"])
@pytest.mark.parametrize("z", [-1e4, 1e4])
def test_T32_extreme_margins_stay_finite(id, z):
    result = objective(id)(
        logp_w=[[min(z, 0)]], logp_l=[[-max(z, 0)]], ref_w=[[0.0]], ref_l=[[0.0]]
    )
    assert np.isfinite(result.value)
    assert all(np.isfinite(g).all() for g in result.gradients.values())
