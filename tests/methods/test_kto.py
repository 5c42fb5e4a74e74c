"""kto against its card."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import NumericsError, PolyalignWarning
from polyalign.objectives import Prospect
from tests.methods.by_hand import close, sig

DRAW = np.random.default_rng(0)
SIZE = 6
A = {
    "lp": -DRAW.uniform(2, 20, SIZE),
    "rf": -DRAW.uniform(2, 20, SIZE),
    "lpK": -DRAW.uniform(2, 10, SIZE),
    "rfK": -DRAW.uniform(8, 20, SIZE),
    "label": np.array([1, 0, 1, 1, 0, 0]),
}


def by_hand(a, beta, lam_D, lam_U):
    z0 = max(0.0, np.mean(a["lpK"] - a["rfK"]))
    h = a["lp"] - a["rf"]
    good = a["label"] == 1
    s = np.where(good, sig(beta * (h - z0)), sig(beta * (z0 - h)))
    lam = np.where(good, lam_D, lam_U)
    slope = lam * beta * s * (1 - s) / len(h) * np.where(good, -1, 1)
    return lam * (1 - s), slope, z0


def test_kto_loss_and_gradient_are_the_cards():
    value, slope, z0 = by_hand(A, 0.2, 1.3, 0.7)
    assert z0 > 0
    result = objective("kto", beta=0.2, lam_D=1.3, lam_U=0.7)(A)
    close(result.per_unit, value)
    close(result.gradients["lp"], slope)
    close(result.metrics["kl"], z0)


def test_T26_the_reference_point_has_no_gradient():
    assert (objective("kto")(A).gradients["lpK"] == 0).all()


def test_T26_identical_models_have_no_divergence_and_half_the_loss():
    same = dict(A, rf=A["lp"], rfK=A["lpK"])
    result = objective("kto", lam_D=2.0, lam_U=0.5)(same)
    assert result.metrics["kl"] == 0
    close(result.per_unit, np.where(A["label"] == 1, 1.0, 0.25))


def test_the_reference_point_is_never_negative():
    low = dict(A, lpK=A["rfK"] - 5)
    assert objective("kto")(low).metrics["kl"] == 0
    close(objective("kto")(low).per_unit, by_hand(low, 0.1, 1, 1)[0])


@given(st.permutations(range(SIZE)))
def test_T26_the_order_of_examples_changes_nothing(order):
    order = list(order)
    moved = {k: v[order] for k, v in A.items()}
    # The mismatched answers may be permuted on their own: only their mean counts.
    moved["lpK"], moved["rfK"] = A["lpK"], A["rfK"]
    result = objective("kto")(moved)
    close(result.per_unit, objective("kto")(A).per_unit[order])


@pytest.mark.parametrize(("h", "label"), [(500.0, 1), (-500.0, 0), (-500.0, 1), (500.0, 0)])
def test_kto_saturates_on_both_sides(h, label):
    a = {"lp": [h, -1.0], "rf": [0.0, -1.0], "lpK": [-1.0] * 2, "rfK": [-1.0] * 2}
    result = objective("kto")(a | {"label": [label, 1 - label]})
    close(result.gradients["lp"][0], 0.0, 1e-12)
    close(result.per_unit[0], 0.0 if (h > 0) == (label == 1) else 1.0, 1e-12)


def test_kto_with_a_zero_point_of_zero_is_apo_zero():
    # apo-zero on a pair: (1 - sig(beta h_w)) + sig(beta h_l).
    h_w, h_l, beta = 3.0, -1.0, 0.4
    a = {"lp": [h_w, h_l], "rf": [0, 0], "lpK": [-1, -1], "rfK": [0, 0], "label": [1, 0]}
    apo_zero = (1 - sig(beta * h_w)) + sig(beta * h_l)
    close(objective("kto", beta=beta)(a).per_unit.sum(), apo_zero)


def test_kto_refuses_one_example():
    with pytest.raises(NumericsError, match="zero point over several examples"):
        objective("kto")({k: v[:1] for k, v in A.items()})


def test_kto_warns_when_all_labels_are_alike():
    with pytest.warns(PolyalignWarning, match="only one side"):
        objective("kto")(dict(A, label=np.ones(SIZE)))


def test_T26_the_reference_point_is_the_mean_over_all_rows_of_the_step():
    # An odd number of examples, and weights: the mean is over examples, not over batches.
    odd = {k: v[:5] for k, v in A.items()}
    h = odd["lpK"] - odd["rfK"]
    close(objective("kto")(odd).metrics["kl"], h.mean())
    weight = np.array([1.0, 0.0, 2.0, 1.0, 0.0])
    close(objective("kto")(odd, weight=weight).metrics["kl"], (h * weight).sum() / weight.sum())


def test_the_state_starts_at_zero():
    assert Prospect().start()["z0"] == torch.zeros(())
