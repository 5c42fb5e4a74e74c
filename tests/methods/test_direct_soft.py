"""robust-dpo, mmpo and osp against their cards, worked out by hand in float64."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import DataError, NumericsError, OptionError
from polyalign.feedback.records import Pair
from polyalign.feedback.units import make_units
from polyalign.methods import get
from tests.methods.by_hand import close, neg_logsig, pairs, sig

A = pairs()
SIZE = 5
GAP = (A["lp_w"] - A["rf_w"]) - (A["lp_l"] - A["rf_l"])
SCORES = {"s_w": np.array([4.0, 2.5, 3.0, 1.0, 5.0]), "s_l": np.array([1.0, 2.0, 3.0, 2.0, 4.5])}
P = np.array([0.5, 1.0, 0.0, 0.8, 0.3])
ZERO = {"lp_l": [0.0], "rf_w": [0.0], "rf_l": [0.0]}

LOSS = {
    "logistic": (neg_logsig, lambda z: -sig(-z)),
    "squared": (lambda z: (z - 0.5) ** 2, lambda z: 2 * (z - 0.5)),
    "hinge": (lambda z: np.maximum(0, 1 - z), lambda z: -(z < 1).astype(float)),
}


@pytest.mark.parametrize("loss", LOSS)
def test_robust_dpo_loss_and_gradient_are_the_cards(loss):
    eps, beta = 0.2, 0.3
    z, (link, slope) = beta * GAP, LOSS[loss]
    result = objective("robust-dpo", eps=eps, beta=beta, loss=loss)(A)
    close(result.per_unit, ((1 - eps) * link(z) - eps * link(-z)) / (1 - 2 * eps))
    g = ((1 - eps) * slope(z) + eps * slope(-z)) / (1 - 2 * eps)
    close(result.gradients["lp_w"], beta / SIZE * g)
    close(result.gradients["lp_l"], -beta / SIZE * g)


@given(st.floats(-20, 20), st.floats(0.0, 0.45), st.sampled_from(sorted(LOSS)))
def test_robust_dpo_is_on_average_over_the_flip_the_clean_loss(z, eps, loss):
    robust = objective("robust-dpo", beta=1.0, eps=eps, loss=loss)
    seen, flipped = robust(lp_w=[z], **ZERO).value, robust(lp_w=[-z], **ZERO).value
    close((1 - eps) * seen + eps * flipped, LOSS[loss][0](np.array(z)), 1e-9)


@given(st.floats(-20, 20), st.floats(0.01, 0.45))
def test_robust_dpo_never_pushes_the_observed_winner_down(z, eps):
    gradient = objective("robust-dpo", beta=1.0, eps=eps)(lp_w=[z], **ZERO).gradients["lp_w"]
    close(-gradient, sig(-z) + eps / (1 - 2 * eps))


def test_robust_dpo_without_flips_is_dpo_and_is_what_dpo_calls_robust():
    close(objective("robust-dpo", eps=0.0)(A).per_unit, objective("dpo")(A).per_unit)
    named = objective("dpo", loss="robust", label_smoothing=0.1)
    close(objective("robust-dpo")(A).per_unit, named(A).per_unit)


def test_robust_dpo_falls_without_bound_on_a_pair_that_never_flips():
    robust = objective("robust-dpo", eps=0.2, beta=1.0)
    values = [robust(lp_w=[z], **ZERO).value for z in (100.0, 200.0)]
    close((values[1] - values[0]) / 100, -0.2 / 0.6, 1e-9)


@pytest.mark.parametrize("hyper", [{"eps": 0.5}, {"eps": -0.1}, {"beta": 0.0}])
def test_robust_dpo_refuses_rates_of_a_half_and_more(hyper):
    with pytest.raises(OptionError, match="is not allowed"):
        objective("robust-dpo", **hyper)


def test_mmpo_loss_and_gradient_are_the_cards():
    gamma, beta = 1.3, 0.2
    p, z = sig(gamma * (SCORES["s_w"] - SCORES["s_l"])), beta * GAP
    result = objective("mmpo", gamma=gamma, beta=beta)(A | SCORES)
    close(result.per_unit, p * neg_logsig(z) + (1 - p) * neg_logsig(-z))
    close(result.gradients["lp_w"], -beta / SIZE * (p - sig(z)))
    close(result.gradients["lp_l"], beta / SIZE * (p - sig(z)))


def test_mmpo_reads_the_numbers_by_the_names_that_data_have_too():
    named = {"score_chosen": SCORES["s_w"], "score_rejected": SCORES["s_l"]}
    close(objective("mmpo")(A | named).per_unit, objective("mmpo")(A | SCORES).per_unit)


@given(st.floats(-3, 3), st.floats(0.1, 3))
def test_mmpo_is_least_where_the_margin_is_the_scores_gap_and_is_the_labels_entropy_there(m, gamma):
    beta = 0.1
    at = {"lp_w": [gamma * m / beta], **ZERO, "s_w": [m], "s_l": [0.0]}
    result = objective("mmpo", gamma=gamma, beta=beta)(at)
    p = sig(gamma * m)
    close(result.gradients["lp_w"], 0.0, 1e-12)
    close(result.value, -p * math.log(p) - (1 - p) * math.log(1 - p), 1e-9)


def test_mmpo_with_a_large_gamma_is_dpo_and_with_gamma_zero_keeps_the_reference():
    clear = {"s_w": np.full(SIZE, 2.0), "s_l": np.ones(SIZE)}
    close(objective("mmpo", gamma=1e3)(A | clear).per_unit, objective("dpo", beta=0.01)(A).per_unit)
    same = dict(A, lp_w=A["rf_w"], lp_l=A["rf_l"]) | SCORES
    close(objective("mmpo", gamma=0.0)(same).gradients["lp_w"], 0.0, 1e-15)


def test_mmpo_of_a_constant_gap_is_cdpo():
    eps = 0.2
    constant = {"s_w": np.full(SIZE, math.log((1 - eps) / eps)), "s_l": np.zeros(SIZE)}
    cdpo = objective("dpo", loss="cdpo", label_smoothing=eps, beta=0.01)
    close(objective("mmpo", gamma=1.0)(A | constant).per_unit, cdpo(A).per_unit)


def test_mmpo_does_not_change_when_answers_and_scores_swap():
    whole = A | SCORES
    swapped = {k[:-1] + {"w": "l", "l": "w"}[k[-1]]: v for k, v in whole.items()}
    close(objective("mmpo")(swapped).per_unit, objective("mmpo")(whole).per_unit)


def test_mmpo_refuses_missing_scores_and_a_negative_gamma():
    with pytest.raises(OptionError, match="score_chosen"):
        objective("mmpo")(A)
    with pytest.raises(OptionError, match="is not allowed"):
        objective("mmpo", gamma=-0.1)


def test_osp_loss_and_gradient_are_the_cards():
    beta = 0.2
    z = beta * GAP
    result = objective("osp", beta=beta)(A | {"p": P})
    close(result.per_unit, P * neg_logsig(z) + (1 - P) * neg_logsig(-z))
    close(result.gradients["lp_w"], -beta / SIZE * (P - sig(z)))


def test_osp_of_certain_pairs_is_dpo_and_of_ties_keeps_the_reference():
    close(objective("osp")(A | {"p": np.ones(SIZE)}).per_unit, objective("dpo")(A).per_unit)
    same = dict(A, lp_w=A["rf_w"], lp_l=A["rf_l"], p=np.full(SIZE, 0.5))
    close(objective("osp")(same).gradients["lp_w"], 0.0, 1e-15)


@given(st.floats(0.01, 2))
def test_osp_is_mmpo_with_the_strength_in_place_of_the_scores(gamma):
    p = sig(gamma * (SCORES["s_w"] - SCORES["s_l"]))
    mmpo = objective("mmpo", gamma=gamma, beta=0.1)
    close(objective("osp")(A | {"p": p}).per_unit, mmpo(A | SCORES).per_unit)


def test_osp_refuses_strengths_outside_0_and_1_in_arrays_and_in_records():
    with pytest.raises(NumericsError, match=r"'strength' holds numbers outside \[0, 1\]"):
        objective("osp")(A | {"p": P + 0.5})
    needs = get("osp")().stages[0].updates[0].objective.needs
    pair = Pair(key="a", prompt="x", chosen="y", rejected="z", fields={"strength": 1.5})
    with pytest.raises(DataError, match=r"a cannot be learnt from: its strength 1\.5"):
        make_units([pair], [0], needs)
