"""Data steps over scored answers: which to imitate, and what each got."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from polyalign.errors import DataError, PolyalignWarning
from polyalign.feedback.records import Demonstration, Record, Scored


@dataclass(frozen=True)
class KeepBest:
    """The ``share`` of answers with the highest scores, of all or of each prompt's; ties stay.

    Held-out answers are measured against the training answers' threshold. A warning tells how many
    prompts lose all their answers. Raises :class:`DataError` naming a score that is not finite.
    """

    share: float
    per: Literal["all", "prompt"] = "all"

    held_out: ClassVar[bool] = True

    def __call__(self, records: Sequence[Record], ctx: Any) -> list[Record]:
        scored = _scored(records)
        everywhere = -math.inf
        if self.per == "all":
            training = _scored(ctx.session.records)
            everywhere = self.threshold([score for r in training for score in r.scores])
        made: list[Record] = []
        for record in scored:
            least = everywhere if self.per == "all" else self.threshold(record.scores)
            kept = [i for i, score in enumerate(record.scores) if score >= least]
            if kept:
                made.append(
                    replace(
                        record,
                        completions=tuple(record.completions[i] for i in kept),
                        scores=tuple(record.scores[i] for i in kept),
                        aspects={n: tuple(v[i] for i in kept) for n, v in record.aspects.items()},
                    )
                )
        lost = len(scored) - len(made)
        if lost:
            warnings.warn(
                f"{lost} of {len(scored)} prompts have no answer among the best {self.share:g}; "
                "they are left out.",
                PolyalignWarning,
                stacklevel=2,
            )
        return made

    def threshold(self, scores: Sequence[float]) -> float:
        """The score that the best ``share`` of answers reach."""
        count = math.ceil(round(self.share * len(scores), 9))
        return sorted(scores, reverse=True)[count - 1]


@dataclass(frozen=True)
class BestAnswer:
    """For each prompt its answer with the highest score, the first of equals."""

    held_out: ClassVar[bool] = True

    def __call__(self, records: Sequence[Record], ctx: Any) -> list[Record]:
        made: list[Record] = []
        for record in _scored(records):
            best = max(range(len(record.scores)), key=record.scores.__getitem__)
            made.append(
                replace(
                    record,
                    completions=(record.completions[best],),
                    scores=(record.scores[best],),
                    aspects={name: (v[best],) for name, v in record.aspects.items()},
                )
            )
        return made


@dataclass(frozen=True)
class EachAnswer:
    """Every answer as a demonstration of its own, with the number ``reward`` it got."""

    held_out: ClassVar[bool] = True

    def __call__(self, records: Sequence[Record], ctx: Any) -> list[Record]:
        return [
            Demonstration(
                key=f"{record.key}-{i}",
                weight=record.weight,
                fields={**record.fields, "reward": score},
                meta=record.meta,
                prompt=record.prompt,
                completion=answer,
            )
            for record in _scored(records)
            for i, (answer, score) in enumerate(zip(record.completions, record.scores, strict=True))
        ]


def answers_each(records: Sequence[Record]) -> float:
    """How many answers a record has, on average."""
    counts = [len(record.completions) for record in records if isinstance(record, Scored)]
    return sum(counts) / max(len(counts), 1)


def one_of_them(records: Sequence[Record]) -> float:
    """Which share of the answers one answer a record is."""
    return 1.0 / max(answers_each(records), 1.0)


def _scored(records: Sequence[Record]) -> list[Scored]:
    found = [record for record in records if isinstance(record, Scored)]
    for record in found:
        if not all(math.isfinite(score) for score in record.scores):
            raise DataError(
                f"Example {record.key} has a score that is not finite.", "Mend it or leave it out."
            )
    return found
