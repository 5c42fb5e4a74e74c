"""Conversions between kinds of feedback.

Each is a pure function of one record; those in :data:`AUTOMATIC` need no choice, so training
may apply them on its own and says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from polyalign.errors import DataError, OptionError
from polyalign.feedback.derived import Expand, derive
from polyalign.feedback.formats import as_kind
from polyalign.feedback.pairing import pair
from polyalign.feedback.payloads import is_conversation, text_of
from polyalign.feedback.records import (
    Binary,
    Demonstration,
    Pair,
    Payload,
    Prompt,
    Quadruple,
    Record,
    Scored,
    Steps,
    Votes,
    kind_name,
)
from polyalign.feedback.table import FeedbackSet


def _common(record: Record, suffix: str = "") -> dict[str, Any]:
    return {
        "key": record.key + suffix,
        "weight": record.weight,
        "fields": record.fields,
        "meta": record.meta,
    }


def prompt_only(record: Any) -> list[Prompt]:
    """The prompt alone: the answers come from a policy."""
    return [Prompt(**_common(record), prompt=record.prompt)]


def pair_to_demonstration(record: Any) -> list[Demonstration]:
    """The chosen answer, to imitate."""
    return [Demonstration(**_common(record), prompt=record.prompt, completion=record.chosen)]


def pair_to_binary(record: Any) -> list[Binary]:
    """The chosen answer as good, the rejected one as bad."""
    return [
        Binary(**_common(record, f"/{name}"), prompt=record.prompt, completion=answer, label=good)
        for name, answer, good in (
            ("chosen", record.chosen, True),
            ("rejected", record.rejected, False),
        )
    ]


def pair_to_scored(record: Any) -> list[Scored]:
    """Two answers with their scores where they are known, else 1 and 0."""
    names = ("score_chosen", "score_rejected")
    known = all(name in record.fields for name in names)
    scores = tuple(record.fields[n] for n in names) if known else (1.0, 0.0)
    both = (record.chosen, record.rejected)
    return [Scored(**_common(record), prompt=record.prompt, completions=both, scores=scores)]


def binary_to_demonstration(record: Any) -> list[Demonstration]:
    """A good answer, to imitate; a bad one gives nothing."""
    if not record.label:
        return []
    return [Demonstration(**_common(record), prompt=record.prompt, completion=record.completion)]


def binary_to_scored(record: Any) -> list[Scored]:
    """One answer with score 1 or 0."""
    return [
        Scored(
            **_common(record),
            prompt=record.prompt,
            completions=(record.completion,),
            scores=(float(record.label),),
        )
    ]


def quadruple_to_pair(record: Any) -> list[Pair]:
    """Under each prompt, its own answer against the other's."""
    return [
        Pair(
            **_common(record, f"/{i + 1}"),
            prompt=record.prompts[i],
            chosen=record.completions[i],
            rejected=record.completions[1 - i],
        )
        for i in (0, 1)
    ]


def quadruple_to_demonstration(record: Any) -> list[Demonstration]:
    """Each prompt with its own answer."""
    return [
        Demonstration(
            **_common(record, f"/{i + 1}"),
            prompt=record.prompts[i],
            completion=record.completions[i],
        )
        for i in (0, 1)
    ]


def steps_to_binary(record: Any) -> list[Binary]:
    """The steps joined to one answer: good where every step is right."""
    answer: Payload = "\n".join(text_of(step) for step in record.steps)
    if is_conversation(record.prompt):
        answer = ({"role": "assistant", "content": answer},)
    good = all(record.labels)
    return [Binary(**_common(record), prompt=record.prompt, completion=answer, label=good)]


def tally(record: Votes) -> dict[tuple[int, int], Counter[float]]:
    """Outcomes by pair of answers (i < j), as seen from i."""
    counts: dict[tuple[int, int], Counter[float]] = {}
    for _, i, j, outcome in record.votes:
        place = (i, j) if i < j else (j, i)
        counts.setdefault(place, Counter())[outcome if i < j else 1.0 - outcome] += 1
    return counts


def majority(outcomes: Mapping[float, int], ties: str = "ignored") -> float:
    """1 where the first answer has more votes, 0 where the second has, 0.5 for a tie.

    ``ties="ignored"``: votes for a tie count only when the others are equal; ``"counted"``: a
    tie wins unless one answer has more votes than the tie and the other answer.
    """
    first, second, tie = (outcomes.get(value, 0) for value in (1.0, 0.0, 0.5))
    if first == second or (ties == "counted" and tie >= max(first, second)):
        return 0.5
    return 1.0 if first > second else 0.0


