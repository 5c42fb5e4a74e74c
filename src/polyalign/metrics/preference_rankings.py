"""How well a policy ranks answers, how well it could at best, and how hard each pair is.

P pairs: ``lp_w``, ``lp_l`` [P] the policy's log-probabilities of the preferred and the other
answer, ``rf_w``, ``rf_l`` [P] the reference's, ``agreement`` [P] the share a of raters who prefer
the first. Source: Chen et al. 2024, arXiv 2405.19534.
"""

from __future__ import annotations

import numpy as np

from polyalign.errors import DataError, OptionError
from polyalign.metrics.arrays import Floats, Numbers, floats

UNANIMOUS = 0.001
"""What stands for 1 - a where all raters agree."""

TIE = 0.01
"""Two probabilities closer than this are a tie."""


def ranked(
    lp_w: Numbers, lp_l: Numbers, agreement: Numbers | None = None, *, tie: float = TIE
) -> Floats:
    """1 where the policy ranks a pair as its raters do, else 0, [P].

    ``pi(y_w) >= pi(y_l)``; where the raters are split in half, whether the two *probabilities*
    differ by less than ``tie``.
    """
    w, l = floats(lp_w), floats(lp_l)  # noqa: E741
    right = (w >= l).astype(np.float64)
    if agreement is None:
        return right
    a = _shares(agreement)
    near = np.abs(np.exp(w) - np.exp(l)) < tie
    return np.where(a == 0.5, near, np.where(a < 0.5, w < l, right)).astype(np.float64)


def idealised_log_ratio(
    rf_w: Numbers,
    rf_l: Numbers,
    beta: float,
    agreement: Numbers | None = None,
    *,
    unanimous: float = UNANIMOUS,
) -> Floats:
    """``log pi*(y_w) - log pi*(y_l)`` of DPO's exact optimum on rater proportions, [P].

    ``(rf_w - rf_l) + log(a / (1 - a)) / beta``, with ``unanimous`` for 1 - a where it is less; a is
    1 unless given. Raises :class:`OptionError` for beta <= 0 and :class:`DataError` for a outside
    (0, 1].
    """
    if beta <= 0:
        raise OptionError(f"beta={beta:g} has no optimum.", "Use beta > 0.")
    a = np.ones(len(floats(rf_w))) if agreement is None else _shares(agreement)
    against = np.maximum(1.0 - a, unanimous)
    return np.asarray(
        floats(rf_w) - floats(rf_l) + (np.log(a) - np.log(against)) / beta, dtype=np.float64
    )


def difficulty(rf_w: Numbers, rf_l: Numbers) -> Floats:
    """``c = log ref(y_l) - log ref(y_w)`` [P]: above 0, the reference ranks the pair wrongly."""
    return np.asarray(floats(rf_l) - floats(rf_w), dtype=np.float64)


def loss_to_reach(c: Numbers, beta: float) -> Floats:
    """``-log sigmoid(beta c)`` [P]: a pair is ranked rightly exactly when DPO's loss is no
    larger.
    """
    return np.asarray(np.logaddexp(0.0, -beta * floats(c)), dtype=np.float64)


def dpo_loss(h: Numbers, beta: float) -> Floats:
    """``-log sigmoid(beta h)`` [P] of the difference of implicit rewards over beta."""
    return np.asarray(np.logaddexp(0.0, -beta * floats(h)), dtype=np.float64)


def _shares(agreement: Numbers) -> Floats:
    a = floats(agreement)
    if bool(((a <= 0) | (a > 1) | ~np.isfinite(a)).any()):
        bad = float(a[(a <= 0) | (a > 1) | ~np.isfinite(a)][0])
        raise DataError(f"A share of raters is {bad:g}.", "Shares lie above 0 and are at most 1.")
    return a
