"""Two levels of luck: which prompts were asked, and which seed a method was trained with.

A method that is trained with S seeds and measured on the same N items gives values [S, N]:
``value = mean + seed + item + rest``. The prompts of another test set would give other items,
another training run another seed effect; an interval or a test that knows only prompts says
"different" of two runs of one method. Axes: S seeds, N items, K clusters of items (prompts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import lgamma, pi, sqrt
from typing import Any

import numpy as np

from polyalign.metrics.arrays import Floats, Numbers, codes, floats
from polyalign.metrics.comparison import Difference, sign_flip_test
from polyalign.metrics.intervals import DRAWS, Estimate, bootstrap, quantile


def seeds_by_items(values: Numbers) -> Floats:
    """Values as [S, N]; one seed may come as [N]. Raises ValueError for other shapes."""
    found = np.atleast_2d(floats(values))
    if found.ndim != 2:
        raise ValueError(f"values are [seeds, items], not of shape {found.shape}")
    return found


def crossed_bootstrap(
    values: Numbers,
    cluster: Sequence[Any] | None = None,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Mean of values [S, N] with a percentile bootstrap of clusters and, above them, of seeds.

    Each draw takes clusters and seeds with replacement, the two independently. S seeds drawn from
    S have only (S-1)/S of the variance of S new ones, so deviations from the mean over seeds are
    stretched by sqrt(S/(S-1)) first. With one seed this is the bootstrap over clusters, and says
    nothing about other seeds.
    """
    y = seeds_by_items(values)
    s, n = y.shape
    mean = bootstrap(y.mean(0), cluster, level=level, draws=draws, seed=seed)
    k = mean.clusters
    if s == 1 or k < 2 or not np.isfinite(y).all():
        return mean
    y = y.mean(0) + sqrt(s / (s - 1)) * (y - y.mean(0))
    label = codes(cluster, n)
    total = np.stack([np.bincount(label, row, minlength=k) for row in y])
    size = np.bincount(label, minlength=k).astype(np.float64)
    generator = np.random.default_rng(seed)
    count = generator.multinomial(k, np.full(k, 1 / k), size=draws).astype(np.float64)
    share = generator.multinomial(s, np.full(s, 1 / s), size=draws) / s
    means = ((count @ total.T) * share).sum(1) / (count @ size)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(mean.value, float(low), float(high), n, k, level)


@dataclass(frozen=True)
class SeedVariance:
    """Variance of a run's mean that its seed alone makes, from ``df`` repeated runs.

    ``df`` 0: no run was repeated, and nothing is known.
    """

    variance: float
    df: int


def seed_variance(groups: Sequence[Numbers], cluster: Sequence[Any] | None = None) -> SeedVariance:
    """How much training runs of one method differ beyond the luck of their answers.

    ``groups``: values [S, N] of each method on the same items. The variance of seed means around
    their method's mean, pooled over methods, holds the seed's effect and what answers to N items
    scatter anyway; the second is estimated from the interaction of seeds and clusters and taken
    off (the crossed two-way layout: Searle, Casella & McCulloch 1992, ch. 4). Never negative, and
    with few repetitions rather too large than too small.
    """
    between = rest = 0.0
    df = 0
    for values in groups:
        y = seeds_by_items(values)
        s, n = y.shape
        if s < 2:
            continue
        means = y.mean(1)
        between += float(((means - means.mean()) ** 2).sum())
        df += s - 1
        label = codes(cluster, n)
        k = int(label.max()) + 1
        residual = y - y.mean(0) - (means - means.mean())[:, None]
        total = np.stack([np.bincount(label, row, minlength=k) for row in residual])
        rest += float((total**2).sum()) / n**2 * k / max(k - 1, 1)
    if df == 0:
        return SeedVariance(0.0, 0)
    # The difference of two variances is often 0 by luck when few runs were repeated, and seeds
    # would be forgotten: a single repetition takes nothing off, and few ones add something. In
    # simulations this keeps the rate of false differences at its level.
    return SeedVariance(max(0.0, (between - rest * (1 - 1 / df)) / df) * (1 + 2 / df), df)