@dataclass(frozen=True)
class MajorityPairs:
    """A pair for each two answers that a majority decided; ``agreement`` keeps its share."""

    ties: str = "ignored"

    def __call__(self, record: Record) -> list[Pair]:
        assert isinstance(record, Votes)
        counts = tally(record)
        pairs = []
        for (i, j), outcomes in counts.items():
            winner = majority(outcomes, self.ties)
            if winner == 0.5:
                continue
            best, worst = (i, j) if winner == 1.0 else (j, i)
            n = sum(outcomes.values())
            suffix = f"-{best}-{worst}" if len(record.completions) > 2 else ""
            common = _common(record, suffix)
            common["fields"] = {
                **record.fields,
                "agreement": outcomes[winner] / n,
                "n_annotators": float(n),
            }
            pairs.append(
                Pair(
                    **common,
                    prompt=record.prompt,
                    chosen=record.completions[best],
                    rejected=record.completions[worst],
                )
            )
        return pairs


def votes_to_scored(record: Any) -> list[Scored]:
    """Each compared answer with its mean outcome: 1 won every vote, 0.5 a tie, 0 none."""
    outcomes: dict[int, list[float]] = {}
    for _, i, j, outcome in record.votes:
        outcomes.setdefault(i, []).append(outcome)
        outcomes.setdefault(j, []).append(1.0 - outcome)
    places = sorted(outcomes)
    return [
        Scored(
            **_common(record),
            prompt=record.prompt,
            completions=tuple(record.completions[i] for i in places),
            scores=tuple(sum(outcomes[i]) / len(outcomes[i]) for i in places),
        )
    ]


def scored_to_demonstration(record: Any) -> list[Demonstration]:
    """The best answer (the first of equals), to imitate."""
    best = max(range(len(record.scores)), key=record.scores.__getitem__)
    return [
        Demonstration(**_common(record), prompt=record.prompt, completion=record.completions[best])
    ]


def scored_to_binary(record: Any, threshold: float) -> list[Binary]:
    """Each answer, good where its score reaches the threshold."""
    return [
        Binary(
            **{**_common(record, f"-{i}"), "fields": {**record.fields, "score": score}},
            prompt=record.prompt,
            completion=answer,
            label=score >= threshold,
        )
        for i, (answer, score) in enumerate(zip(record.completions, record.scores, strict=True))
    ]


def _then(first: Expand, second: Expand) -> Expand:
    return partial(_composed, first, second)


def _composed(first: Expand, second: Expand, record: Record) -> list[Record]:
    return [last for middle in first(record) for last in second(middle)]


@dataclass(frozen=True)
class Conversion:
    """One way from kind to kind: the function, and what it does in words."""

    expand: Expand
    says: str
    automatic: bool


CONVERSIONS: dict[tuple[type[Record], type[Record]], Conversion] = {
    **{
        (kind, Prompt): Conversion(prompt_only, "only the prompts are used", True)
        for kind in (Demonstration, Pair, Binary, Scored, Votes, Steps)
    },
    (Pair, Demonstration): Conversion(
        pair_to_demonstration, "the chosen answers are imitated, the rejected ones unused", True
    ),
    (Pair, Binary): Conversion(
        pair_to_binary, "each pair gives a good answer (chosen) and a bad one (rejected)", True
    ),
    (Pair, Scored): Conversion(
        pair_to_scored,
        "each pair becomes two scored answers (1 and 0 unless scores are known)",
        True,
    ),
    (Binary, Demonstration): Conversion(
        binary_to_demonstration, "the good answers are imitated, the bad ones unused", False
    ),
    (Binary, Scored): Conversion(binary_to_scored, "labels become scores of 1 and 0", True),
    (Quadruple, Pair): Conversion(
        quadruple_to_pair, "each prompt's own answer is preferred to the other's", True
    ),
    (Quadruple, Demonstration): Conversion(
        quadruple_to_demonstration, "each prompt's own answer is imitated", True
    ),
    (Quadruple, Binary): Conversion(
        _then(quadruple_to_pair, pair_to_binary),
        "under each prompt its own answer is good and the other's bad",
        True,
    ),
    (Steps, Binary): Conversion(
        steps_to_binary, "steps are joined; an answer is good where every step is right", False
    ),
    (Votes, Pair): Conversion(
        MajorityPairs(), "the majority decides; ties are left out (and counted)", True
    ),
    (Votes, Scored): Conversion(
        votes_to_scored, "each answer is scored by its mean outcome over the votes", True
    ),
    (Votes, Demonstration): Conversion(
        _then(MajorityPairs(), pair_to_demonstration), "the majority's choice is imitated", False
    ),
    (Votes, Binary): Conversion(
        _then(MajorityPairs(), pair_to_binary),
        "the majority's choice is good, the other answer bad",
        False,
    ),
    (Scored, Demonstration): Conversion(
        scored_to_demonstration, "the best-scored answer is imitated", False
    ),
}
"""Conversions that need no option, by (from, to)."""

