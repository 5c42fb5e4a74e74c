import numpy as np
import pytest

from polyalign.metrics.calibration import (
    brier,
    calibration_error,
    pair_probabilities,
    reliability,
    sigmoid,
)


def test_brier_by_hand():
    assert brier([0.9, 0.2], [1, 0]) == pytest.approx((0.01 + 0.04) / 2)


def test_calibration_error_by_hand():
    # Bin 8 (0.8): two predictions, one right; bin 2 (0.25): one prediction, wrong.
    assert calibration_error([0.8, 0.8, 0.25], [1, 0, 0]) == pytest.approx((2 * 0.3 + 1 * 0.25) / 3)


def test_certainty_falls_into_the_last_bin():
    (only,) = reliability([1.0, 1.0], [1, 1])
    assert (only.low, only.high, only.n, only.observed) == (0.9, 1.0, 2, 1.0)


def test_probabilities_outside_0_to_1_are_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        reliability([1.2], [1])


def test_calibrated_forecasts_have_a_small_error_and_overconfident_ones_a_large_one():
    generator = np.random.default_rng(0)
    margin = generator.normal(size=4000) * 2
    won = generator.random(4000) < sigmoid(margin)
    signed = np.where(won, margin, -margin)
    assert calibration_error(*pair_probabilities(signed)) < 0.03
    assert calibration_error(*pair_probabilities(5 * signed)) > 0.1


def test_always_preferring_the_first_is_not_called_calibrated():
    p, y = pair_probabilities(np.array([3.0, -3.0, 3.0, -3.0]))
    assert calibration_error(p, y) == pytest.approx(sigmoid(3.0) - 0.5)


def test_sigmoid_does_not_overflow():
    assert sigmoid([-1e4, 0.0, 1e4]).tolist() == [0.0, 0.5, 1.0]
