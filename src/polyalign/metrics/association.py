"""Does one number go with another: correlations with intervals."""

from __future__ import annotations

import numpy as np

from polyalign.metrics.arrays import Floats, Numbers, floats
from polyalign.metrics.intervals import DRAWS, Estimate


def pearson(x: Numbers, y: Numbers) -> float:
    """Pearson's correlation of two samples [N]; NaN where one of them does not vary."""
    a, b = floats(x), floats(y)
    if len(a) < 2:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


def ranks(x: Numbers) -> Floats:
    """Ranks from 1, ties sharing the mean of theirs.

    >>> ranks([10, 20, 20, 30]).tolist()
    [1.0, 2.5, 2.5, 4.0]
    """
    a = floats(x)
    _, inverse, count = np.unique(a, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[inverse].astype(np.float64)


def spearman(x: Numbers, y: Numbers) -> float:
    """Spearman's rank correlation of two samples [N], ties averaged."""
    return pearson(ranks(x), ranks(y))


def correlation(
    x: Numbers, y: Numbers, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Spearman's correlation with a percentile bootstrap interval over the N points.

    Used for "does the reward pay for length": robust to one very long answer.
    """
    a, b = floats(x), floats(y)
    n = len(a)
    value = spearman(a, b)
    if n < 3 or not np.isfinite(value):
        return Estimate(value, -1.0, 1.0, n, n, level)
    generator = np.random.default_rng(seed)
    # Ranks of the whole sample are resampled: ranking each resample anew costs far more and
    # moves the interval in the third digit.
    ra, rb = ranks(a), ranks(b)
    pick = generator.integers(0, n, size=(draws, n))
    u, v = ra[pick], rb[pick]
    u, v = u - u.mean(1, keepdims=True), v - v.mean(1, keepdims=True)
    scale = np.sqrt((u * u).sum(1) * (v * v).sum(1))
    drawn = ((u * v).sum(1) / np.where(scale > 0, scale, np.nan))[scale > 0]
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2]) if len(drawn) else (-1, 1)
    return Estimate(value, float(low), float(high), n, n, level)
