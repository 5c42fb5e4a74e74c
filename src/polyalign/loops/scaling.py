"""Data steps that bring scores to a common scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from polyalign.errors import DataError
from polyalign.feedback.records import Record, Scored


@dataclass(frozen=True)
class StandardiseScores:
    """Scores with mean 0 and variance 1 over the training records, weighted as they are.

    Held-out records get the training records' shift and scale. Raises :class:`DataError` when all
    scores are equal, which says nothing about any answer.
    """

    held_out: ClassVar[bool] = True

    def __call__(self, records: Sequence[Record], ctx: Any) -> list[Record]:
        mean, spread = _moments(ctx.session.records)
        return [
            replace(record, scores=tuple((score - mean) / spread for score in record.scores))
            if isinstance(record, Scored)
            else record
            for record in records
        ]


def _moments(records: Sequence[Record]) -> tuple[float, float]:
    """Mean and standard deviation (of the whole, ddof=0) of all records' scores."""
    scored = [record for record in records if isinstance(record, Scored)]
    weighted = [(record.weight, score) for record in scored for score in record.scores]
    total = math.fsum(weight for weight, _ in weighted)
    mean = math.fsum(weight * score for weight, score in weighted) / total if total > 0 else 0.0
    square = math.fsum(weight * (score - mean) ** 2 for weight, score in weighted)
    spread = math.sqrt(square / total) if total > 0 else 0.0
    if spread <= 1e-9 * max(1.0, abs(mean)):
        raise DataError(
            f"All {len(weighted)} scores are equal, so they cannot be standardised.",
            "Bring scores that differ, or set standardise=false.",
        )
    return mean, spread
