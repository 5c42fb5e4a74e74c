"""aot against its card."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import NumericsError, OptionError, PolyalignWarning
from tests.methods.by_hand import close, neg_logsig, pairs, sig

A = {k: v for k, v in pairs(size=7).items() if k[0] != "n"}
BETA = 0.3


def arrays(a, form):
    if form == "paired":
        return a["lp_w"] - a["lp_l"], a["rf_w"] - a["rf_l"]
    return a["lp_w"] - a["rf_w"], a["lp_l"] - a["rf_l"]


def costs(kind):
    """A cost of t = beta * difference and its derivative by t."""
    if kind == "logistic":
        return neg_logsig, lambda t: -sig(-t)
    if kind == "smoothed":
        return (
            lambda t: 0.8 * neg_logsig(t) + 0.2 * neg_logsig(-t),
            lambda t: 0.2 - sig(-t),
        )
    return lambda t: np.maximum(0, 0.5 - t) ** 2, lambda t: -2 * np.maximum(0, 0.5 - t)


HYPER = {
    "logistic": {},
    "smoothed": {"label_smoothing": 0.2},
    "hinge": {"cost": "hinge", "margin": 0.5, "power": 2.0},
}


@pytest.mark.parametrize("form", ["paired", "unpaired"])
@pytest.mark.parametrize("kind", ["logistic", "smoothed", "hinge"])
def test_aot_loss_and_gradient_are_the_cards(form, kind):
    cost, slope = costs(kind)
    first, second = arrays(A, form)
    i, j = np.argsort(first), np.argsort(second)
    t = BETA * (first[i] - second[j])
    on_first, on_second = np.zeros(7), np.zeros(7)
    on_first[i], on_second[j] = BETA * slope(t) / 7, -BETA * slope(t) / 7
    result = objective("aot", beta=BETA, form=form, **HYPER[kind])(A)
    close(result.value, cost(t).mean())
    close(result.gradients["lp_w"], on_first)
    # Paired: both sides of a pair move with P's rank, and Q is the reference's alone.
    close(result.gradients["lp_l"], -on_first if form == "paired" else on_second)
    close(result.per_unit.mean(), result.value)


@pytest.mark.filterwarnings("ignore::polyalign.errors.PolyalignWarning")
@pytest.mark.parametrize("form", ["paired", "unpaired"])
def test_one_pair_is_exactly_dpo(form):
    one = {k: v[:1] for k, v in A.items()}
    dpo = objective("dpo", beta=BETA)(one)
    aot = objective("aot", beta=BETA, form=form)(one)
    close(aot.value, dpo.value, 1e-14)
    close(aot.gradients["lp_w"], dpo.gradients["lp_w"], 1e-14)


def test_one_pair_is_warned_of():
    with pytest.warns(PolyalignWarning, match="DPO's"):
        objective("aot")({k: v[:1] for k, v in A.items()})


@given(st.permutations(range(7)))
@settings(max_examples=25, deadline=None)
def test_unpaired_does_not_see_the_order_of_winners(order):
    order = list(order)
    moved = dict(A, lp_w=A["lp_w"][order], rf_w=A["rf_w"][order])
    aot = objective("aot", form="unpaired", beta=BETA)
    close(aot(moved).value, aot(A).value)


@given(st.permutations(range(7)))
@settings(max_examples=25, deadline=None)
def test_no_other_matching_costs_less(order):
    order = list(order)
    for form in ("paired", "unpaired"):
        first, second = arrays(A, form)
        other = neg_logsig(BETA * (first - second[order])).mean()
        assert objective("aot", form=form, beta=BETA)(A).value <= other + 1e-12


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_aot_is_at_most_dpo_on_the_same_step(seed):
    a = {k: v for k, v in pairs(seed, 6).items() if k[0] != "n"}
    dpo = objective("dpo", beta=BETA)(a).value
    for form in ("paired", "unpaired"):
        assert objective("aot", form=form, beta=BETA)(a).value <= dpo + 1e-12


def test_what_winners_gain_losers_lose():
    g = objective("aot", form="unpaired", beta=BETA)(A).gradients
    close(g["lp_w"].sum(), -g["lp_l"].sum())


def test_no_hinge_cost_where_winners_dominate():
    a = dict(A, lp_w=A["rf_w"] + 9, lp_l=A["rf_l"] - 9)
    assert objective("aot", form="unpaired", cost="hinge")(a).value == 0


def quantile(values, weights, q):
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(weights[order]) / weights.sum()
    return values[order][np.searchsorted(ends, q)]


def test_sets_of_unequal_size_go_through_quantile_functions():
    a = dict(A, lp_l=A["lp_l"][:3], rf_l=A["rf_l"][:3])
    u, v = arrays({**a, "lp_w": A["lp_w"], "rf_w": A["rf_w"]}, "unpaired")
    q = (np.arange(7 * 3 * 100) + 0.5) / (7 * 3 * 100)
    gap = quantile(u, np.ones(7), q) - quantile(v, np.ones(3), q)
    result = objective("aot", form="unpaired", beta=BETA)(a)
    close(result.value, neg_logsig(BETA * gap).mean(), 1e-12)
    close(result.gradients["lp_w"].sum(), -result.gradients["lp_l"].sum())
    with pytest.raises(NumericsError, match="different sizes"):
        objective("aot", form="paired")(a)


def test_a_weight_is_as_many_copies():
    weight = np.array([1, 2, 1, 3, 1, 1, 1])
    copies = {k: np.repeat(v, weight) for k, v in A.items()}
    for form in ("paired", "unpaired"):
        aot = objective("aot", form=form, beta=BETA)
        close(aot(A, weight=weight).value, aot(copies).value)


def test_options_that_would_be_ignored_are_refused():
    with pytest.raises(OptionError, match="label_smoothing"):
        objective("aot", cost="hinge", label_smoothing=0.1)
    with pytest.raises(OptionError, match="belong to cost=hinge"):
        objective("aot", margin=1.0)
    with pytest.raises(OptionError, match="not convex"):
        objective("aot", cost="hinge", power=0.5)
