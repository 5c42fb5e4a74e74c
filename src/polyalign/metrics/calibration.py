"""Do probabilities mean what they say: Brier score, reliability bins, calibration error."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from polyalign.metrics.arrays import Floats, Numbers, floats
from polyalign.metrics.intervals import wilson


@dataclass(frozen=True)
class Bin:
    """Predictions between ``low`` and ``high``: their mean, and how often it happened."""

    low: float
    high: float
    n: int
    predicted: float
    observed: float
    observed_low: float
    observed_high: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def sigmoid(x: Numbers) -> Floats:
    """1 / (1 + exp(-x)) without overflow: the probability of a Bradley-Terry margin."""
    z = floats(x)
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + small), small / (1 + small))


def brier(probability: Numbers, outcome: Numbers) -> float:
    """Mean squared error of probabilities [N] against outcomes [N] in [0, 1] (Brier 1950)."""
    return float(np.mean((floats(probability) - floats(outcome)) ** 2))


def reliability(probability: Numbers, outcome: Numbers, bins: int = 10) -> list[Bin]:
    """The filled ones of ``bins`` equal-width bins of [0, 1]; the last includes 1."""
    p, y = floats(probability), floats(outcome)
    if len(p) and (p.min() < 0 or p.max() > 1):
        raise ValueError("probabilities lie in [0, 1]")
    index = np.minimum((p * bins).astype(np.int64), bins - 1)
    out = []
    for i in range(bins):
        mine = index == i
        n = int(mine.sum())
        if n:
            seen = wilson(float(y[mine].sum()), n)
            out.append(
                Bin(
                    i / bins,
                    (i + 1) / bins,
                    n,
                    float(p[mine].mean()),
                    seen.value,
                    seen.low,
                    seen.high,
                )
            )
    return out


def calibration_error(probability: Numbers, outcome: Numbers, bins: int = 10) -> float:
    """Expected calibration error: mean |observed - predicted| over bins, weighted by size.

    Guo et al. 2017 (1706.04599), equation 3. It is biased upwards for few examples.
    """
    filled = reliability(probability, outcome, bins)
    n = sum(b.n for b in filled)
    return sum(b.n * abs(b.observed - b.predicted) for b in filled) / n if n else float("nan")


def pair_probabilities(margin: Numbers) -> tuple[Floats, Floats]:
    """Reward margins [N] of pairs as calibration data: (probability, outcome), each [2N].

    Each pair is asked in both orders: which answer was labelled first is our doing, and without
    the mirror image "always the first" would look calibrated.
    """
    p = sigmoid(margin)
    return np.concatenate([p, 1 - p]), np.concatenate([np.ones_like(p), np.zeros_like(p)])
