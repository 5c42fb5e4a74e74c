"""Our figures on the real feedback sets beside what each set's README says.

    python scripts/data_check.py ../shared/data > docs/data-check.md

Every row of the table is computed with the public functions of ``polyalign.feedback``; the
tests assert the same rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from polyalign.feedback import (
    FeedbackSet,
    Pair,
    Scored,
    Steps,
    Votes,
    agreement,
    check,
    convert,
    length_bias,
    read,
)


@dataclass(frozen=True)
class Figure:
    """One figure of a README: which set, which files, what it says, and how we get it.

    ``digits`` are those after the point that the README gives: ours is compared rounded.
    """

    name: str
    part: str
    what: str
    said: float
    ours: Callable[[FeedbackSet], float]
    digits: int = 0
    percent: bool = False

    def spelled(self, value: float) -> str:
        """A value as the README writes it."""
        return f"{value:.{self.digits}%}" if self.percent else f"{value:,.{self.digits}f}"

    def compute(self, folder: Path) -> float:
        """Our value."""
        return self.ours(feedback_of(folder, self.name, self.part))


@cache
def feedback_of(folder: Path, name: str, part: str) -> FeedbackSet:
    """One part of a set, or both."""
    parts = ("train", "test") if part == "both" else (part,)
    return read([folder / name / f"{p}.jsonl.gz" for p in parts]).held()


@cache
def _report(feedback: FeedbackSet) -> dict[str, int]:
    return {finding.code: finding.count for finding in check(feedback, near=False).findings}


def found(code: str) -> Callable[[FeedbackSet], float]:
    """How often ``check`` finds something."""
    return lambda feedback: float(_report(feedback).get(code, 0))


def bias_of(source: str) -> Callable[[FeedbackSet], float]:
    """How often the longer answer is the chosen one, in the pairs of one source."""

    def figure(feedback: FeedbackSet) -> float:
        return length_bias(r for r in feedback if r.meta["source"] == source).share

    return figure


def _share(flags: Iterable[bool]) -> float:
    held = list(flags)
    return sum(held) / len(held)


def judge_agreement(judge: str) -> Callable[[FeedbackSet], float]:
    """How often an automatic judge sides with the human majority, where both decide."""

    def figure(feedback: FeedbackSet) -> float:
        decided = convert(feedback, Pair)
        return _share(
            (pair.meta["judges"][judge] == "a") == (pair.chosen == _answers(feedback)[pair.key])
            for pair in decided
            if isinstance(pair, Pair) and pair.meta["judges"][judge] != "tie"
        )

    return figure


@cache
def _answers(feedback: FeedbackSet) -> dict[str, object]:
    return {r.key: r.completions[0] for r in feedback if isinstance(r, Votes)}


def plurality_is_gold(feedback: FeedbackSet) -> float:
    """How often most votes (of a, b and tie) agree with the authors' gold label."""
    hits = []
    for record in feedback:
        gold = {"a": 1.0, "b": 0.0, "tie": 0.5}.get(record.meta.get("gold") or "")
        if gold is None or not isinstance(record, Votes):
            continue
        outcomes = [vote[3] for vote in record.votes]
        counts = sorted(((outcomes.count(o), o) for o in (1.0, 0.0, 0.5)), reverse=True)
        if counts[0][0] > counts[1][0]:
            hits.append(counts[0][1] == gold)
    return _share(hits)


def mixed_correctness(feedback: FeedbackSet) -> float:
    """The share of questions with right and wrong solutions."""
    return _share(len(set(r.scores)) > 1 for r in feedback if isinstance(r, Scored))


def rows(feedback: FeedbackSet) -> float:
    """Rows read."""
    return float(len(feedback))


def steps(feedback: FeedbackSet) -> list[Steps]:
    """The stepwise records of a set."""
    return [record for record in feedback if isinstance(record, Steps)]


def right_in_spite_of_a_mistake(feedback: FeedbackSet) -> float:
    """Traces with a right answer and a step marked wrong."""
    return float(sum(r.meta["correct"] and not all(r.labels) for r in steps(feedback)))


def wrong_without_a_mistake(feedback: FeedbackSet) -> float:
    """Traces with a wrong answer and no step marked wrong."""
    return float(sum(not r.meta["correct"] and all(r.labels) for r in steps(feedback)))


def _counts() -> list[Figure]:
    sizes = {
        "human_pairs": (8000, 1000),
        "hh_harmless": (1585, 252),
        "ai_pairs": (171, 64),
        "binary_feedback": (188, 55),
        "llmbar": (612, 81),
        "qa_feedback": (330, 80),
        "llmfao": (1477, 156),
        "pandalm": (650, 102),
        "ukp_convarg": (11501, 1955),
        "multi_scores": (628, 170),
        "gsm8k_solutions": (887, 190),
        "step_labels": (1560, 170),
    }
    return [
        Figure(name, part, "rows", n, rows)
        for name, pair in sizes.items()
        for part, n in zip(("train", "test"), pair, strict=True)
    ]


