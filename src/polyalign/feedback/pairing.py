"""Pairing rules: which of K scored answers are put against each other.

A rule maps scores ``[K]`` to pairs (i, j) with score i > score j; equal scores make no pair.
Random choices are a function of (seed, key) alone, so order and other rows change nothing.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from polyalign.errors import DataError, OptionError, nearest
from polyalign.feedback.derived import derive
from polyalign.feedback.payloads import text_of
from polyalign.feedback.records import Pair, Record, Scored, Votes, kind_name
from polyalign.feedback.table import FeedbackSet

Rule = Callable[[Sequence[float], random.Random], list[tuple[int, int]]]


def rng_of(*parts: object) -> random.Random:
    """A generator that is a function of its parts alone, on every machine."""
    spelled = "\x1f".join(str(part) for part in parts)
    return random.Random(hashlib.sha256(spelled.encode()).digest())


def _extreme(scores: Sequence[float], value: float, rng: random.Random) -> int:
    """One of the places of ``value``: not always the first, which may be a favoured model's."""
    return rng.choice([i for i, score in enumerate(scores) if score == value])


def best_worst(scores: Sequence[float], rng: random.Random) -> list[tuple[int, int]]:
    """The best answer against the worst."""
    best, worst = max(scores), min(scores)
    if best == worst:
        return []
    return [(_extreme(scores, best, rng), _extreme(scores, worst, rng))]


def best_random(scores: Sequence[float], rng: random.Random) -> list[tuple[int, int]]:
    """The best answer against a worse one drawn at random (as UltraFeedback was binarised)."""
    best = max(scores)
    worse = [j for j, score in enumerate(scores) if score < best]
    return [(_extreme(scores, best, rng), rng.choice(worse))] if worse else []


def every(scores: Sequence[float], rng: random.Random) -> list[tuple[int, int]]:
    """Every pair of answers with different scores."""
    n = len(scores)
    return [(i, j) for i in range(n) for j in range(n) if scores[i] > scores[j]]


def adjacent(scores: Sequence[float], rng: random.Random) -> list[tuple[int, int]]:
    """Each answer against one of the next lower score."""
    pairs = []
    levels = sorted(set(scores), reverse=True)
    below = dict(zip(levels, levels[1:], strict=False))
    for i, score in enumerate(scores):
        if score in below:
            pairs.append((i, _extreme(scores, below[score], rng)))
    return pairs


def correct_incorrect(scores: Sequence[float], rng: random.Random) -> list[tuple[int, int]]:
    """Correct answers (score 1) against incorrect ones (score 0), each used once.

    Raises :class:`DataError` for scores that are neither.
    """
    if any(score not in (0.0, 1.0) for score in scores):
        raise DataError(
            "The rule correct-incorrect needs verified answers, with scores of 0 and 1 only.",
            "Use another rule, for example best-worst.",
        )
    right = [i for i, score in enumerate(scores) if score == 1.0]
    wrong = [i for i, score in enumerate(scores) if score == 0.0]
    rng.shuffle(right)
    rng.shuffle(wrong)
    return list(zip(right, wrong, strict=False))


def second_worst(scores: Sequence[float], rng: random.Random) -> list[tuple[int, int]]:
    """The second best of at least three answers against the worst; the best is kept as gold."""
    order = list(range(len(scores)))
    rng.shuffle(order)
    order.sort(key=lambda i: -scores[i])
    if len(order) < 3 or scores[order[1]] == scores[order[-1]]:
        return []
    return [(order[1], order[-1])]


RULES: dict[str, Rule] = {
    "best-worst": best_worst,
    "best-random": best_random,
    "all": every,
    "adjacent": adjacent,
    "correct-incorrect": correct_incorrect,
    "second-worst": second_worst,
}
"""Pairing rules by name."""

KEEPS_GOLD = frozenset({"second-worst"})
"""Rules whose pairs bring the best of the answers left over as ``gold``."""


@dataclass(frozen=True)
class Paired:
    """The pairs of one record of scored answers by a rule; fields keep the scores and the gap."""

    rule: str
    seed: int
    min_gap: float

    def __call__(self, record: Record) -> list[Pair]:
        assert isinstance(record, Scored)
        scores, completions = record.scores, record.completions
        pairs = []
        for i, j in RULES[self.rule](scores, rng_of(self.seed, self.rule, record.key)):
            gap = scores[i] - scores[j]
            if gap < self.min_gap or text_of(completions[i]) == text_of(completions[j]):
                continue
            others = {}
            if self.rule in KEEPS_GOLD:
                best = max((k for k in range(len(scores)) if k != i), key=scores.__getitem__)
                others = {"gold": completions[best]}
                if text_of(completions[best]) in (text_of(completions[i]), text_of(completions[j])):
                    continue
            pairs.append(
                Pair(
                    key=f"{record.key}-{i}-{j}",
                    weight=record.weight,
                    fields={
                        **record.fields,
                        "score_chosen": scores[i],
                        "score_rejected": scores[j],
                        "margin": gap,
                    },
                    meta=record.meta,
                    prompt=record.prompt,
                    chosen=completions[i],
                    rejected=completions[j],
                    others=others,
                )
            )
        return pairs


def pair(
    feedback: Iterable[Record], rule: str = "best-worst", *, seed: int = 0, min_gap: float = 0.0
) -> FeedbackSet:
    """Scored (or voted) answers as pairs, by a rule's name; gaps below ``min_gap`` make none.

    ``notes`` says how many rows gave no pair. Raises :class:`OptionError` for an unknown rule
    or a bad gap, :class:`DataError` for other kinds of feedback.
    """
    from polyalign.feedback.conversion import convert

    if rule not in RULES:
        raise OptionError(f"There is no pairing rule called {rule!r}.", nearest(rule, RULES))
    if not (math.isfinite(min_gap) and min_gap >= 0):
        raise OptionError(f"min_gap is {min_gap}.", "Give a number of at least 0.")
    base = FeedbackSet.of(feedback)
    if base.kind is Votes:
        base = convert(base, Scored)
    if base.kind is not Scored:
        raise DataError(
            f"Pairs are made of scored, ranked or voted answers, not of {kind_name(base.kind)}.",
            "Give rows with prompt, completions and scores, or convert them.",
        )
    paired, counts = derive(
        base,
        Paired(rule, seed, min_gap),
        Pair,
        f"paired by {rule}",
        "All scores may be equal, or closer than min_gap.",
    )
    barren = counts.count(0)
    if barren:
        paired.notes.append(f"{barren} of {len(counts)} rows gave no pair (equal scores).")
    return paired
