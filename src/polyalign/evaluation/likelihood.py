"""How surprised a policy is by answers, and how far its own have moved from a reference's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyalign.errors import DataError
from polyalign.evaluation.generation import Samples
from polyalign.evaluation.scoring import BUDGET, Progress, log_probabilities, silent
from polyalign.feedback.payloads import canonical
from polyalign.feedback.records import Demonstration
from polyalign.metrics.arrays import Floats
from polyalign.metrics.divergence import k1, k3
from polyalign.metrics.intervals import DRAWS, Estimate, bootstrap, resampled_means
from polyalign.protocols import Policy


@dataclass(frozen=True)
class Perplexity:
    """Negative log-likelihood of N answers in nats [N], and their numbers of steps [N].

    ``emptied`` answers more have no step: they are empty or the length limits leave none.
    """

    nll: Floats
    steps: Floats
    cluster: tuple[str, ...]
    emptied: int = 0

    def to_json(self) -> dict[str, Any]:
        """Perplexity exp(total nats / total steps) with interval over prompts, and nats a step."""
        nats = per_step(self.nll, self.steps, self.cluster)
        # NaN where there is nothing; exp overflows only for a broken model.
        value, low, high = (math.exp(min(x, 700.0)) for x in (nats.value, nats.low, nats.high))
        perplexity = Estimate(value, low, high, nats.n, nats.clusters, nats.level)
        return {
            "answers": len(self.nll),
            "emptied": self.emptied,
            "steps": float(self.steps.sum()),
            "perplexity": perplexity.to_json(),
            "nats_per_step": nats.to_json(),
        }


def perplexity(
    policy: Policy,
    demonstrations: Sequence[Demonstration],
    *,
    budget: int = BUDGET,
    progress: Progress = silent,
) -> Perplexity:
    """Score answers that the policy did not write; the prompt's steps never count.

    Answers without a step are left out and counted. Raises :class:`DataError` when none is left.
    """
    encoded = [(d, policy.encode(d.prompt, d.completion)) for d in demonstrations]
    kept = [(d, row) for d, row in encoded if bool(row.mask.any())]
    if not kept:
        raise DataError(
            "No answer can be scored: every one is empty or max_length leaves nothing of it.",
            "Raise max_length, or shorten the prompts.",
        )
    rows = [row for _, row in kept]
    logp = log_probabilities(policy, rows, budget=budget, progress=progress, what="perplexity")
    return Perplexity(
        np.array([-float(x.sum()) for x in logp]),
        np.array([float(len(x)) for x in logp]),
        tuple(canonical(d.prompt) for d, _ in kept),
        len(encoded) - len(kept),
    )


@dataclass(frozen=True)
class DivergenceEstimate:
    """KL(policy || reference) of N sampled sequences: k1 and k3 sums [N] in nats, steps [N]."""

    k1: Floats
    k3: Floats
    steps: Floats
    cluster: tuple[str, ...]
    unfinished: int

    def to_json(self) -> dict[str, Any]:
        """Nats a sequence (k1, k3) and a step, with intervals over prompts."""
        return {
            "samples": len(self.k1),
            "unfinished": self.unfinished,
            "kl": bootstrap(self.k1, self.cluster).to_json(),
            "kl_k3": bootstrap(self.k3, self.cluster).to_json(),
            "kl_per_step": per_step(self.k1, self.steps, self.cluster).to_json(),
        }


def divergence(
    policy: Policy,
    reference: Policy,
    samples: Samples,
    *,
    budget: int = BUDGET,
    progress: Progress = silent,
) -> DivergenceEstimate:
    """KL(policy || reference) from ``samples`` that the policy drew at temperature 1, untruncated.

    Raises ValueError for samples of another law. Both are scored anew on the same rows, so that
    equal policies have exactly 0 whatever the sampler's arithmetic.
    """
    how = samples.how
    if how.temperature != 1.0 or how.top_p != 1.0 or how.top_k != 0:
        raise ValueError("divergence needs samples at temperature 1 without top_p and top_k")
    mine = log_probabilities(policy, samples.rows, budget=budget, progress=progress, what="kl")
    theirs = log_probabilities(
        reference, samples.rows, budget=budget, progress=progress, what="kl (reference)"
    )
    return DivergenceEstimate(
        np.array([k1(p, r).sum() for p, r in zip(mine, theirs)]),
        np.array([k3(p, r).sum() for p, r in zip(mine, theirs)]),
        np.array([float(len(p)) for p in mine]),
        samples.cluster,
        sum(not done for done in samples.finished),
    )


def per_step(total: Floats, steps: Floats, cluster: Sequence[str]) -> Estimate:
    """Sum of totals / sum of steps, with a bootstrap interval over clusters."""
    n, k = len(total), len(set(cluster))
    if n == 0 or steps.sum() == 0:
        nan = float("nan")
        return Estimate(nan, nan, nan, n, k)
    value = float(total.sum() / steps.sum())
    if k == 1:
        return Estimate(value, -math.inf, math.inf, n, k)
    drawn = resampled_means(np.stack([total, steps], axis=1), cluster, DRAWS, 0)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return Estimate(value, float(low), float(high), n, k)
