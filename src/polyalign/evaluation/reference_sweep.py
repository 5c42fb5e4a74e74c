"""Which reference, and how strongly: held-out pairs under several references and strengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyalign.errors import DataError
from polyalign.evaluation.bench import Bench, Figure, Measured
from polyalign.evaluation.generation import Samples
from polyalign.evaluation.likelihood import divergence
from polyalign.evaluation.ranking import Ranking
from polyalign.evaluation.scoring import log_probabilities
from polyalign.evaluation.subject import Subject
from polyalign.metrics.arrays import Floats
from polyalign.metrics.intervals import Estimate, bootstrap, proportion
from polyalign.metrics.preference_rankings import dpo_loss
from polyalign.protocols import Policy


@dataclass(frozen=True)
class Candidate:
    """A reference: log-probabilities of both answers [P], and its policy where it is one."""

    name: str
    chosen: Floats
    rejected: Floats
    policy: Policy | None = None


@dataclass(frozen=True)
class Strength:
    """One trained strength: where the run ended, and what its answers are worth."""

    run: str
    reference: str | None
    beta: float
    accuracy: Estimate
    kl: Estimate | None
    score: Estimate | None
    answers: dict[str, Any] | None

    def figures(self) -> list[Figure]:
        """The lines of a table."""
        label = f"{self.run}, beta {self.beta:g}"
        lines = [
            Figure(f"Ranking accuracy by mean log-probability: {label}", self.accuracy, share=True)
        ]
        if self.kl is not None:
            lines.append(Figure(f"KL to its start: {label}", self.kl, hint="nats an answer"))
        if self.score is not None:
            lines.append(Figure(f"Judge's score: {label}", self.score))
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "run": self.run,
            "reference": self.reference,
            "beta": self.beta,
            "accuracy": self.accuracy.to_json(),
            "kl": None if self.kl is None else self.kl.to_json(),
            "score": None if self.score is None else self.score.to_json(),
            "answers": self.answers,
        }


@dataclass(frozen=True)
class ReferenceSweep:
    """``evaluate --with``: loss over betas for each reference, and other runs beside this one."""

    betas: tuple[float, ...]
    references: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()

    def __call__(self, bench: Bench) -> Measured:
        start = bench.reference()
        found = bench.ranking(bench.subject.policy, start, bench.subject.beta)
        drawn = bench.drawn(bench.subject.policy)
        figures: list[Figure] = []
        table = []
        for candidate in self._candidates(bench, found):
            row = self._row(bench, found, candidate, drawn)
            table.append(row)
            right = proportion(self._gap(found, candidate) > 0, found.cluster)
            name, pairs = candidate.name, f"{len(found.keys):,} pairs"
            figures += [
                Figure(f"Implicit reward accuracy, reference: {name}", right, share=True, n=pairs),
                Figure(
                    f"Least loss over beta, reference: {name}",
                    row["least_loss"],
                    n=f"at beta {row['best_beta']:g}",
                ),
            ]
        data: dict[str, Any] = {"beta": bench.subject.beta, "references": table}
        strengths = [_strength(bench, bench.subject, found, drawn)]
        for name in self.runs:
            other = bench.open(name)
            beside = bench.ranking(other.policy, other.reference, other.beta)
            strengths.append(_strength(bench, other, beside, bench.drawn(other.policy)))
        for strength in strengths:
            figures += strength.figures()
        data["strengths"] = [strength.to_json() for strength in strengths]
        return Measured(tuple(figures), data)

    def _candidates(self, bench: Bench, found: Ranking) -> list[Candidate]:
        """The start, none (a uniform reference), the answer without its prompt, other models."""
        assert found.chosen_ref is not None
        assert found.rejected_ref is not None
        zeros = np.zeros(len(found.keys))
        start = bench.reference()
        out = [
            Candidate("start", found.chosen_ref, found.rejected_ref, start),
            Candidate("none (posterior)", zeros, zeros),
        ]
        prior = self._prior(bench, found, start)
        if prior is not None:
            out.append(Candidate("without the prompt (likelihood)", *prior))
        for name in self.references:
            other = bench.open(name).policy
            seen = bench.ranking(other, None, bench.subject.beta)
            out.append(Candidate(name, seen.chosen, seen.rejected, other))
        return out

    def _prior(self, bench: Bench, found: Ranking, start: Policy) -> tuple[Floats, Floats] | None:
        """log p0(y) of both answers: the start's probability of them under an empty prompt."""
        pairs = {pair.key: pair for pair in bench.pairs}
        empty: list[Any] = []
        for key in found.keys:
            prompt = pairs[key].prompt
            if isinstance(prompt, str):
                empty.append("")
            elif isinstance(prompt, (tuple, list)) and all(isinstance(t, dict) for t in prompt):
                empty.append(({"role": "user", "content": ""},))
            else:
                return None  # a world's prompt is a number, and none stands for no prompt
        sides = []
        for side in ("chosen", "rejected"):
            rows = [
                start.encode(prompt, getattr(pairs[key], side))
                for prompt, key in zip(empty, found.keys, strict=True)
            ]
            logp = log_probabilities(
                start, rows, budget=bench.budget, progress=bench.progress, what="no prompt"
            )
            sides.append(np.array([float(x.sum()) for x in logp]))
        return sides[0], sides[1]

    @staticmethod
    def _gap(found: Ranking, candidate: Candidate) -> Floats:
        """``h`` [P]: the difference of log-ratios to a candidate."""
        gap = (found.chosen - candidate.chosen) - (found.rejected - candidate.rejected)
        if not np.isfinite(gap).all():
            raise DataError(
                f"The reference {candidate.name} gives an answer no probability at all.",
                "Use a reference of the same tokens and domain.",
            )
        return gap

    def _row(
        self, bench: Bench, found: Ranking, candidate: Candidate, drawn: Samples | None
    ) -> dict[str, Any]:
        assert found.chosen_ref is not None
        assert found.rejected_ref is not None
        h = self._gap(found, candidate)
        losses = {beta: float(dpo_loss(h, beta).mean()) for beta in self.betas}
        best = min(losses, key=lambda beta: losses[beta])
        steps = found.chosen_steps + found.rejected_steps
        off = np.abs(candidate.chosen - found.chosen_ref) + np.abs(
            candidate.rejected - found.rejected_ref
        )
        kl = None
        if candidate.policy is not None and drawn is not None:
            kl = divergence(
                bench.subject.policy,
                candidate.policy,
                drawn,
                budget=bench.budget,
                progress=bench.progress,
            ).to_json()["kl"]
        return {
            "reference": candidate.name,
            "accuracy": proportion(h > 0, found.cluster).to_json(),
            "loss": {f"{beta:g}": loss for beta, loss in losses.items()},
            "best_beta": best,
            "least_loss": losses[best],
            "margin": bootstrap(h, found.cluster).to_json(),
            "distance_to_start": float(off.sum() / steps.sum()),
            "kl": kl,
        }


def _strength(bench: Bench, subject: Subject, found: Ranking, drawn: Samples | None) -> Strength:
    kl = None
    if drawn is not None and subject.reference is not None:
        moved = divergence(
            subject.policy, subject.reference, drawn, budget=bench.budget, progress=bench.progress
        )
        kl = bootstrap(moved.k1, moved.cluster)
    judged = bench.judged(drawn)
    return Strength(
        subject.name,
        subject.reference_name,
        subject.beta,
        proportion(found.wins("mean_likelihood"), found.cluster),
        kl,
        None if judged is None else judged.estimate(),
        None if drawn is None else drawn.to_json(),
    )
