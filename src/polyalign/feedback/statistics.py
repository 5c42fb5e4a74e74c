"""Statistics of feedback: sizes, lengths, labels, length bias, agreement of annotators."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from polyalign.feedback.conversion import MajorityPairs, quadruple_to_pair, tally
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
from polyalign.feedback.splitting import prompt_identity, prompts_of
from polyalign.feedback.table import FeedbackSet

Length = Callable[[Payload], int]


def characters(payload: Payload) -> int:
    """The length of a payload in characters."""
    return len(text_of(payload))


def wilson(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The 95% Wilson score interval of a share; (0, 1) where nothing was counted.

    >>> [round(x, 3) for x in wilson(8, 10)]
    [0.49, 0.943]
    """
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def answers_of(record: Record) -> list[Payload]:
    """All the answers of a record, in its order."""
    match record:
        case Pair(chosen=chosen, rejected=rejected, others=others):
            return [chosen, rejected, *others.values()]
        case Demonstration(completion=completion) | Binary(completion=completion):
            return [completion]
        case Scored(completions=many) | Votes(completions=many) | Quadruple(completions=many):
            return list(many)
        case Steps(steps=steps):
            return ["\n".join(text_of(step) for step in steps)]
    return []


def preferences(record: Record) -> Iterator[tuple[Payload, Payload, Payload]]:
    """(prompt, better, worse) for each preference that a record states; ties state none."""
    match record:
        case Pair(prompt=prompt, chosen=chosen, rejected=rejected):
            yield prompt, chosen, rejected
        case Votes():
            for pair in MajorityPairs()(record):
                yield pair.prompt, pair.chosen, pair.rejected
        case Scored(prompt=prompt, completions=answers, scores=scores):
            for i, first in enumerate(answers):
                for j, second in enumerate(answers):
                    if scores[i] > scores[j]:
                        yield prompt, first, second
        case Quadruple():
            for pair in quadruple_to_pair(record):
                yield pair.prompt, pair.chosen, pair.rejected


@dataclass(frozen=True)
class LengthBias:
    """How often the longer of two answers is preferred; answers of equal length do not count."""

    longer_won: int
    decided: int
    equal: int
    unit: str

    @property
    def share(self) -> float:
        """The share of decided pairs that the longer answer won (NaN where there are none)."""
        return self.longer_won / self.decided if self.decided else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% Wilson interval of the share."""
        return wilson(self.longer_won, self.decided)

    def to_dict(self) -> dict[str, Any]:
        """The figures by name."""
        low, high = self.interval
        share = self.share if self.decided else None
        return {**asdict(self), "share": share, "low": low, "high": high}


def length_bias(
    records: Iterable[Record], length: Length = characters, unit: str = "characters"
) -> LengthBias:
    """The share of stated preferences that the longer answer won."""
    longer = decided = equal = 0
    for record in records:
        for _, better, worse in preferences(record):
            a, b = length(better), length(worse)
            equal += a == b
            decided += a != b
            longer += a > b
    return LengthBias(longer, decided, equal, unit)


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree on the same two answers.

    ``agreement`` is the share of pairs of votes on the same comparison that are equal (a tie is
    a label of its own); ``alpha`` is Krippendorff's for nominal labels (1 perfect, 0 chance).
    """

    votes: int
    comparisons: int
    annotators: int
    ties: int
    equal_pairs: int
    vote_pairs: int
    alpha: float

    @property
    def agreement(self) -> float:
        """Share of equal pairs of votes (NaN where nothing was voted on twice)."""
        return self.equal_pairs / self.vote_pairs if self.vote_pairs else math.nan

    @property
    def tie_share(self) -> float:
        """Share of votes for a tie."""
        return self.ties / self.votes if self.votes else math.nan

    def to_dict(self) -> dict[str, Any]:
        """The figures by name; None where they are not defined."""
        numbers = {"agreement": self.agreement, "tie_share": self.tie_share, "alpha": self.alpha}
        return {
            **asdict(self),
            **{name: None if math.isnan(value) else value for name, value in numbers.items()},
        }