def _found() -> list[Figure]:
    table = [
        ("llmfao", "empty responses", "empty-completion", 161, 39),
        ("pandalm", "empty responses", "empty-completion", 41, 10),
        ("qa_feedback", "empty responses", "empty-completion", 0, 0),
        ("ukp_convarg", "empty responses", "empty-completion", 0, 0),
        ("ukp_convarg", "identical responses", "identical-answers", 6, 2),
        ("llmfao", "identical responses", "identical-answers", 0, 0),
        ("pandalm", "identical responses", "identical-answers", 0, 0),
        ("multi_scores", "identical responses", "identical-answers", 44, 12),
        ("gsm8k_solutions", "identical responses", "identical-answers", 4, 3),
        ("human_pairs", "chosen equal to rejected", "identical-answers", 0, 0),
        ("human_pairs", "empty answers", "empty-completion", 0, 0),
        ("human_pairs", "repeated pairs", "exact-duplicate", 0, 0),
        ("hh_harmless", "chosen equal to rejected", "identical-answers", 0, 0),
        ("hh_harmless", "empty answers", "empty-completion", 0, 0),
        ("hh_harmless", "repeated pairs", "exact-duplicate", 0, 0),
        ("ai_pairs", "chosen equal to rejected", "identical-answers", 0, 0),
        ("ai_pairs", "empty answers", "empty-completion", 0, 0),
        ("llmbar", "chosen equal to rejected", "identical-answers", 0, 0),
        ("llmbar", "empty answers", "empty-completion", 0, 0),
        ("llmbar", "repeated pairs", "exact-duplicate", 0, 0),
        ("binary_feedback", "empty answers", "empty-completion", 0, 0),
        ("binary_feedback", "repeated rows", "exact-duplicate", 0, 0),
    ]
    return [
        Figure(name, part, what, said, found(code))
        for name, what, code, *both in table
        for part, said in zip(("train", "test"), both, strict=True)
    ]


def _shares() -> list[Figure]:
    bias = {
        "qa_feedback": 0.51,
        "llmbar": 0.47,
        "pandalm": 0.62,
        "ukp_convarg": 0.79,
        "llmfao": 0.39,
        "hh_harmless": 0.44,
    }
    figures = [
        Figure(
            "human_pairs",
            "both",
            f"longer answer chosen, {source}",
            said,
            bias_of(source),
            percent=True,
        )
        for source, said in bias.items()
    ]
    for name, said in (("llmfao", 0.53), ("pandalm", 0.92), ("ukp_convarg", 0.54)):
        figures.append(
            Figure(
                name,
                "both",
                "agreement of two voters",
                said,
                lambda feedback: agreement(feedback).agreement,
                2,
            )
        )
    for name, said in (("llmfao", 0.40), ("ukp_convarg", 0.22), ("qa_feedback", 0.13)):
        figures.append(
            Figure(
                name,
                "both",
                "share of ties",
                said,
                lambda feedback: agreement(feedback).tie_share,
                percent=True,
            )
        )
    for judge, said in (("gpt-4", 0.63), ("gpt-3.5-turbo-instruct", 0.65)):
        figures.append(
            Figure(
                "llmfao",
                "both",
                f"{judge} sides with the majority",
                said,
                judge_agreement(judge),
                percent=True,
            )
        )
    return [
        *figures,
        Figure(
            "ukp_convarg", "both", "plurality equals gold", 0.95, plurality_is_gold, percent=True
        ),
        Figure(
            "gsm8k_solutions",
            "both",
            "questions with right and wrong solutions",
            0.55,
            mixed_correctness,
            percent=True,
        ),
        Figure(
            "step_labels",
            "both",
            "right answer in spite of a mistake",
            165,
            right_in_spite_of_a_mistake,
        ),
        Figure(
            "step_labels", "both", "wrong answer, no mistake marked", 26, wrong_without_a_mistake
        ),
    ]


FIGURES = [*_counts(), *_found(), *_shares()]


def table(ours: Callable[[Figure], float]) -> str:
    """The page: one row a figure, with our value from ``ours``."""
    lines = [
        "# What the data check finds on real feedback",
        "",
        "Generated by `scripts/data_check.py`; the tests assert every row. *README* is the figure "
        "that the set's own README gives, *ours* what `polyalign.feedback` computes. Shares are "
        "over train and test together. A README's figure may be over its whole set, of which a "
        "part is held out, so agreement is to the digits it gives.",
        "",
        "Definitions: the *longer answer* by characters, pairs of equal length left out; "
        "*agreement of two voters* over all pairs of votes on one comparison, with a tie as a "
        "label of its own; *empty* means nothing but white space.",
        "",
        "| set | part | figure | README | ours |",
        "| --- | --- | --- | --- | --- |",
    ]
    for figure in FIGURES:
        said, value = figure.spelled(figure.said), figure.spelled(ours(figure))
        lines.append(f"| {figure.name} | {figure.part} | {figure.what} | {said} | {value} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    sys.stdout.write(table(lambda figure: figure.compute(place)))
