"""What a policy answers, and what a judge says of it: success, best of n, win rate.

P prompts with n answers each, prompt after prompt: N = P n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Any

import numpy as np
import torch

from polyalign.errors import DataError
from polyalign.evaluation.scoring import Progress, silent
from polyalign.feedback.payloads import canonical, is_blank, text_of
from polyalign.feedback.records import Prompt
from polyalign.feedback.units import seed_of
from polyalign.metrics.arrays import Floats
from polyalign.metrics.association import correlation
from polyalign.metrics.comparison import outcome
from polyalign.metrics.intervals import Estimate, bootstrap, proportion
from polyalign.metrics.sequences import distinct, fault, lengths
from polyalign.protocols import Judge, Policy, Sampling, Verdict
from polyalign.types import Row

CHUNK = 96
"""Answers sampled between two notes of progress."""


@dataclass(frozen=True)
class Samples:
    """N answers to P prompts, ``n`` each; ``steps`` [N] are counts without padding."""

    prompts: tuple[Prompt, ...]
    n: int
    how: Sampling
    rows: tuple[Row, ...]
    payloads: tuple[Any, ...]
    finished: tuple[bool, ...]

    @property
    def repeated(self) -> list[Prompt]:
        """The prompt of each answer, [N]."""
        return [prompt for prompt in self.prompts for _ in range(self.n)]

    @property
    def cluster(self) -> tuple[str, ...]:
        """The prompt's spelling of each answer, [N]: what intervals resample."""
        return tuple(canonical(prompt.prompt) for prompt in self.repeated)

    @property
    def steps(self) -> Floats:
        """Number of steps of each answer, [N]."""
        return np.array([float(row.mask.sum()) for row in self.rows])

    def to_json(self) -> dict[str, Any]:
        """Lengths, variety and faults."""
        own = [row.steps[row.mask] for row in self.rows]
        # The end token is no part of a loop, and an answer of nothing but it is empty.
        sequences = [
            tuple((x[:-1] if done else x).flatten().tolist()) for x, done in zip(own, self.finished)
        ]
        seen = [
            "empty" if is_blank(payload) else fault(steps or (0,), done)
            for payload, steps, done in zip(self.payloads, sequences, self.finished)
        ]
        varied = distinct(sequences, 2)
        return {
            "samples": len(self.rows),
            "length": lengths(self.steps).to_json(),
            "distinct_2": varied if varied == varied else None,  # none has two steps
            "faults": {name: seen.count(name) for name in ("empty", "loop", "unfinished")},
        }