def crossed_difference(
    a: Numbers,
    b: Numbers,
    cluster: Sequence[Any] | None = None,
    seeds: SeedVariance | None = None,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
    trained: tuple[bool, bool] = (True, True),
) -> Difference:
    """Mean of ``a - b`` over the same items, values [S_a, N] and [S_b, N], with interval and p.

    The p-value is the larger of two: the sign-flip test over clusters of the differences of means
    over seeds, and a t-test whose variance adds ``seeds.variance * (1/S_a + 1/S_b)`` of the
    repeated runs (only for those that were ``trained``: a base model has no seed). A maximum of
    two p-values errs on the side of "no difference". The interval is mean +- t times the same
    standard error.
    """
    x, y = seeds_by_items(a), seeds_by_items(b)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"pairs need equal lengths, not {x.shape[1]} and {y.shape[1]}")
    d = x.mean(0) - y.mean(0)
    n = len(d)
    by_prompts = sign_flip_test(d, cluster, draws=draws * 5, seed=seed)
    error, df = standard_error(x, y, cluster, seeds, trained=trained)
    k = int(codes(cluster, n).max()) + 1 if n else 0
    value = float(d.mean()) if n else float("nan")
    if k < 2:
        return Difference(value, float("-inf"), float("inf"), 1.0, n, k, level)
    if error == 0:
        return Difference(value, value, value, by_prompts, n, k, level)
    half = student_quantile(level, df) * error
    p = max(by_prompts, student_p(value / error, df))
    return Difference(value, value - half, value + half, p, n, k, level)


def standard_error(
    a: Numbers,
    b: Numbers,
    cluster: Sequence[Any] | None = None,
    seeds: SeedVariance | None = None,
    *,
    trained: tuple[bool, bool] = (True, True),
) -> tuple[float, float]:
    """Standard error of the mean of ``a - b`` over new prompts and new seeds, and its degrees of
    freedom (Satterthwaite 1946).
    """
    x, y = seeds_by_items(a), seeds_by_items(b)
    d = x.mean(0) - y.mean(0)
    n = len(d)
    label = codes(cluster, n)
    k = int(label.max()) + 1 if n else 0
    if k < 2:
        return float("inf"), 1.0
    total = np.bincount(label, d - d.mean())
    items = float((total**2).sum()) / n**2 * k / (k - 1)
    share = trained[0] / len(x) + trained[1] / len(y)
    noise = 0.0 if seeds is None else seeds.variance * share
    both = items + noise
    if both == 0:
        return 0.0, float(k - 1)
    df = both**2 / (items**2 / (k - 1) + (noise**2 / seeds.df if seeds and seeds.df else 0.0))
    return sqrt(both), df


def detectable(error: float, *, level: float = 0.95, power: float = 0.8) -> float:
    """Smallest true difference that an estimate with this standard error would show.

    With ``power``, two-sided at ``level``: (z_{1-alpha/2} + z_power) * error.
    """
    return (quantile(level) + quantile(2 * power - 1)) * error


def student_p(t: float, df: float) -> float:
    """Two-sided p-value of Student's t with ``df`` degrees of freedom.

    >>> round(student_p(2.0, 10), 4)
    0.0734
    """
    # With T = sqrt(df) tan(angle) the density is C cos(angle)^(df - 1), smooth and bounded.
    end = float(np.arctan(abs(t) / sqrt(df)))
    node, weight = _nodes()
    # Beyond a few widths 1/sqrt(df) of the bell there is no mass left to integrate.
    end = min(end, 12 / sqrt(df)) if df > 60 else end
    angle = end / 2 * (node + 1)
    constant = np.exp(lgamma((df + 1) / 2) - lgamma(df / 2)) / sqrt(pi)
    inside = 2 * constant * end / 2 * float(weight @ np.cos(angle) ** (df - 1))
    return float(min(max(1 - inside, 0.0), 1.0))


@cache
def _nodes() -> tuple[Floats, Floats]:
    node, weight = np.polynomial.legendre.leggauss(200)
    return node, weight


def student_quantile(level: float, df: float) -> float:
    """The t beyond which a share ``1 - level`` lies, two-sided, by bisection.

    >>> round(student_quantile(0.95, 10), 3)
    2.228
    """
    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, df) > 1 - level else (low, middle)
    return (low + high) / 2


def mcnemar(first: Numbers, second: Numbers) -> float:
    """Two-sided exact p-value of paired successes [N] in {0, 1} (McNemar 1947, exact form).

    Only pairs that differ speak: under the null each goes either way by a fair coin. It is the
    exact sign-flip test of the differences, for items that are independent.
    """
    d = floats(first) - floats(second)
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    n, k = wins + losses, min(wins, losses)
    if n == 0:
        return 1.0
    log_half = -n * np.log(2.0)
    each = [lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) + log_half for i in range(k + 1)]
    return float(min(1.0, 2 * np.exp(each).sum()))
