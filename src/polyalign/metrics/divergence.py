"""KL(policy || reference) from samples of the policy: estimators k1 and k3, by sequence and step.

N rows, T steps. Samples must come from the policy itself, at temperature 1 and without
truncation; drawn by another law, none of this estimates the divergence.
"""

from __future__ import annotations

import numpy as np

from polyalign.metrics.arrays import Floats, Numbers, floats


def k1(logp: Numbers, reference: Numbers) -> Floats:
    """The log-ratio log p - log r, elementwise: unbiased, of either sign (Schulman 2020)."""
    return floats(logp) - floats(reference)


def k3(logp: Numbers, reference: Numbers) -> Floats:
    """r/p - 1 - log(r/p), elementwise: unbiased, never negative (Schulman 2020).

    Its variance is smaller than k1's near p = r and unbounded far from it.
    """
    log_ratio = floats(reference) - floats(logp)
    with np.errstate(over="ignore"):
        return np.expm1(log_ratio) - log_ratio


def sequence_kl(
    logp: Numbers, reference: Numbers, mask: Numbers, *, estimator: str = "k1"
) -> tuple[Floats, Floats]:
    """Divergence of each row in nats [N] and its number of steps [N].

    Sums of per-step values: their mean over rows estimates the divergence of the law of whole
    sequences; divide the sums' total by the steps' total for nats per step, never each row by
    its own length (long rows would count less).
    """
    step = {"k1": k1, "k3": k3}[estimator](logp, reference)
    keep = floats(mask) > 0
    return np.where(keep, step, 0.0).sum(-1), keep.sum(-1).astype(np.float64)
