"""sft against its card."""

import math

import numpy as np
import pytest

from polyalign import objective
from polyalign.errors import OptionError
from tests.methods.by_hand import close

DRAW = np.random.default_rng(0)
LOGP = -DRAW.uniform(0.1, 3, (3, 5))
MASK = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [1, 0, 1, 1, 0]])
N = MASK.sum(1, keepdims=True)


def test_sft_losses_and_gradients_are_the_cards():
    total = (LOGP * MASK).sum(1)
    expected = {
        "token": (-total.sum() / N.sum(), -MASK / N.sum()),
        "sequence": (-(total / N[:, 0]).mean(), -MASK / (3 * N)),
        "sum": (-total.mean(), -MASK / 3),
    }
    for reduction, (value, slope) in expected.items():
        result = objective("sft", reduction=reduction)(logp=LOGP, mask=MASK)
        close(result.value, value)
        close(result.gradients["logp"], slope)
        close(result.per_unit.mean(), value)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_a_uniform_policy_has_the_loss_log_V(reduction):
    uniform = np.full((3, 5), -math.log(7))
    close(objective("sft", reduction=reduction)(logp=uniform, mask=MASK).value, math.log(7))


def test_the_reductions_coincide_on_equal_lengths():
    token = objective("sft")(logp=LOGP).value
    close(objective("sft", reduction="sequence")(logp=LOGP).value, token)
    close(objective("sft", reduction="sum")(logp=LOGP).value, 5 * token)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(OptionError, match="reduction='mean' is not allowed"):
        objective("sft", reduction="mean")