AUTOMATIC: dict[tuple[type[Record], type[Record]], str] = {
    route: conversion.says for route, conversion in CONVERSIONS.items() if conversion.automatic
}
"""Conversions that training applies without being asked, with the sentence it prints."""


def targets(kind: type[Record]) -> list[str]:
    """The plural names of the kinds that ``kind`` can be converted to."""
    found = {to for start, to in CONVERSIONS if start is kind}
    if kind is Scored:
        found |= {Pair, Binary}
    return sorted(kind_name(to) for to in found)


def convert(
    feedback: Iterable[Record],
    kind: type[Record] | str,
    *,
    rule: str | None = None,
    threshold: float | None = None,
    ties: str | None = None,
    seed: int = 0,
    min_gap: float = 0.0,
) -> FeedbackSet:
    """Feedback as another kind; ``notes`` says what was done and how many rows gave nothing.

    ``rule``, ``seed`` and ``min_gap`` belong to scored -> pairs (see :mod:`.pairing`),
    ``threshold`` to scored -> binary, ``ties`` ("ignored" or "counted") to votes -> pairs.
    Raises :class:`DataError` where there is no such conversion and :class:`OptionError` for an
    option that the conversion does not have.
    """
    base = FeedbackSet.of(feedback)
    to = as_kind(kind)
    assert to is not None
    if to is base.kind:
        return base
    route = (base.kind, to)
    _refuse_unused(route, rule=rule, threshold=threshold, ties=ties, min_gap=min_gap or None)
    if route == (Scored, Pair):
        return pair(base, rule or "best-worst", seed=seed, min_gap=min_gap)
    if route == (Scored, Binary):
        if threshold is None:
            raise OptionError(
                "Scored answers become good and bad ones by a threshold, and none is given.",
                "Give threshold=…: answers with at least this score count as good.",
            )
        expand: Expand = partial(scored_to_binary, threshold=threshold)
        says = f"answers with a score of at least {threshold:g} are good"
    elif route in CONVERSIONS:
        expand, says = CONVERSIONS[route].expand, CONVERSIONS[route].says
        if route == (Votes, Pair) and ties is not None:
            if ties not in ("ignored", "counted"):
                raise OptionError(f"ties is {ties!r}.", "Valid: counted, ignored.")
            expand = MajorityPairs(ties)
    else:
        possible = ", ".join(targets(base.kind)) or "nothing"
        raise DataError(
            f"{kind_name(base.kind)} cannot be converted to {kind_name(to)}.",
            f"They can become: {possible}.",
        )
    derived, counts = derive(base, expand, to, says, "Look at the rows with: polyalign data stats.")
    derived.notes.append(f"{kind_name(base.kind)} -> {kind_name(to)}: {says}.")
    if route == (Votes, Pair):
        tied = sum(_tied(record, ties or "ignored") for record in base)
        derived.notes.append(f"{tied} comparisons without a majority were left out.")
    elif counts.count(0):
        derived.notes.append(f"{counts.count(0)} of {len(counts)} rows gave nothing.")
    return derived


def _tied(record: Record, ties: str) -> int:
    assert isinstance(record, Votes)
    return sum(majority(outcomes, ties) == 0.5 for outcomes in tally(record).values())


def _refuse_unused(route: tuple[type[Record], type[Record]], **options: object) -> None:
    belongs: dict[str, tuple[type[Record], type[Record]]] = {
        "rule": (Scored, Pair),
        "min_gap": (Scored, Pair),
        "threshold": (Scored, Binary),
        "ties": (Votes, Pair),
    }
    for name, value in options.items():
        if value is not None and belongs[name] != route:
            start, end = belongs[name]
            raise OptionError(
                f"The option {name} has no meaning for {kind_name(route[0])} -> "
                f"{kind_name(route[1])}.",
                f"It belongs to {kind_name(start)} -> {kind_name(end)}; leave it out.",
            )
