"""dpo, ipo, slic, simpo and orpo against their cards, worked out by hand in float64."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import NumericsError, OptionError, PolyalignWarning
from tests.methods.by_hand import close, neg_logsig, pairs, sig


def gap(a):
    return (a["lp_w"] - a["rf_w"]) - (a["lp_l"] - a["rf_l"])


def lengths(a):
    return {k: a[k] for k in ("lp_w", "lp_l", "n_w", "n_l")}


SIZE = 5
A = pairs()


@pytest.mark.parametrize("loss", ["dpo", "cdpo", "robust"])
def test_dpo_loss_and_gradient_are_the_cards(loss):
    beta, eps = 0.3, 0.0 if loss == "dpo" else 0.2
    z = beta * gap(A)
    value = {
        "dpo": neg_logsig(z),
        "cdpo": (1 - eps) * neg_logsig(z) + eps * neg_logsig(-z),
        "robust": ((1 - eps) * neg_logsig(z) - eps * neg_logsig(-z)) / (1 - 2 * eps),
    }[loss]
    g = {
        "dpo": -sig(-z),
        "cdpo": eps - sig(-z),
        "robust": -((1 - eps) * sig(-z) + eps * sig(z)) / (1 - 2 * eps),
    }[loss]
    result = objective("dpo", beta=beta, loss=loss, label_smoothing=eps)(A)
    close(result.per_unit, value)
    close(result.value, value.mean())
    close(result.gradients["lp_w"], beta / SIZE * g)
    close(result.gradients["lp_l"], -beta / SIZE * g)


def test_dpo_is_log_2_with_gradient_one_half_where_policy_is_reference():
    same = {"lp_w": A["rf_w"], "lp_l": A["rf_l"], "rf_w": A["rf_w"], "rf_l": A["rf_l"]}
    result = objective("dpo", beta=0.1)(same)
    close(result.per_unit, math.log(2))
    close(result.gradients["lp_w"], -0.5 * 0.1 / SIZE)
    assert result.metrics["rewards/accuracies"] == 0.0


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_dpo_ignores_constants_of_the_prompt(a, b):
    shifted = {
        "lp_w": A["lp_w"] + a,
        "lp_l": A["lp_l"] + a,
        "rf_w": A["rf_w"] + b,
        "rf_l": A["rf_l"] + b,
    }
    close(objective("dpo")(shifted).value, objective("dpo")(A).value)


def test_swapping_a_pair_changes_dpo_by_minus_z():
    swapped = {k[:-1] + {"w": "l", "l": "w"}[k[-1]]: v for k, v in A.items()}
    dpo = objective("dpo", beta=0.3)
    close(dpo(A).per_unit - dpo(swapped).per_unit, -0.3 * gap(A))


def test_cdpo_and_robust_reduce_to_dpo_without_flips():
    plain = objective("dpo")(A)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PolyalignWarning)
        for loss in ("cdpo", "robust"):
            close(objective("dpo", loss=loss)(A).per_unit, plain.per_unit)


def test_cdpo_has_no_gradient_at_the_log_odds_of_its_smoothing():
    eps, beta = 0.2, 0.5
    at = {"lp_w": [math.log((1 - eps) / eps) / beta], "lp_l": [0.0], "rf_w": [0.0], "rf_l": [0.0]}
    result = objective("dpo", loss="cdpo", label_smoothing=eps, beta=beta)(at)
    close(result.gradients["lp_w"], 0.0, 1e-12)


def test_dpo_for_small_beta_is_linear_in_the_gap():
    beta = 1e-4
    close(objective("dpo", beta=beta)(A).per_unit, math.log(2) - beta * gap(A) / 2, 1e-6)


@given(st.floats(-20, 20), st.floats(0.01, 0.45))
def test_robust_is_unbiased_under_flips(z, eps):
    robust = objective("dpo", beta=1.0, loss="robust", label_smoothing=eps)
    zero = {"lp_l": [0.0], "rf_w": [0.0], "rf_l": [0.0]}
    seen, flipped = robust(lp_w=[z], **zero).value, robust(lp_w=[-z], **zero).value
    close((1 - eps) * seen + eps * flipped, neg_logsig(z), 1e-9)


@given(st.floats(-20, 20), st.floats(0.01, 0.45))
def test_robust_never_pushes_the_observed_winner_down(z, eps):
    robust = objective("dpo", beta=1.0, loss="robust", label_smoothing=eps)
    result = robust(lp_w=[z], lp_l=[0.0], rf_w=[0.0], rf_l=[0.0])
    close(-result.gradients["lp_w"], sig(-z) + eps / (1 - 2 * eps))


def test_T28_label_smoothing_changes_the_loss_or_is_refused():
    smoothed = objective("dpo", loss="cdpo", label_smoothing=0.3)(A)
    assert abs(smoothed.value - objective("dpo")(A).value) > 1e-3
    with pytest.raises(OptionError, match="label_smoothing has no place in loss=dpo"):
        objective("dpo", label_smoothing=0.3)


@pytest.mark.parametrize("average", [True, False])
def test_T2_ipo_averages_or_sums_as_it_is_told(average):
    tau = 0.4
    n_w, n_l = (A["n_w"], A["n_l"]) if average else (1.0, 1.0)
    d = (A["lp_w"] - A["rf_w"]) / n_w - (A["lp_l"] - A["rf_l"]) / n_l
    slope = 2 / SIZE * (d - 1 / (2 * tau))
    result = objective("ipo", tau=tau, length_average=average)(A)
    close(result.per_unit, (d - 1 / (2 * tau)) ** 2)
    close(result.gradients["lp_w"], slope / n_w)
    close(result.gradients["lp_l"], -slope / n_l)


def test_T6_ipo_where_policy_is_reference_is_finite_and_counts_every_step():
    draw = np.random.default_rng(3)
    logp = -draw.uniform(0.1, 2, (2, 2, 4))
    same = {"logp_w": logp[0], "logp_l": logp[1], "ref_w": logp[0], "ref_l": logp[1]}
    result = objective("ipo", tau=0.25)(same)
    close(result.value, 1 / (4 * 0.25**2))
    close(result.gradients["logp_w"], np.full((2, 4), 2 / 2 * -2.0 / 4))


def test_ipo_is_least_where_the_gap_is_its_target():
    at = {"lp_w": [5.0], "lp_l": [0.0], "rf_w": [0.0], "rf_l": [0.0]}
    assert objective("ipo", tau=0.1, length_average=False)(at).value == pytest.approx(0, abs=1e-18)


def test_slic_loss_and_gradient_are_the_cards():
    target = np.array([-3.0, -4.0, -5.0, -6.0, -7.0])
    hinge = np.maximum(0, 1.5 - A["lp_w"] + A["lp_l"])
    active = (hinge > 0).astype(float)
    assert 0 < active.sum() < SIZE
    result = objective("slic", delta=1.5, lam=0.2)(
        {k: A[k] for k in ("lp_w", "lp_l")} | {"lp_t": target}
    )
    close(result.per_unit, hinge - 0.2 * target)
    close(result.gradients["lp_w"], -active / SIZE)
    close(result.gradients["lp_l"], active / SIZE)
    close(result.gradients["lp_t"], -0.2 / SIZE)


def test_slic_takes_the_chosen_answer_where_no_target_is_given():
    both = {k: A[k] for k in ("lp_w", "lp_l")}
    close(objective("slic")(both).value, objective("slic")(both | {"lp_t": A["lp_w"]}).value)


def test_slic_has_no_hinge_beyond_delta():
    result = objective("slic", lam=0)(lp_w=[-1.0], lp_l=[-2.5])
    assert result.value == 0
    assert result.gradients["lp_w"][0] == 0


def test_slic_with_a_large_anchor_has_the_gradient_of_sft():
    both = {k: A[k] for k in ("lp_w", "lp_l")}
    result = objective("slic", lam=1e9)(both)
    close(result.gradients["lp_w"] / 1e9, -1 / SIZE, 1e-8)


def test_slic_hinge_norm_is_the_cards():
    z = 0.05 * gap(A)
    result = objective("slic", form="hinge-norm", beta=0.05)(A)
    close(result.per_unit, np.maximum(0, 1 - z))
    close(result.gradients["lp_w"], -0.05 / SIZE * (z < 1))
    same = dict(A, lp_w=A["rf_w"], lp_l=A["rf_l"])
    close(objective("slic", form="hinge-norm")(same).per_unit, 1.0)


def test_T9_slic_terms_of_any_length_add_up():
    # Rows of one length and as many rows as steps are the only shape at which a wrong sum passes.
    for size, steps in ((3, 3), (2, 5), (4, 1)):
        logp = -np.random.default_rng(size).uniform(0.1, 1, (2, size, steps))
        s = logp.sum(-1)
        result = objective("slic")(logp_w=logp[0], logp_l=logp[1])
        close(result.per_unit, np.maximum(0, 1 - s[0] + s[1]) - 0.1 * s[0])


def simpo_z(a, beta, ratio):
    return beta * (a["lp_w"] / a["n_w"] - a["lp_l"] / a["n_l"] - ratio)


def test_simpo_loss_and_gradient_are_the_cards():
    beta, ratio, eps, sft = 2.0, 0.4, 0.1, 0.3
    z = simpo_z(A, beta, ratio)
    result = objective(
        "simpo", beta=beta, gamma_beta_ratio=ratio, label_smoothing=eps, sft_weight=sft
    )(lengths(A))
    nll = -A["lp_w"].sum() / A["n_w"].sum()
    close(result.value, ((1 - eps) * neg_logsig(z) + eps * neg_logsig(-z)).mean() + sft * nll)
    g = eps - sig(-z)
    close(result.gradients["lp_w"], beta / (SIZE * A["n_w"]) * g - sft / A["n_w"].sum())
    close(result.gradients["lp_l"], -beta / (SIZE * A["n_l"]) * g)
    close(result.metrics["nll_loss"], nll)


def test_simpo_without_a_difference_is_softplus_of_gamma():
    result = objective("simpo", beta=2.5, gamma_beta_ratio=0.55)(
        lp_w=[-4.0], lp_l=[-8.0], n_w=[2], n_l=[4]
    )
    close(result.value, math.log1p(math.exp(2.5 * 0.55)))


def test_T33_simpo_beta_and_gamma_convert_between_parametrisations():
    # gamma itself (as some libraries take it) is beta * gamma_beta_ratio.
    beta, gamma = 2.0, 1.0
    z = beta * (A["lp_w"] / A["n_w"] - A["lp_l"] / A["n_l"]) - gamma
    result = objective("simpo", beta=beta, gamma_beta_ratio=gamma / beta)(lengths(A))
    close(result.per_unit, neg_logsig(z))


def test_simpo_without_margin_on_equal_lengths_is_a_logistic_loss_with_beta_over_n():
    even = {"lp_w": A["lp_w"], "lp_l": A["lp_l"], "n_w": [4] * SIZE, "n_l": [4] * SIZE}
    result = objective("simpo", beta=2.0, gamma_beta_ratio=0)(even)
    close(result.per_unit, neg_logsig(2.0 / 4 * (A["lp_w"] - A["lp_l"])))


@given(st.integers(1, 6))
def test_simpo_does_not_see_replicated_steps(times):
    draw = np.random.default_rng(1)
    logp = -draw.uniform(0.1, 2, (2, 3, 4))
    once = objective("simpo")(logp_w=logp[0], logp_l=logp[1]).per_unit
    many = np.repeat(logp, times, -1)
    close(objective("simpo")(logp_w=many[0], logp_l=many[1]).per_unit, once)


def test_simpo_never_reads_a_reference():
    close(objective("simpo")(A).per_unit, objective("simpo")(lengths(A)).per_unit)


def test_simpo_hinge_link_is_the_cards():
    z = simpo_z(A, 2.5, 0.55)
    close(objective("simpo", link="hinge")(lengths(A)).per_unit, np.maximum(0, 1 - z))
    with pytest.raises(OptionError, match="label_smoothing"):
        objective("simpo", link="hinge", label_smoothing=0.1)


def test_simpo_warns_of_a_negative_margin():
    with pytest.warns(PolyalignWarning, match="asks chosen answers to be worse"):
        objective("simpo", gamma_beta_ratio=-0.1)


def log_odds(a):
    return a - np.log1p(-np.exp(a))


def test_orpo_loss_and_gradient_are_the_cards():
    lam = 0.25
    a_w, a_l = A["lp_w"] / A["n_w"], A["lp_l"] / A["n_l"]
    d = log_odds(a_w) - log_odds(a_l)
    nll = -A["lp_w"].sum() / A["n_w"].sum()
    result = objective("orpo", lam=lam)(lengths(A))
    close(result.value, nll + lam * neg_logsig(d).mean())
    slope_w = -sig(-d) / (1 - np.exp(a_w)) / A["n_w"]
    slope_l = sig(-d) / (1 - np.exp(a_l)) / A["n_l"]
    close(result.gradients["lp_w"], lam / SIZE * slope_w - 1 / A["n_w"].sum())
    close(result.gradients["lp_l"], lam / SIZE * slope_l)
    assert (slope_w < 0).all()
    assert (slope_l > 0).all()


def test_orpo_without_its_odds_is_sft_by_token():
    result = objective("orpo", lam=0)(lengths(A))
    sft = objective("sft")(lp=A["lp_w"], n=A["n_w"])
    close(result.value, sft.value)
    close(result.gradients["lp_w"], sft.gradients["lp"])


def test_orpo_of_equal_averages_is_log_2_beyond_the_likelihood():
    result = objective("orpo", lam=1)(lp_w=[-2.0], lp_l=[-4.0], n_w=[2], n_l=[4])
    close(result.value, 1.0 + math.log(2))


def test_orpo_of_tiny_probabilities_is_simpo_without_margin():
    a = dict(lengths(A), lp_w=A["lp_w"] * 20, lp_l=A["lp_l"] * 20)
    odds = objective("orpo", lam=1)(a).value - objective("orpo", lam=0)(a).value
    simpo = objective("simpo", beta=1.0, gamma_beta_ratio=0)(a).value
    close(odds, simpo, 1e-2)


@pytest.mark.parametrize("p", [1 - 1e-6, 1 - 1e-12])
def test_T31_orpo_gradient_is_finite_and_not_zero_near_probability_one(p):
    result = objective("orpo", lam=1)(lp_w=[math.log(p)], lp_l=[-0.5], n_w=[1], n_l=[1])
    slope = result.gradients["lp_w"][0] + 1.0  # without the likelihood's own -1
    assert np.isfinite(slope)
    assert slope < 0
    swapped = objective("orpo", lam=1)(lp_w=[-0.5], lp_l=[math.log(p)], n_w=[1], n_l=[1])
    assert np.isfinite(swapped.gradients["lp_l"][0])
    assert swapped.gradients["lp_l"][0] > 1


def test_T31_orpo_likelihood_covers_the_answer_by_token_over_the_whole_step():
    draw = np.random.default_rng(0)
    logp, mask = -draw.uniform(0.1, 2, (2, 6)), np.array([[1] * 6, [0, 0, 1, 1, 0, 0]])
    result = objective("orpo", lam=0)(logp_w=logp, mask_w=mask, logp_l=logp - 0.1, mask_l=mask)
    close(result.value, -(logp * mask).sum() / mask.sum())


def test_orpo_refuses_averages_that_are_not_below_zero():
    with pytest.raises(NumericsError, match="no odds"):
        objective("orpo")(lp_w=[0.0], lp_l=[-1.0], n_w=[1], n_l=[1])


@pytest.mark.parametrize("z", [-1e4, -120.0, 120.0, 1e4])
@pytest.mark.parametrize(
    ("id", "hyper"),
    [
        ("dpo", {}),
        ("dpo", {"loss": "cdpo", "label_smoothing": 0.1}),
        ("dpo", {"loss": "robust", "label_smoothing": 0.1}),
        ("ipo", {}),
        ("slic", {"form": "hinge-norm"}),
        ("simpo", {}),
    ],
)
def test_T32_extreme_margins_stay_finite(id, hyper, z):
    result = objective(id, **hyper)(
        lp_w=[min(z, 0)], lp_l=[-max(z, 0)], rf_w=[0.0], rf_l=[0.0], n_w=[1], n_l=[1]
    )
    assert np.isfinite(result.value)
    assert all(np.isfinite(g).all() for g in result.gradients.values())
