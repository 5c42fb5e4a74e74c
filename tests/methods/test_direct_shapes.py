"""f-dpo, alphapo and daa-blur against their cards, worked out by hand in float64."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import NumericsError, OptionError
from tests.methods.by_hand import central, close, neg_logsig, pairs, sig

SIZE = 6
A = pairs(seed=11, size=SIZE)
FREE = {k: A[k] for k in ("lp_w", "lp_l", "n_w", "n_l")}
DIVERGENCES = [
    ("reverse_kl", None),
    ("forward_kl", None),
    ("js", None),
    ("alpha", 0.3),
    ("alpha", 0.7),
]
NEAR = dict(A, lp_w=A["rf_w"] + np.linspace(-2, 1, SIZE), lp_l=A["rf_l"] + np.linspace(1.5, -3, 6))


def hyper(divergence, alpha):
    return {"divergence": divergence} | ({} if alpha is None else {"alpha": alpha})


def shape(h, divergence, alpha):
    match divergence:
        case "reverse_kl":
            return h
        case "forward_kl":
            return -np.exp(-h)
        case "js":
            return np.log(2 * np.exp(h) / (1 + np.exp(h)))
        case "alpha":
            return (1 - np.exp(-alpha * h)) / alpha


def shape_slope(h, divergence, alpha):
    match divergence:
        case "reverse_kl":
            return np.ones_like(h)
        case "forward_kl":
            return np.exp(-h)
        case "js":
            return sig(-h)
        case "alpha":
            return np.exp(-alpha * h)


@pytest.mark.parametrize(("divergence", "alpha"), DIVERGENCES)
def test_f_dpo_loss_and_gradient_are_the_cards(divergence, alpha):
    beta = 0.6
    h_w, h_l = NEAR["lp_w"] - NEAR["rf_w"], NEAR["lp_l"] - NEAR["rf_l"]
    z = beta * (shape(h_w, divergence, alpha) - shape(h_l, divergence, alpha))
    result = objective("f-dpo", beta=beta, **hyper(divergence, alpha))(NEAR)
    close(result.per_unit, neg_logsig(z))
    push = beta / SIZE * sig(-z)
    close(result.gradients["lp_w"], -push * shape_slope(h_w, divergence, alpha))
    close(result.gradients["lp_l"], push * shape_slope(h_l, divergence, alpha))


@pytest.mark.parametrize(("divergence", "alpha"), DIVERGENCES)
def test_f_dpo_where_policy_is_reference_is_log_2(divergence, alpha):
    same = dict(A, lp_w=A["rf_w"], lp_l=A["rf_l"])
    close(objective("f-dpo", **hyper(divergence, alpha))(same).per_unit, math.log(2))


def test_f_dpo_with_reverse_kl_is_dpo_and_alpha_runs_from_it_to_forward_kl():
    f = objective("f-dpo", divergence="reverse_kl", beta=0.3)
    close(f(NEAR).per_unit, objective("dpo", beta=0.3)(NEAR).per_unit)
    nearly = {end: objective("f-dpo", divergence="alpha", alpha=a) for end, a in
              (("reverse_kl", 1e-9), ("forward_kl", 1 - 1e-9))}  # fmt: skip
    for end, near in nearly.items():
        close(near(NEAR).per_unit, objective("f-dpo", divergence=end)(NEAR).per_unit, 1e-7)


@pytest.mark.parametrize(
    ("divergence", "strength"),
    [("reverse_kl", 1.0), ("forward_kl", 1.0), ("js", 0.5), ("alpha", 1.0)],
)
def test_near_the_reference_js_is_half_as_strong_as_the_others(divergence, strength):
    beta, small = 1.0, 1e-4
    at = {"lp_w": [small], "lp_l": [-1.0 - small], "rf_w": [0.0], "rf_l": [-1.0]}
    found = objective("f-dpo", divergence=divergence, beta=beta)(at).value
    close((math.log(2) - found) / (beta * small), strength, 1e-3)


def test_f_dpo_keeps_long_improbable_answers_finite():
    for divergence in ("forward_kl", "js", "alpha"):
        for h in (-1e4, 1e4):
            at = {"lp_w": [min(h, 0)], "lp_l": [-max(h, 0)], "rf_w": [0.0], "rf_l": [0.0]}
            result = objective("f-dpo", divergence=divergence)(at)
            assert np.isfinite(result.value)
            assert all(np.isfinite(g).all() for g in result.gradients.values())


def test_f_dpo_refuses_an_alpha_that_no_divergence_reads_or_that_is_none():
    with pytest.raises(OptionError, match="alpha has no place in divergence=js"):
        objective("f-dpo", alpha=0.5)
    for alpha in (0, 1, 1.5, -0.1):
        with pytest.raises(OptionError, match="f-dpo: alpha="):
            objective("f-dpo", divergence="alpha", alpha=alpha)
    with pytest.raises(OptionError, match="divergence='chi2' is not allowed"):
        objective("f-dpo", divergence="chi2")


def power(a, alpha):
    return a if alpha == 0 else (1 - np.exp(-alpha * a)) / alpha


def test_alphapo_with_simpos_other_terms_is_simpo_at_alpha_0():
    terms = {"label_smoothing": 0.1, "sft_weight": 0.4}
    simpo = objective("simpo", beta=2.0, gamma_beta_ratio=0.3, **terms)(FREE)
    alphapo = objective("alphapo", alpha=0, beta=2.0, gamma=0.6, **terms)(FREE)
    close(alphapo.per_unit, simpo.per_unit)
    close(alphapo.gradients["lp_w"], simpo.gradients["lp_w"])


@pytest.mark.parametrize("alpha", [0.25, 1.0, -1.0, 0.0, -0.4])
def test_alphapo_loss_and_gradient_are_the_cards(alpha):
    beta, gamma = 1.7, 0.25
    a_w, a_l = A["lp_w"] / A["n_w"], A["lp_l"] / A["n_l"]
    z = beta * (power(a_w, alpha) - power(a_l, alpha)) - gamma
    result = objective("alphapo", alpha=alpha, beta=beta, gamma=gamma)(FREE)
    close(result.per_unit, neg_logsig(z))
    push = beta / SIZE * sig(-z)
    close(result.gradients["lp_w"], -push * np.exp(-alpha * a_w) / A["n_w"])
    close(result.gradients["lp_l"], push * np.exp(-alpha * a_l) / A["n_l"])


def test_alphapo_at_alpha_0_is_simpo_and_near_it_nearly():
    simpo = objective("simpo", beta=2.5, gamma_beta_ratio=0.1)(FREE)
    close(objective("alphapo", alpha=0)(FREE).per_unit, simpo.per_unit)
    for alpha in (1e-4, -1e-4):
        gone = objective("alphapo", alpha=alpha)(FREE).per_unit - simpo.per_unit
        assert 0 < np.abs(gone).max() < 1e-2
    close(objective("alphapo", alpha=1e-10)(FREE).per_unit, simpo.per_unit, 1e-8)


@pytest.mark.parametrize("alpha", [-0.5, 0.25, 3.0])
def test_alphapo_without_a_difference_is_softplus_of_gamma(alpha):
    result = objective("alphapo", alpha=alpha)(lp_w=[-4.0], lp_l=[-8.0], n_w=[2], n_l=[4])
    close(result.value, math.log1p(math.exp(0.25)))


@pytest.mark.parametrize(
    ("a_w", "a_l", "alpha", "weight"),
    [
        (-1.0, -0.5, 0.25, 1.095),
        (-1.0, -0.5, 1.0, 2.580),
        (-1.0, -0.5, 5.0, 148.4),
        (-0.5, -1.0, 0.25, 0.2506),
        (-0.5, -1.0, 1.0, 0.1342),
        (-0.5, -1.0, 5.0, 4e-29),
    ],
)
def test_alphapo_weighs_winners_as_its_card_says(a_w, a_l, alpha, weight):
    result = objective("alphapo", alpha=alpha)(lp_w=[a_w], lp_l=[a_l], n_w=[1], n_l=[1])
    assert -result.gradients["lp_w"][0] / 2.5 == pytest.approx(weight, rel=0.03)


@given(st.floats(-3, 3), st.floats(-5, -0.01), st.floats(-5, -0.01))
def test_alphapos_reward_increases_with_likelihood_for_every_alpha(alpha, a, b):
    low, high = sorted((a, b))
    alphapo = objective("alphapo", alpha=alpha, beta=1.0, gamma=0.0)
    value = alphapo(lp_w=[high], lp_l=[low], n_w=[1], n_l=[1]).value
    assert value <= math.log(2) + 1e-12


def test_alphapo_refuses_what_is_no_number_and_stays_finite_where_powers_explode():
    for alpha in ("nan", "inf"):
        with pytest.raises(OptionError, match="alphapo: alpha="):
            objective("alphapo", alpha=alpha)
    result = objective("alphapo", alpha=50.0)(lp_w=[-1e3], lp_l=[-0.1], n_w=[1], n_l=[1])
    assert np.isfinite(result.value)
    assert all(np.isfinite(g).all() for g in result.gradients.values())


def odds(a):
    return a - np.log(1 - np.exp(a))


def score(a, reward):
    h_w, h_l = a["lp_w"] - a["rf_w"], a["lp_l"] - a["rf_l"]
    a_w, a_l = a["lp_w"] / a["n_w"], a["lp_l"] / a["n_l"]
    return {
        "odds": (odds(a_w), odds(a_l)),
        "ratio": (h_w, h_l),
        "normalised-ratio": (h_w / a["n_w"], h_l / a["n_l"]),
        "average": (a_w, a_l),
    }[reward]


def given_for(reward):
    return A if "ratio" in reward else FREE


@pytest.mark.parametrize("reward", ["odds", "ratio", "normalised-ratio", "average"])
@pytest.mark.parametrize("link", ["pairwise", "pointwise"])
@pytest.mark.parametrize("sft", [0.0, 0.4])
def test_daa_blur_loss_and_gradient_are_the_cards(reward, link, sft):
    beta = 0.7

    def loss(a):
        w, l = (beta * s for s in score({**A, **a}, reward))  # noqa: E741
        value = neg_logsig(w - l) if link == "pairwise" else neg_logsig(w) + neg_logsig(-l)
        return value - sft * a["lp_w"] / a["n_w"]

    arrays = given_for(reward)
    result = objective("daa-blur", link=link, reward=reward, beta=beta, sft_weight=sft)(arrays)
    close(result.per_unit, loss(arrays))
    for name in ("lp_w", "lp_l"):
        close(result.gradients[name], central(lambda a: loss(a).mean(), arrays, name), 1e-7)


def test_daa_blurs_odds_at_beta_1_are_orpos_and_asfts_own():
    pairwise, pointwise = (objective("daa-blur", link=k)(FREE) for k in ("pairwise", "pointwise"))
    nll = -A["lp_w"].sum() / A["n_w"].sum()
    close(pairwise.value, objective("orpo", lam=1)(FREE).value - nll)
    a_w, a_l = A["lp_w"] / A["n_w"], A["lp_l"] / A["n_l"]
    close(pointwise.per_unit, -a_w - np.log(1 - np.exp(a_l)), 1e-12)


@pytest.mark.parametrize(
    ("reward", "id", "options"),
    [
        ("ratio", "dpo", {}),
        ("normalised-ratio", "ln-dpo", {}),
        ("average", "simpo", {"gamma_beta_ratio": 0}),
    ],
)
def test_daa_blurs_pairwise_losses_are_their_namesakes(reward, id, options):
    blur = objective("daa-blur", reward=reward, beta=0.3)(given_for(reward))
    close(blur.per_unit, objective(id, beta=0.3, **options)(given_for(reward)).per_unit)


@given(st.floats(-30, -0.01), st.floats(-30, -0.01))
def test_pointwise_is_above_pairwise_by_the_cards_formula(a_w, a_l):
    at = {"lp_w": [a_w], "lp_l": [a_l], "n_w": [1], "n_l": [1]}
    pairwise, pointwise = (
        objective("daa-blur", link=k, reward="average")(at).value for k in ("pairwise", "pointwise")
    )
    excess = math.log1p((math.exp(-a_w) + math.exp(a_l)) / (1 + math.exp(a_l - a_w)))
    close(pointwise - pairwise, excess, 1e-8)
    assert pointwise >= pairwise


def test_as_beta_vanishes_pairwise_and_pointwise_pull_alike():
    slopes = []
    for link in ("pairwise", "pointwise"):
        result = objective("daa-blur", link=link, beta=1e-6)(FREE)
        slopes.append(np.concatenate([result.gradients["lp_w"], result.gradients["lp_l"]]) / 1e-6)
    close(slopes[0], slopes[1], 1e-4)


def test_daa_blur_refuses_odds_of_a_probability_of_one():
    for link in ("pairwise", "pointwise"):
        with pytest.raises(NumericsError, match="no odds"):
            objective("daa-blur", link=link)(lp_w=[0.0], lp_l=[-1.0], n_w=[1], n_l=[1])


@pytest.mark.parametrize(
    ("id", "options"),
    [
        ("f-dpo", {"beta": 0}),
        ("alphapo", {"beta": 0}),
        ("alphapo", {"gamma": -1}),
        ("daa-blur", {"beta": 0}),
        ("daa-blur", {"sft_weight": -1}),
    ],
)
def test_coefficients_out_of_range_are_refused(id, options):
    (name,) = options
    with pytest.raises(OptionError, match=f"{id}: {name}="):
        objective(id, **options)
