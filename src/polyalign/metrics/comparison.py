"""Is one better than the other: paired differences, their tests, and many tests at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from polyalign.metrics.arrays import Floats, Numbers, codes, floats
from polyalign.metrics.intervals import DRAWS, Estimate, bootstrap, proportion

_EXACT = 12
"""Up to this many clusters all sign flips are counted, instead of some drawn."""


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p: float
    n: int
    clusters: int
    level: float = 0.95

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not finite becomes None."""
        return {
            key: (None if isinstance(x, float) and not np.isfinite(x) else x)
            for key, x in asdict(self).items()
        }


def sign_flip_test(
    differences: Numbers,
    cluster: Sequence[Any] | None = None,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of "the differences are symmetric about 0", by flipping whole clusters.

    Exact up to 12 clusters; beyond, ``draws`` random flips and (1 + hits) / (1 + draws), which
    is a valid p-value (Phipson & Smyth 2010). Raises nothing: no differences give 1.
    """
    d = floats(differences)
    if len(d) == 0:
        return 1.0
    total = np.bincount(codes(cluster, len(d)), d).astype(np.float64)
    total = total[total != 0]
    k = len(total)
    if k == 0:
        return 1.0
    # A relative slack: sums of the same numbers in another order must count as ties.
    seen = abs(float(total.sum())) - 1e-9 * float(np.abs(total).sum())
    if k <= _EXACT:
        every = 1.0 - 2.0 * ((np.arange(2**k)[:, None] >> np.arange(k)) & 1)
        return float(np.mean(np.abs(every @ total) >= seen))
    generator = np.random.default_rng(seed)
    hits = 0
    for start in range(0, draws, 1000):
        signs = generator.integers(0, 2, size=(min(1000, draws - start), k)) * 2.0 - 1.0
        hits += int((np.abs(signs @ total) >= seen).sum())
    return (1 + hits) / (1 + draws)


def paired_difference(
    a: Numbers,
    b: Numbers,
    cluster: Sequence[Any] | None = None,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """Mean of ``a - b`` over paired values [N], with bootstrap interval and sign-flip test."""
    x, y = floats(a), floats(b)
    if x.shape != y.shape:
        raise ValueError(f"pairs need equal lengths, not {len(x)} and {len(y)}")
    mean = bootstrap(x - y, cluster, level=level, draws=draws, seed=seed)
    p = sign_flip_test(x - y, cluster, seed=seed)
    return Difference(mean.value, mean.low, mean.high, p, mean.n, mean.clusters, level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979): adjusted p-values in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def win_rate(
    wins: Numbers, cluster: Sequence[Any] | None = None, *, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Share of comparisons won, a tie counted 0.5: ``wins`` [N] in [0, 1], with interval."""
    return proportion(wins, cluster, level=level, seed=seed)


def outcome(first: Numbers, second: Numbers) -> Floats:
    """1 where ``first`` scores higher, 0 where lower, 0.5 for ties.

    >>> outcome([1, 2, 3], [0, 2, 4]).tolist()
    [1.0, 0.5, 0.0]
    """
    d = floats(first) - floats(second)
    return np.where(np.isnan(d), np.nan, (np.sign(d) + 1) / 2)


def ranking_accuracy(
    chosen: Numbers, rejected: Numbers, cluster: Sequence[Any] | None = None, *, level: float = 0.95
) -> Estimate:
    """Share of pairs whose chosen answer scores higher, a tie counted 0.5, with interval."""
    return win_rate(outcome(chosen, rejected), cluster, level=level)
