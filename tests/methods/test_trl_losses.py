"""TRL's losses that are methods of their own here: the imported method computes TRL's numbers."""

import numpy as np
import pytest

from polyalign import objective
from polyalign.methods.trl import import_config
from tests.methods.by_hand import close, neg_logsig, pairs, sig

A = pairs(3, 6)
CHOSEN, REJECTED = A["lp_w"] - A["rf_w"], A["lp_l"] - A["rf_l"]
BETA = 0.3


def discopop(tau):
    z = BETA * (CHOSEN - REJECTED)
    mixed = sig(z / tau)
    return neg_logsig(z) * (1 - mixed) + np.exp(-z) * mixed


def exo(eps):
    z = BETA * (CHOSEN - REJECTED)
    chosen = sig(z) * (-neg_logsig(z) - np.log1p(-eps))
    return chosen + sig(-z) * (-neg_logsig(-z) - np.log(eps))


TRL = {
    "apo_zero": ({}, sig(-BETA * CHOSEN) + sig(BETA * REJECTED)),
    "apo_down": ({}, sig(BETA * CHOSEN) + sig(-BETA * (CHOSEN - REJECTED))),
    "sigmoid_norm": ({}, neg_logsig(BETA * (CHOSEN / A["n_w"] - REJECTED / A["n_l"]))),
    "discopop": ({"discopop_tau": 0.2}, discopop(0.2)),
    "exo_pair": ({"label_smoothing": 0.1}, exo(0.1)),
    "nca_pair": (
        {},
        neg_logsig(BETA * CHOSEN)
        + 0.5 * neg_logsig(-BETA * CHOSEN)
        + 0.5 * neg_logsig(-BETA * REJECTED),
    ),
}


@pytest.mark.parametrize("loss", TRL)
def test_an_imported_loss_is_the_trainers(loss):
    flags, expected = TRL[loss]
    got = import_config({"loss_type": loss, "beta": BETA, **flags}, trainer="dpo")
    arrays = A if loss == "sigmoid_norm" else {k: v for k, v in A.items() if k[0] != "n"}
    found = objective(got.method, **got.options["hyper"])(arrays)
    close(found.per_unit, expected)
    assert {note.flag for note in got.notes} >= {"loss_type", "beta", *flags}


def test_exo_without_smoothing_takes_the_value_that_the_trainer_takes():
    assert import_config({"loss_type": "exo_pair"}, trainer="dpo").options["hyper"]["eps"] == 1e-3


def test_unpaired_apo_zero_is_kto_without_a_zero_point():
    got = import_config({"loss_type": "apo_zero_unpaired", "beta": BETA}, trainer="kto")
    assert got.method == "kto"
    assert got.options["hyper"]["zero_point"] == "none"
