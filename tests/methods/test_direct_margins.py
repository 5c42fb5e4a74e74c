"""discopop, dpop and mipo against their cards, worked out by hand in float64."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import OptionError
from tests.methods.by_hand import central, close, neg_logsig, pairs, sig

SIZE = 6
A = pairs(seed=4, size=SIZE)
ZERO = {"lp_l": [-1.0], "rf_w": [0.0], "rf_l": [-1.0]}


def gap(a):
    return (a["lp_w"] - a["rf_w"]) - (a["lp_l"] - a["rf_l"])


def both_sides(result, slope_w, slope_l):
    close(result.gradients["lp_w"], slope_w)
    close(result.gradients["lp_l"], slope_l)


def lrml(z, tau):
    m = sig(z / tau)
    return (1 - m) * neg_logsig(z) + m * np.exp(-z)


def lrml_slope(z, tau):
    m = sig(z / tau)
    ordinary = -(1 - m) * sig(-z) - m * np.exp(-z)
    return ordinary + m * (1 - m) / tau * (np.exp(-z) - neg_logsig(z))


@pytest.mark.parametrize(("beta", "tau"), [(0.05, 0.05), (0.3, 0.7), (0.2, 2.0)])
def test_discopop_loss_and_gradient_are_the_cards(beta, tau):
    z = beta * gap(A)
    result = objective("discopop", beta=beta, tau=tau)(A)
    close(result.per_unit, lrml(z, tau))
    slope = beta / SIZE * lrml_slope(z, tau)
    both_sides(result, slope, -slope)
    close(
        result.gradients["lp_w"],
        central(lambda a: lrml(beta * gap(a), tau).mean(), A, "lp_w"),
        1e-7,
    )


def test_discopop_pushes_the_wrong_way_where_policy_is_reference():
    result = objective("discopop", beta=1.0, tau=0.05)(lp_w=[0.0], **ZERO)
    close(result.value, (math.log(2) + 1) / 2)
    close(result.gradients["lp_w"], -0.25 - 0.5 + (1 - math.log(2)) / (4 * 0.05))
    assert result.gradients["lp_w"][0] > 0


@pytest.mark.parametrize(("z", "curve"), [(-0.1185699, +1), (0.0720061, -1)])
def test_discopop_has_the_critical_points_of_its_card(z, curve):
    slopes = [
        objective("discopop", beta=1.0, tau=0.05)(lp_w=[z + e], **ZERO).gradients["lp_w"][0]
        for e in (-1e-3, 0.0, 1e-3)
    ]
    assert abs(slopes[1]) < 1e-5
    assert math.copysign(1, slopes[2] - slopes[0]) == curve


def test_discopop_is_logistic_far_below_and_exponential_far_above():
    discopop = objective("discopop", beta=1.0, tau=0.05)
    close(discopop(lp_w=[-20.0], **ZERO).value, neg_logsig(-20.0))
    close(discopop(lp_w=[20.0], **ZERO).value / math.exp(-20), 1.0)


def dpop_z(a, beta, lam):
    return beta * (gap(a) - lam * np.maximum(0, a["rf_w"] - a["lp_w"]))


@pytest.mark.parametrize(("beta", "lam"), [(0.3, 50.0), (0.1, 0.5), (0.2, 0.0)])
def test_dpop_loss_and_gradient_are_the_cards(beta, lam):
    z = dpop_z(A, beta, lam)
    lost = A["lp_w"] < A["rf_w"]
    assert 0 < lost.sum() < SIZE
    result = objective("dpop", beta=beta, lam=lam)(A)
    close(result.per_unit, neg_logsig(z))
    push = beta / SIZE * sig(-z)
    both_sides(result, -push * (1 + lam * lost), push)


def test_dpop_is_dpo_without_a_penalty_and_where_nothing_is_lost():
    dpo = objective("dpo", beta=0.3)
    close(objective("dpop", beta=0.3, lam=0)(A).per_unit, dpo(A).per_unit)
    kept = dict(A, lp_w=np.maximum(A["lp_w"], A["rf_w"]))
    close(objective("dpop", beta=0.3)(kept).per_unit, dpo(kept).per_unit)


def test_dpop_where_policy_is_reference_is_log_2_with_dpos_gradient():
    same = dict(A, lp_w=A["rf_w"], lp_l=A["rf_l"])
    result = objective("dpop", beta=0.3)(same)
    close(result.per_unit, math.log(2))
    close(result.gradients["lp_w"], -0.3 / 2 / SIZE)


def mipo_z(a, beta):
    k = a["rf_w"] / a["n_w"] - a["rf_l"] / a["n_l"]
    return beta * (a["lp_w"] / a["n_w"] - a["lp_l"] / a["n_l"] - np.logaddexp(0, k))


@pytest.mark.parametrize("beta", [20.0, 1.5])
def test_mipo_loss_and_gradient_are_the_cards(beta):
    z = mipo_z(A, beta)
    result = objective("mipo", beta=beta)(A)
    close(result.per_unit, neg_logsig(z))
    push = beta / SIZE * sig(-z)
    both_sides(result, -push / A["n_w"], push / A["n_l"])


def test_mipo_where_policy_is_reference_is_above_log_2_and_higher_for_misaligned_pairs():
    same = dict(A, lp_w=A["rf_w"], lp_l=A["rf_l"])
    k = A["rf_w"] / A["n_w"] - A["rf_l"] / A["n_l"]
    result = objective("mipo", beta=2.0)(same)
    close(result.per_unit, np.logaddexp(0, 2.0 * neg_logsig(k)))
    assert (result.per_unit >= math.log(2)).all()
    assert (np.diff(result.per_unit[np.argsort(k)]) < 0).all()


def test_mipo_is_ln_dpo_where_the_reference_agrees_and_simpo_where_it_does_not():
    free = {"lp_w": [-4.0], "lp_l": [-9.0], "n_w": [2], "n_l": [3]}
    agrees = {"rf_w": [-1.0], "rf_l": [-180.0]}
    close(
        objective("mipo", beta=0.1)({**free, **agrees}).value,
        objective("ln-dpo", beta=0.1)({**free, **agrees}).value,
    )
    close(
        objective("mipo", beta=2.0)({**free, "rf_w": [-120.0], "rf_l": [-1.0]}).value,
        objective("simpo", beta=2.0, gamma_beta_ratio=0)(free).value,
    )


@given(st.floats(-8, -0.1), st.floats(-8, -0.1))
def test_mipo_is_harder_than_ln_dpo_and_than_simpo(b_w, b_l):
    free = {"lp_w": [-2.0], "lp_l": [-3.0], "n_w": [1], "n_l": [1]}
    all_of_it = {**free, "rf_w": [b_w], "rf_l": [b_l]}
    mipo = objective("mipo", beta=2.0)(all_of_it).value
    assert mipo >= objective("ln-dpo", beta=2.0)(all_of_it).value
    assert mipo >= objective("simpo", beta=2.0, gamma_beta_ratio=0)(free).value


@pytest.mark.parametrize("z", [-1e4, -120.0, 120.0, 1e4])
@pytest.mark.parametrize(
    ("id", "hyper"), [("discopop", {}), ("discopop", {"tau": 5.0}), ("dpop", {}), ("mipo", {})]
)
def test_T32_extreme_margins_stay_finite(id, hyper, z):
    result = objective(id, **hyper)(
        lp_w=[min(z, 0)], lp_l=[-max(z, 0)], rf_w=[0.0], rf_l=[0.0], n_w=[1], n_l=[1]
    )
    assert np.isfinite(result.value)
    assert all(np.isfinite(g).all() for g in result.gradients.values())


@pytest.mark.parametrize(
    ("id", "hyper"),
    [
        ("discopop", {"beta": 0}),
        ("discopop", {"tau": 0}),
        ("discopop", {"tau": -1}),
        ("dpop", {"beta": -1}),
        ("dpop", {"lam": -1}),
        ("mipo", {"beta": 0}),
    ],
)
def test_coefficients_out_of_range_are_refused(id, hyper):
    (name,) = hyper
    with pytest.raises(OptionError, match=f"{id}: {name}="):
        objective(id, **hyper)


@pytest.mark.parametrize("id", ["discopop", "dpop", "mipo"])
def test_they_need_their_reference(id):
    with pytest.raises(OptionError, match=f"{id} needs the array 'rf_w'"):
        objective(id)({k: v for k, v in A.items() if k != "rf_w"})