def draw(
    policy: Policy,
    prompts: Sequence[Prompt],
    n: int = 1,
    how: Sampling | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
    what: str = "sampling",
) -> Samples:
    """``n`` answers to each prompt; each has its own seed, a function of (seed, prompt, number).

    So an answer does not depend on which others are asked for.
    """
    how = how or Sampling()
    rows: list[Row] = []
    payloads: list[Any] = []
    finished: list[bool] = []
    size = max(1, CHUNK // n)
    progress(what, 0, len(prompts) * n)
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        seeds = [seed_of(seed, "evaluate", p.key, j) for p in part for j in range(n)]
        with torch.no_grad():
            rollout = policy.sample([p.prompt for p in part], n, how, seeds)
        rows += rollout.rows
        payloads += rollout.payloads
        finished += [bool(x) for x in rollout.finished.tolist()]
        progress(what, len(rows), len(prompts) * n)
    return Samples(tuple(prompts), n, how, tuple(rows), tuple(payloads), tuple(finished))


@dataclass(frozen=True)
class Judged:
    """Samples with the judge's scores [N] (NaN where it abstained)."""

    samples: Samples
    scores: Floats
    kinds: tuple[str, ...] = field(default=())

    @property
    def binary(self) -> bool:
        """Whether every score is 0 or 1, a success or not."""
        known = self.scores[~np.isnan(self.scores)]
        return bool(np.isin(known, (0.0, 1.0)).all())

    def estimate(self, kind: str | None = None) -> Estimate:
        """Mean score with interval over prompts, of one kind or of all."""
        keep = ~np.isnan(self.scores)
        if kind is not None:
            keep &= np.array([k == kind for k in self.kinds])
        cluster = [c for c, kept in zip(self.samples.cluster, keep) if kept]
        values = self.scores[keep]
        return proportion(values, cluster) if self.binary else bootstrap(values, cluster)

    def per_prompt(self) -> Floats:
        """Mean score of each prompt's judged answers, [P]; NaN where none was."""
        grid = self.scores.reshape(-1, self.samples.n)
        count = (~np.isnan(grid)).sum(1)
        return np.where(count > 0, np.nansum(grid, 1) / np.maximum(count, 1), np.nan)

    def best_of(self, n: int) -> Floats:
        """Expected best score of ``n`` of each prompt's answers, [P].

        Unbiased for any number of samples >= n: the mean of the maximum over all subsets of size
        n, as pass@k (Chen et al. 2021, 2107.03374, equation 1). Raises ValueError for more than
        were drawn. Answers that were not judged are never the best.
        """
        total = self.samples.n
        if not 1 <= n <= total:
            raise ValueError(f"best of {n} needs at least {n} answers a prompt, not {total}")
        grid = np.sort(np.nan_to_num(self.scores.reshape(-1, total), nan=-np.inf), axis=1)
        weight = np.array([comb(i, n - 1) for i in range(total)]) / comb(total, n)
        best = np.where(weight > 0, grid * np.where(weight > 0, weight, 1), 0.0).sum(1)
        return np.where(np.isfinite(best), best, np.nan)

    def to_json(self) -> dict[str, Any]:
        """Success (or mean score) in all and by kind, what was drawn, length against score."""
        known = ~np.isnan(self.scores)
        name = "success" if self.binary else "score"
        out: dict[str, Any] = {
            name: self.estimate().to_json(),
            "abstained": int((~known).sum()),
            **self.samples.to_json(),
            "length_correlation": correlation(
                self.samples.steps[known], self.scores[known]
            ).to_json(),
        }
        if self.kinds and len(set(self.kinds)) > 1:
            out["by_kind"] = {k: self.estimate(k).to_json() for k in sorted(set(self.kinds))}
        if self.samples.n > 1:
            best = self.best_of(self.samples.n)
            best = best[~np.isnan(best)]
            estimate = proportion if self.binary else bootstrap
            out[f"best_of_{self.samples.n}"] = estimate(best).to_json()
        return out

    def table(self) -> list[dict[str, Any]]:
        """One row an answer, for samples.jsonl: key, kind, prompt, answer, score, finished."""
        kinds = self.kinds or ("",) * len(self.scores)
        return [
            {
                "key": prompt.key,
                "kind": kind,
                "prompt": text_of(prompt.prompt),
                "answer": text_of(answer),
                "score": None if np.isnan(score) else float(score),
                "finished": done,
            }
            for prompt, kind, answer, score, done in zip(
                self.samples.repeated,
                kinds,
                self.samples.payloads,
                self.scores,
                self.samples.finished,
            )
        ]


def kind_of(prompt: Prompt) -> str:
    """The sort of task a prompt is: its column ``kind``, or its verifier's."""
    own = prompt.meta.get("kind")
    spec = prompt.meta.get("spec")
    if own is None and isinstance(spec, dict):
        own = spec.get("kind")
    return "" if own is None else str(own)


def judged(samples: Samples, judge: Judge) -> Judged:
    """Ask a judge about samples; it sees each prompt's columns, and whether the answer ended.

    Raises :class:`DataError` where the judge gives no scores of the right number.
    """
    verdict = judge(
        [p.prompt for p in samples.repeated],
        list(samples.payloads),
        [{**p.meta, "finished": done} for p, done in zip(samples.repeated, samples.finished)],
    )
    kinds = tuple(kind_of(p) for p in samples.repeated)
    return Judged(samples, _scores(verdict, len(samples.rows)), kinds if any(kinds) else ())


def verified(
    policy: Policy,
    prompts: Sequence[Prompt],
    judge: Judge,
    n: int = 1,
    how: Sampling | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Judged:
    """Sample ``n`` answers to each prompt and judge them."""
    return judged(draw(policy, prompts, n, how, seed=seed, progress=progress), judge)


@dataclass(frozen=True)
class Contest:
    """Comparisons of two policies' answers: wins [N] of the first in [0, 1], NaN: abstained."""

    wins: Floats
    cluster: tuple[str, ...]
    first: Samples
    second: Samples

    def to_json(self) -> dict[str, Any]:
        """Win rate with interval over prompts (a tie counts half), ties, and lengths."""
        known = ~np.isnan(self.wins)
        cluster = [c for c, kept in zip(self.cluster, known) if kept]
        return {
            "win_rate": proportion(self.wins[known], cluster).to_json(),
            "ties": int((self.wins == 0.5).sum()),
            "abstained": int((~known).sum()),
            "length": lengths(self.first.steps).to_json(),
            "length_baseline": lengths(self.second.steps).to_json(),
        }


def win_rate(
    policy: Policy,
    baseline: Policy,
    prompts: Sequence[Prompt],
    judge: Judge,
    n: int = 1,
    how: Sampling | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Contest:
    """Answers of both to the same prompts, answer j against answer j, judged.

    A judge that scores never sees positions; one that compares is asked in both orders and
    averaged. The two policies draw with the same seeds.
    """
    first = draw(policy, prompts, n, how, seed=seed, progress=progress)
    second = draw(
        baseline, prompts, n, how, seed=seed, progress=progress, what="sampling (baseline)"
    )
    return contest(first, second, judge)


def contest(first: Samples, second: Samples, judge: Judge) -> Contest:
    """Compare two policies' samples of the same prompts; see :func:`win_rate`."""
    if getattr(judge, "pairwise", False):
        one = _preferred(judge, first, second)
        other = _preferred(judge, second, first)
        wins = (one + 1 - other) / 2
    else:
        return compared(judged(first, judge), judged(second, judge))
    return Contest(wins, first.cluster, first, second)


def compared(first: Judged, second: Judged) -> Contest:
    """The contest of two policies whose answers have scores."""
    wins = outcome(first.scores, second.scores)
    return Contest(wins, first.samples.cluster, first.samples, second.samples)


def _preferred(judge: Judge, first: Samples, second: Samples) -> Floats:
    """Probability [N] that the judge prefers each answer of ``first``, shown first."""
    both = [x for pair in zip(first.payloads, second.payloads) for x in pair]
    asked = [p for p in first.repeated for _ in range(2)]
    ended = [x for pair in zip(first.finished, second.finished) for x in pair]
    verdict = judge(
        [p.prompt for p in asked], both, [{**p.meta, "finished": e} for p, e in zip(asked, ended)]
    )
    n = len(first.rows)
    if verdict.prefer is None or tuple(verdict.prefer.shape) != (n, 2, 2):
        raise DataError("The judge compares answers but gave no preference for each pair.")
    wins = verdict.prefer[:, 0, 1].double().cpu().numpy().copy()
    if verdict.abstained is not None:
        wins[verdict.abstained.reshape(n, 2).any(1).cpu().numpy()] = np.nan
    return wins


def _scores(verdict: Verdict, n: int) -> Floats:
    if verdict.score is None:
        what = "compares answers" if verdict.prefer is not None else "gave no scores"
        raise DataError(
            f"The judge {what}, and this needs a score for each.",
            "Use it with a baseline (win rate), or give a judge that returns one number each.",
        )
    scores = verdict.score.double().cpu().numpy().copy()
    if scores.shape != (n,):
        raise DataError(
            f"The judge gave {scores.size} scores for {n} answers.", "Return one for each."
        )
    if verdict.abstained is not None:
        scores[verdict.abstained.cpu().numpy()] = np.nan
    return scores
