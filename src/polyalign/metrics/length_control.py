"""Length-controlled win rate: what the judge would say if both answers were of one length.

A judge that likes long answers is fooled by whoever writes more. AlpacaEval 2 (Dubois et al.
2024, 2404.04475, equation 2) fits the judge's preferences by a logistic model with a term for
length, and predicts with that term set to zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polyalign.metrics.arrays import Floats, Numbers, floats
from polyalign.metrics.calibration import sigmoid


@dataclass(frozen=True)
class LengthControlled:
    """Win rates as shares, raw and length-controlled, and the fitted weights.

    ``length``: log-odds that tanh of one standard deviation of extra length is worth;
    ``difficulty`` is 0 where no difficulties were given.
    """

    win_rate: float
    raw: float
    bias: float
    length: float
    difficulty: float = 0.0


def length_controlled(
    wins: Numbers,
    length: Numbers,
    baseline: Numbers,
    difficulty: Numbers | None = None,
    *,
    ridge: float = 1e-6,
) -> LengthControlled:
    """Fit ``logit P(win) = bias + length * tanh(z) + difficulty * d``; predict at z = 0.

    ``wins`` [N] in [0, 1] are the judge's preferences for the answer over the baseline's,
    ``length`` and ``baseline`` [N] the two answers' lengths; z is their difference over its
    standard deviation. ``difficulty`` [N]: how hard each prompt is, from other models'
    comparisons, when it is known. ``ridge`` keeps weights finite where all are won.
    Raises ValueError for wins outside [0, 1] or no comparison.
    """
    y = floats(wins)
    if len(y) == 0 or not np.isfinite(y).all() or y.min() < 0 or y.max() > 1:
        raise ValueError("wins lie in [0, 1], and there is at least one")
    gap = floats(length) - floats(baseline)
    spread = float(gap.std())
    columns = [np.ones_like(y)]
    columns.append(np.tanh(gap / spread) if spread > 0 else np.zeros_like(y))
    if difficulty is not None:
        columns.append(floats(difficulty))
    x = np.stack(columns, axis=1)
    weight = logistic_fit(x, y, ridge)
    even = x.copy()
    even[:, 1] = 0.0
    rest = float(weight[2]) if difficulty is not None else 0.0
    share = float(sigmoid(even @ weight).mean())
    return LengthControlled(share, float(y.mean()), float(weight[0]), float(weight[1]), rest)


def logistic_fit(x: Floats, y: Floats, ridge: float = 1e-6, steps: int = 100) -> Floats:
    """Weights [D] that minimise the mean cross-entropy of sigmoid(x w) to soft labels y [N].

    Newton's method with step halving; ``ridge`` times |w|^2 / 2 is added. x [N, D].
    """
    n, d = x.shape
    w = np.zeros(d)

    def loss(w: Floats) -> float:
        z = x @ w
        return float(np.mean(np.logaddexp(0, z) - y * z) + ridge * (w @ w) / 2)

    now = loss(w)
    for _ in range(steps):
        p = sigmoid(x @ w)
        gradient = x.T @ (p - y) / n + ridge * w
        curvature = (x * (p * (1 - p))[:, None]).T @ x / n + (ridge + 1e-12) * np.eye(d)
        move = np.linalg.solve(curvature, gradient)
        scale = 1.0
        while scale > 1e-6 and loss(w - scale * move) > now:
            scale /= 2
        w = w - scale * move
        after = loss(w)
        if now - after < 1e-14:
            break
        now = after
    return w
