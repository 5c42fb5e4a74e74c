"""What a measurement is given and what it gives: the bench, and figures for tables and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from polyalign.errors import DataError, NeedsError
from polyalign.evaluation.generation import Judged, Samples, draw, judged
from polyalign.evaluation.ranking import Ranking, ranking
from polyalign.evaluation.scoring import BUDGET, Progress, batches, silent
from polyalign.evaluation.subject import Subject
from polyalign.feedback.payloads import canonical
from polyalign.feedback.records import Pair, Prompt, Record
from polyalign.metrics.comparison import Difference
from polyalign.metrics.intervals import Estimate
from polyalign.protocols import Judge, Policy, Sampling
from polyalign.types import Row, Rows

Number = Estimate | float | None


@dataclass(frozen=True)
class Figure:
    """One line of a table: what was measured, after training and before it.

    ``share``: whether the numbers are shares, told as percentages. ``n`` says on what in words.
    """

    measure: str
    after: Number
    before: Number = None
    change: Difference | None = None
    share: bool = False
    n: str = ""
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not known is None."""
        return {
            "measure": self.measure,
            "after": _number(self.after),
            "before": _number(self.before),
            "change": None if self.change is None else self.change.to_json(),
            "share": self.share,
            "n": self.n,
            "hint": self.hint,
        }


@dataclass(frozen=True)
class Measured:
    """What a measurement found: figures to show, and all of it as plain data."""

    figures: tuple[Figure, ...]
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for evaluation.json."""
        return {"figures": [figure.to_json() for figure in self.figures], **self.data}


@dataclass(frozen=True)
class Bench:
    """Who is measured, on what records, and how rows are scored and answers drawn.

    ``samples``: how many answers are drawn where a measurement needs the policy's own, at
    temperature 1; ``open`` loads another run or model by name.
    """

    subject: Subject
    records: Sequence[Record]
    open: Callable[[str], Subject]
    judge: Judge | None = None
    samples: int = 64
    max_steps: int = 128
    seed: int = 0
    budget: int = BUDGET
    progress: Progress = silent

    @cached_property
    def pairs(self) -> list[Pair]:
        """The records that are pairs."""
        return [record for record in self.records if isinstance(record, Pair)]

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Each distinct prompt once."""
        return prompts_of(self.records)

    def reference(self) -> Policy:
        """What the policy is measured against; raises :class:`NeedsError` where there is none."""
        if self.subject.reference is None:
            raise NeedsError(
                f"This measurement compares {self.subject.name} with a reference, and there is "
                "none.",
                "Measure a run, or add --reference MODEL.",
            )
        return self.subject.reference

    def ranking(self, policy: Policy, reference: Policy | None, beta: float) -> Ranking:
        """Log-probabilities of the pairs; raises :class:`DataError` where there is no pair."""
        if not self.pairs:
            raise DataError(
                "This measurement reads pairs, and there is none.",
                "Give pairs (prompt, chosen, rejected): polyalign data convert FILE --to pairs",
            )
        return ranking(
            policy, reference, self.pairs, beta=beta, budget=self.budget, progress=self.progress
        )

    def drawn(self, policy: Policy) -> Samples | None:
        """The policy's own answers at temperature 1, untruncated; None where it draws none."""
        if not self.samples or "sample_rows" not in policy.offers:
            return None
        part = self.prompts[: self.samples]
        n = max(1, self.samples // len(part))
        law = Sampling(max_steps=self.max_steps)
        return draw(policy, part, n, law, seed=self.seed, progress=self.progress)

    def judged(self, samples: Samples | None) -> Judged | None:
        """The judge's scores of answers; None without a judge or where it compares answers."""
        if samples is None or self.judge is None or getattr(self.judge, "pairwise", False):
            return None
        return judged(samples, self.judge)

    @torch.no_grad()
    def signals(self, policy: Policy, rows: Sequence[Row], *want: str) -> list[dict[str, Tensor]]:
        """Signals at each row's own steps, float64 [T of the row] by name, in the rows' order.

        Raises :class:`NeedsError` for a signal that the policy does not offer.
        """
        for name in want:
            if name.partition("@")[0] not in policy.offers:
                raise NeedsError(
                    f"{self.subject.name} does not tell '{name.partition('@')[0]}' of its steps.",
                    "Measure a language model or a policy of the exact worlds.",
                )
        out: dict[int, dict[str, Tensor]] = {}
        for part in batches(rows, self.budget):
            found = policy.score(Rows.collate([rows[i] for i in part]), frozenset(want)).signals
            for at, i in enumerate(part):
                own = rows[i].mask.cpu()
                out[i] = {name: found[name][at].double().cpu()[: len(own)][own] for name in want}
            self.progress("scoring", len(out), len(rows))
        return [out[i] for i in range(len(rows))]


def prompts_of(records: Sequence[Record]) -> list[Prompt]:
    """Each distinct prompt of any records once, with its row's columns."""
    found: dict[str, Prompt] = {}
    for record in records:
        prompt = getattr(record, "prompt", None)
        if prompt is not None:
            if not isinstance(record, Prompt):
                record = Prompt(key=record.key, prompt=prompt, meta=record.meta)
            found.setdefault(canonical(prompt), record)
    return list(found.values())


def _number(value: Number) -> Any:
    return value.to_json() if isinstance(value, Estimate) else value
