"""Whether likelihood was optimised too far: the law's likeliest choices lose mass and entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from polyalign.engine.storage import read_lines
from polyalign.errors import DataError
from polyalign.evaluation.bench import Bench, Figure, Measured
from polyalign.evaluation.diagnosis import turning_point
from polyalign.evaluation.generation import Samples
from polyalign.evaluation.likelihood import per_step
from polyalign.feedback.payloads import canonical
from polyalign.feedback.records import Demonstration, Pair, Record
from polyalign.metrics.arrays import Floats
from polyalign.metrics.comparison import paired_difference
from polyalign.metrics.concentration import spread
from polyalign.metrics.intervals import bootstrap
from polyalign.protocols import Policy
from polyalign.types import Row

NAMES = ("mass", "entropy", "spread")


@dataclass(frozen=True)
class Likeliest:
    """Top-k mass and entropies of N rows: sums over their own steps [N], and steps [N]."""

    mass: Floats
    entropy: Floats
    spread: Floats
    steps: Floats
    cluster: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Means over all positions, with intervals over prompts."""
        return {
            "positions": float(self.steps.sum()),
            **{n: per_step(getattr(self, n), self.steps, self.cluster).to_json() for n in NAMES},
        }


@dataclass(frozen=True)
class LikelihoodOveroptimisation:
    """``evaluate --with``: the k likeliest tokens' mass and entropy, after training and before.

    ``positions``: "generated", each model's own answers; "given", the held-out better answers.
    """

    k: int = 10
    positions: Literal["generated", "given"] = "generated"
    patience: int = 2

    def __call__(self, bench: Bench) -> Measured:
        own = self.positions == "generated"
        after, rows, drawn = self._of(bench, bench.subject.policy)
        before = None
        if bench.subject.reference is not None:
            before, _, other = self._of(bench, bench.subject.reference, None if own else rows)
        where = "own answers" if own else "given answers"
        n = f"{int(after.steps.sum()):,} positions"
        hints = ("falls with the entropy: too far", "as it is, nats", "renormalised to 1, nats")
        figures = []
        for name, what, hint in zip(NAMES, ("Mass", "Entropy", "Entropy"), hints, strict=True):
            change = None
            if before is not None and not own:
                change = paired_difference(
                    getattr(after, name) / after.steps,
                    getattr(before, name) / before.steps,
                    after.cluster,
                )
            figures.append(
                Figure(
                    f"{what} of the {self.k} likeliest tokens on {where}"
                    + (", renormalised" if name == "spread" else ""),
                    per_step(getattr(after, name), after.steps, after.cluster),
                    None
                    if before is None
                    else per_step(getattr(before, name), before.steps, before.cluster),
                    change,
                    n=n,
                    hint=hint,
                )
            )
        data: dict[str, Any] = {
            "k": self.k,
            "positions": self.positions,
            "after": after.to_json(),
            "before": None if before is None else before.to_json(),
        }
        figures += self._companions(bench, data)
        quality = bench.judged(drawn) if own else None
        if quality is not None:
            figures.append(Figure("Judge's score of the same answers", quality.estimate()))
            data["score"] = quality.estimate().to_json()
            if bench.subject.reference is not None:
                was = bench.judged(other)
                data["score_before"] = None if was is None else was.estimate().to_json()
        if before is not None:
            fall = [_mean(after, n) < _mean(before, n) for n in ("mass", "entropy")]
            data["both_fall"] = all(fall)
        if bench.subject.folder is not None:
            history = read_lines(bench.subject.folder / "metrics.jsonl")
            data["turning_point"] = turning_point(history, self.patience)
        return Measured(tuple(figures), data)

    def _of(
        self, bench: Bench, policy: Policy, rows: Sequence[Row] | None = None
    ) -> tuple[Likeliest, Sequence[Row], Samples | None]:
        """A policy's law on its own answers, or on given rows."""
        drawn = None
        if self.positions == "generated":
            drawn = bench.drawn(policy)
            if drawn is None:
                raise DataError(
                    "No answers were drawn to look at.",
                    "Use --samples of at least 1, or positions=given.",
                )
            rows, cluster = drawn.rows, drawn.cluster
        else:
            given = [
                (answered, policy.encode(*answered))
                for answered in (_better(record) for record in bench.records)
                if answered is not None
            ]
            given = [(answered, row) for answered, row in given if bool(row.mask.any())]
            if not given:
                raise DataError(
                    "There is no answer in the data to look at.",
                    "Give pairs or demonstrations, or use positions=generated.",
                )
            rows = rows or [row for _, row in given]
            cluster = tuple(canonical(prompt) for (prompt, _), _ in given)
        mass, entropy = f"top_mass@{self.k}", f"top_entropy@{self.k}"
        seen = bench.signals(policy, rows, mass, entropy)
        of_each = [(s[mass], s[entropy], spread(s[mass], s[entropy])) for s in seen]
        columns = np.array([[float(x.sum()) for x in three] for three in of_each]).T
        steps = np.array([float(len(s[mass])) for s in seen])
        return Likeliest(columns[0], columns[1], columns[2], steps, cluster), rows, drawn

    def _companions(self, bench: Bench, data: dict[str, Any]) -> list[Figure]:
        """Log-likelihoods of the better and worse answers and their margin, where pairs are."""
        if not bench.pairs:
            return []
        found = bench.ranking(bench.subject.policy, bench.subject.reference, bench.subject.beta)
        sides = {
            "better": (found.chosen, found.chosen_steps, found.chosen_ref),
            "worse": (found.rejected, found.rejected_steps, found.rejected_ref),
            "margin": (
                found.chosen - found.rejected,
                None,
                None
                if found.chosen_ref is None or found.rejected_ref is None
                else found.chosen_ref - found.rejected_ref,
            ),
        }
        figures = []
        for name, (value, steps, ref) in sides.items():
            now = bootstrap(value, found.cluster)
            was = None if ref is None else bootstrap(ref, found.cluster)
            data[f"logps/{name}"] = now.to_json()
            if steps is not None:
                data[f"logps_per_step/{name}"] = bootstrap(value / steps, found.cluster).to_json()
            label = "Margin of log-likelihoods" if steps is None else f"Log-likelihood, {name}"
            figures.append(Figure(label, now, was, n=f"{len(value)} pairs", hint="nats an answer"))
        return figures


def _better(record: Record) -> tuple[Any, Any] | None:
    """A prompt and the answer to it that is to be liked."""
    if isinstance(record, Demonstration):
        return record.prompt, record.completion
    return (record.prompt, record.chosen) if isinstance(record, Pair) else None


def _mean(of: Likeliest, name: str) -> float:
    return float(getattr(of, name).sum() / of.steps.sum())
