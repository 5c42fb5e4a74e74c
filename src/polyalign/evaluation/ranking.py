"""Does a policy rank answers as people do: implicit reward, likelihood, margins, calibration.

P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from polyalign.errors import DataError
from polyalign.evaluation.scoring import BUDGET, Progress, log_probabilities, silent
from polyalign.feedback.payloads import canonical
from polyalign.feedback.records import Pair
from polyalign.metrics.arrays import Floats
from polyalign.metrics.calibration import (
    brier,
    calibration_error,
    pair_probabilities,
    reliability,
)
from polyalign.metrics.comparison import Difference, outcome, paired_difference
from polyalign.metrics.intervals import bootstrap, detectable_difference, proportion
from polyalign.protocols import Policy

By = Literal["implicit", "likelihood", "mean_likelihood"]
MEANING = {
    "implicit": "sum of log policy - log reference",
    "likelihood": "sum of log-probabilities",
    "mean_likelihood": "mean log-probability a step",
}


@dataclass(frozen=True)
class Ranking:
    """Log-probabilities of P pairs, each [P]: sums in nats, and numbers of steps.

    ``cluster`` [P] names the prompts; the reference's sums are None without a reference.
    ``emptied`` pairs more have an answer that the length limits leave no step of.
    """

    keys: tuple[str, ...]
    cluster: tuple[str, ...]
    chosen: Floats
    rejected: Floats
    chosen_steps: Floats
    rejected_steps: Floats
    chosen_ref: Floats | None = None
    rejected_ref: Floats | None = None
    beta: float = 0.1
    emptied: int = 0

    def scores(self, by: By) -> tuple[Floats, Floats]:
        """What the chosen and the rejected answers score, [P] each."""
        if by == "likelihood":
            return self.chosen, self.rejected
        if by == "mean_likelihood":
            return self.chosen / self.chosen_steps, self.rejected / self.rejected_steps
        assert self.chosen_ref is not None
        assert self.rejected_ref is not None
        return self.chosen - self.chosen_ref, self.rejected - self.rejected_ref

    def wins(self, by: By) -> Floats:
        """1 where the chosen answer scores higher, 0.5 for ties, [P]."""
        return outcome(*self.scores(by))

    def to_json(self) -> dict[str, Any]:
        """Accuracies with intervals, margins, calibration and mean log-probabilities."""
        kinds: list[By] = ["likelihood", "mean_likelihood"]
        if self.chosen_ref is not None:
            kinds.insert(0, "implicit")
        out: dict[str, Any] = {
            "pairs": len(self.keys),
            "prompts": len(set(self.cluster)),
            "emptied": self.emptied,
            "detectable_difference": detectable_difference(len(set(self.cluster))),
            "accuracy": {by: proportion(self.wins(by), self.cluster).to_json() for by in kinds},
            "logps/chosen": bootstrap(self.chosen, self.cluster).to_json(),
            "logps/rejected": bootstrap(self.rejected, self.cluster).to_json(),
            "length/chosen": float(self.chosen_steps.mean()),
            "length/rejected": float(self.rejected_steps.mean()),
        }
        if self.chosen_ref is not None:
            chosen, rejected = self.scores("implicit")
            margin = self.beta * (chosen - rejected)
            p, y = pair_probabilities(margin)
            out |= {
                "beta": self.beta,
                "rewards/chosen": bootstrap(self.beta * chosen, self.cluster).to_json(),
                "rewards/rejected": bootstrap(self.beta * rejected, self.cluster).to_json(),
                "rewards/margins": bootstrap(margin, self.cluster).to_json(),
                "margins": _histogram(margin),
                "calibration": {
                    "expected_error": calibration_error(p, y),
                    "brier": brier(p, y),
                    "bins": [b.to_json() for b in reliability(p, y)],
                },
            }
        return out


def ranking(
    policy: Policy,
    reference: Policy | None,
    pairs: Sequence[Pair],
    *,
    beta: float = 0.1,
    budget: int = BUDGET,
    progress: Progress = silent,
) -> Ranking:
    """Score both answers of each pair with the policy and, where given, its reference.

    ``beta`` scales implicit rewards for calibration and margins; accuracy does not depend on it.
    An answer without a step would score as a certain one, so its pair is left out and counted.
    Raises :class:`DataError` when no pair is left.
    """
    sides = [[policy.encode(p.prompt, text) for text in (p.chosen, p.rejected)] for p in pairs]
    whole = [all(bool(row.mask.any()) for row in both) for both in sides]
    emptied = whole.count(False)
    if emptied == len(pairs):
        raise DataError(
            "No pair can be ranked: every one has an answer that is empty or that max_length "
            "leaves nothing of.",
            "Raise max_length, or shorten the prompts.",
        )
    pairs = [pair for pair, kept in zip(pairs, whole) if kept]
    rows = [both[side] for side in (0, 1) for both, kept in zip(sides, whole) if kept]
    n = len(pairs)
    mine = log_probabilities(policy, rows, budget=budget, progress=progress, what="ranking")
    sums = _sums(mine)
    steps = np.array([len(x) for x in mine], dtype=np.float64)
    refs: tuple[Floats, Floats] | None = None
    if reference is not None:
        theirs = _sums(
            log_probabilities(
                reference, rows, budget=budget, progress=progress, what="ranking (reference)"
            )
        )
        refs = (theirs[:n], theirs[n:])
    return Ranking(
        tuple(pair.key for pair in pairs),
        tuple(canonical(pair.prompt) for pair in pairs),
        sums[:n],
        sums[n:],
        steps[:n],
        steps[n:],
        None if refs is None else refs[0],
        None if refs is None else refs[1],
        beta,
        emptied,
    )


def accuracy_gain(after: Ranking, before: Ranking, by: By = "mean_likelihood") -> Difference:
    """Change of ranking accuracy on the same pairs, with interval and sign-flip test."""
    if after.keys != before.keys:
        raise ValueError("the two rankings are of different pairs")
    return paired_difference(after.wins(by), before.wins(by), after.cluster)


def _sums(values: Sequence[torch.Tensor]) -> Floats:
    return np.array([float(x.sum()) for x in values], dtype=np.float64)


def _histogram(values: Floats, bins: int = 24) -> dict[str, list[float]]:
    """Counts [B] between edges [B + 1], the outermost 1 % of values in the end bins."""
    low, high = np.quantile(values, [0.01, 0.99]) if len(values) else (0.0, 1.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    count, edges = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
    return {"edges": edges.tolist(), "counts": count.astype(float).tolist()}
