"""Estimates with intervals: proportions, and means over clusters.

Several completions of one prompt are not independent, so intervals resample prompts (clusters),
never completions. Nothing here draws from a global generator: equal inputs, equal intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

from polyalign.metrics.arrays import Floats, Numbers, codes, floats

DRAWS = 2000
_CHUNK = 4_000_000
"""Resampled counts held at once; the result does not depend on it."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval at ``level``, from ``n`` values in ``clusters`` clusters."""

    value: float
    low: float
    high: float
    n: int
    clusters: int
    level: float = 0.95

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not finite becomes None, for JSON has no NaN."""
        return {
            key: (None if isinstance(x, float) and not np.isfinite(x) else x)
            for key, x in asdict(self).items()
        }

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"


def quantile(level: float) -> float:
    """Two-sided normal quantile: 1.96 for a level of 0.95."""
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(successes: float, n: int, level: float = 0.95) -> Estimate:
    """Wilson's score interval for a proportion (Wilson 1927); ``successes`` may count ties as 0.5.

    >>> print(wilson(0, 10))
    0.000 [0.000, 0.278] (n=10)
    """
    if n == 0:
        nan = float("nan")
        return Estimate(nan, nan, nan, 0, 0, level)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials")
    z2 = quantile(level) ** 2
    p = successes / n
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = sqrt(z2) / (1 + z2 / n) * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At 0 and 1 the bound is exact, and rounding must not move it inside.
    low = 0.0 if p == 0 else max(0.0, middle - half)
    high = 1.0 if p == 1 else min(1.0, middle + half)
    return Estimate(p, low, high, n, n, level)


def resampled_means(values: Floats, cluster: Sequence[Any] | None, draws: int, seed: int) -> Floats:
    """Means [draws, …] of ``values`` [N, …] when whole clusters are drawn with replacement."""
    label = codes(cluster, len(values))
    k = int(label.max()) + 1
    size = np.bincount(label, minlength=k).astype(np.float64)
    flat = values.reshape(len(values), -1)
    total = np.stack([np.bincount(label, column, minlength=k) for column in flat.T], axis=1)
    generator = np.random.default_rng(seed)
    out = []
    step = max(1, _CHUNK // k)
    for start in range(0, draws, step):
        pick = generator.integers(0, k, size=(min(step, draws - start), k))
        place = pick + k * np.arange(len(pick))[:, None]
        count = np.bincount(place.ravel(), minlength=len(pick) * k).reshape(len(pick), k)
        out.append((count @ total) / (count @ size)[:, None])
    return np.concatenate(out).reshape(draws, *values.shape[1:])


def bootstrap(
    values: Numbers,
    cluster: Sequence[Any] | None = None,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Mean of ``values`` [N] with the percentile bootstrap over clusters (Efron 1979).

    ``cluster`` [N] labels what belongs together (the prompt); None resamples single values.
    One cluster says nothing about spread: its interval is infinite.
    """
    x = floats(values)
    nan = float("nan")
    if len(x) == 0:
        return Estimate(nan, nan, nan, 0, 0, level)
    k = int(codes(cluster, len(x)).max()) + 1
    value = float(x.mean())
    if k == 1 or not np.isfinite(x).all():
        return Estimate(value, float("-inf"), float("inf"), len(x), k, level)
    means = resampled_means(x, cluster, draws, seed)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(value, float(low), float(high), len(x), k, level)


def proportion(
    successes: Numbers, cluster: Sequence[Any] | None = None, *, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Share of successes [N] in [0, 1]: Wilson when values are independent, else over clusters.

    Where every cluster agrees, the bootstrap would claim certainty; Wilson's interval over
    clusters takes its place.
    """
    x = floats(successes)
    if len(x) and (x.min() < 0 or x.max() > 1):
        raise ValueError("successes lie in [0, 1]")
    label = codes(cluster, len(x))
    k = int(label.max()) + 1 if len(x) else 0
    if k == len(x):
        return wilson(float(x.sum()), len(x), level)
    by_cluster = np.bincount(label, x) / np.bincount(label)
    if np.ptp(by_cluster) == 0:
        flat = wilson(float(by_cluster.sum()), k, level)
        return Estimate(flat.value, flat.low, flat.high, len(x), k, level)
    return bootstrap(x, cluster, level=level, seed=seed)


def detectable_difference(
    n: int, *, spread: float = 0.5, level: float = 0.95, power: float = 0.8, groups: int = 1
) -> float:
    """Smallest true mean that ``n`` values would show as different from its null.

    With ``power``, two-sided at ``level``, normal approximation. ``spread`` is the standard
    deviation of one value (0.5: a coin, the worst case of a proportion). ``groups`` 1: one
    sample against a constant, or paired differences; 2: two samples of ``n`` each.

    >>> round(detectable_difference(100), 2)
    0.14
    """
    if n < 1:
        return float("inf")
    return (quantile(level) + NormalDist().inv_cdf(power)) * spread * sqrt(groups / n)