def agreement(records: Iterable[Record]) -> Agreement:
    """Agreement of the annotators of votes; ``first`` and ``second`` may be swapped in a vote."""
    votes = comparisons = ties = equal_pairs = vote_pairs = 0
    annotators: set[str] = set()
    observed = 0.0
    labels: Counter[float] = Counter()
    for record in records:
        if not isinstance(record, Votes):
            continue
        annotators.update(vote[0] for vote in record.votes)
        for outcomes in tally(record).values():
            n = sum(outcomes.values())
            votes += n
            comparisons += 1
            ties += outcomes[0.5]
            equal = sum(c * (c - 1) // 2 for c in outcomes.values())
            equal_pairs += equal
            vote_pairs += n * (n - 1) // 2
            if n > 1:
                labels.update(outcomes)
                observed += 2 * equal / (n - 1)
    total = sum(labels.values())
    alpha = math.nan
    if total > 1:
        by_chance = sum(c * (c - 1) for c in labels.values()) / (total - 1)
        alpha = 1.0 if by_chance == total else 1 - (total - observed) / (total - by_chance)
    return Agreement(votes, comparisons, len(annotators), ties, equal_pairs, vote_pairs, alpha)


@dataclass(frozen=True)
class Spread:
    """Where numbers lie."""

    n: int
    mean: float
    low: float
    q05: float
    median: float
    q95: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread | None:
        """The spread of some numbers; None for none."""
        if not numbers:
            return None
        ordered = sorted(numbers)

        def quantile(q: float) -> float:
            place = q * (len(ordered) - 1)
            low = math.floor(place)
            high = min(low + 1, len(ordered) - 1)
            return ordered[low] + (place - low) * (ordered[high] - ordered[low])

        return cls(
            len(ordered),
            fmean(ordered),
            ordered[0],
            quantile(0.05),
            quantile(0.5),
            quantile(0.95),
            ordered[-1],
        )

    def __str__(self) -> str:
        return (
            f"median {self.median:,.4g} (5% {self.q05:,.4g}, 95% {self.q95:,.4g}, "
            f"range {self.low:,.4g} to {self.high:,.4g})"
        )


@dataclass(frozen=True)
class Stats:
    """What a feedback set holds, in figures; ``numbers`` has spreads by name."""

    source: str
    format: str
    kind: str
    rows: int
    rejected: int
    prompts: int
    counts: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, Spread] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return asdict(self)

    def render(self) -> list[str]:
        """The figures as lines of text."""
        lines = [
            f"{self.source}: {self.rows:,} {self.kind} ({self.format})",
            f"  prompts: {self.prompts:,} different",
        ]
        if self.rejected:
            lines.append(f"  malformed rows: {self.rejected:,}")
        for name, value in self.counts.items():
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
            lines.append(f"  {name}: {shown}")
        lines += [f"  {name}: {spread}" for name, spread in self.numbers.items()]
        return lines


def stats(
    feedback: Iterable[Record], *, length: Length = characters, unit: str = "characters"
) -> Stats:
    """The figures of a feedback set; lengths in characters unless ``length`` says otherwise."""
    base = FeedbackSet.of(feedback)
    prompts: set[str] = set()
    numbers: dict[str, list[float]] = {}
    counts: Counter[str] = Counter()
    for record in base:
        for payload in prompts_of(record):
            prompts.add(prompt_identity(payload))
        _measure(record, numbers, counts, length, unit)
    figures: dict[str, float] = dict(counts)
    bias = length_bias(base, length, unit)
    if bias.decided:
        figures[f"longer answer preferred (share, {unit})"] = bias.share
    if base.kind is Votes:
        found = agreement(base)
        figures |= {
            "votes": found.votes,
            "annotators": found.annotators,
            "share of ties": found.tie_share,
        }
        if found.vote_pairs:
            figures["agreement of two votes"] = found.agreement
            figures["Krippendorff's alpha"] = found.alpha
    spreads = {name: Spread.of(values) for name, values in numbers.items()}
    return Stats(
        base.source,
        base.format,
        kind_name(base.kind),
        len(base),
        len(base.rejects),
        len(prompts),
        figures,
        {name: spread for name, spread in spreads.items() if spread is not None},
    )


def _measure(
    record: Record,
    numbers: dict[str, list[float]],
    counts: Counter[str],
    length: Length,
    unit: str,
) -> None:
    """Add one record's figures."""

    def add(name: str, value: float) -> None:
        numbers.setdefault(name, []).append(value)

    for prompt in prompts_of(record) if not isinstance(record, Prompt) else [record.prompt]:
        add(f"prompt length ({unit})", length(prompt))
        if is_conversation(prompt):
            add("turns of the prompt", len(prompt))
            counts["with a system turn"] += prompt[0]["role"] == "system"
    if isinstance(record, Pair):
        add(f"chosen length ({unit})", length(record.chosen))
        add(f"rejected length ({unit})", length(record.rejected))
    else:
        for answer in answers_of(record):
            add(f"answer length ({unit})", length(answer))
    match record:
        case Binary(label=label):
            counts["good" if label else "bad"] += 1
        case Scored(scores=scores):
            add("answers a prompt", len(scores))
            counts["rows with tied scores"] += len(set(scores)) < len(scores)
            for score in scores:
                add("score", score)
        case Votes(completions=completions, votes=votes):
            add("answers a prompt", len(completions))
            add("votes a row", len(votes))
        case Steps(labels=labels):
            add("steps", len(labels))
            counts["wrong steps"] += labels.count(False)
    if record.weight != 1.0:
        add("weight", record.weight)
    for name, value in record.fields.items():
        add(name, value)
