"""``check``: what is wrong or risky in feedback, before compute is spent on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from polyalign.feedback.checks_tokens import (
    limit_findings,
    template_findings,
    token_length_bias,
)
from polyalign.feedback.duplicates import exact_duplicates, near_duplicates
from polyalign.feedback.finder import Findings
from polyalign.feedback.payloads import canonical, is_blank, is_conversation, text_of
from polyalign.feedback.records import (
    Binary,
    Demonstration,
    Pair,
    Prompt,
    Quadruple,
    Record,
    Scored,
    Votes,
    kind_name,
)
from polyalign.feedback.report import EXAMPLES, CheckReport, Finding, Level
from polyalign.feedback.splitting import prompt_identity, prompts_of
from polyalign.feedback.statistics import (
    LengthBias,
    agreement,
    answers_of,
    length_bias,
    preferences,
)
from polyalign.feedback.table import FeedbackSet
from polyalign.feedback.templates import template_faults

STRONG_BIAS = 0.10
"""A length bias is a warning where its whole interval is further than this from a half."""


def check(
    feedback: Iterable[Record],
    *,
    against: Iterable[Record] | None = None,
    tokenizer: Any = None,
    template: str | None = None,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    near: bool = True,
) -> CheckReport:
    """Look through feedback for what is wrong (errors), risky (warnings) or good to know (notes).

    ``against`` is the other part of a split, whose prompts must not appear here; ``tokenizer``
    adds the checks of its chat template (or of ``template``) and, with ``max_length``, of what
    would be cut; ``near=False`` leaves out the search for near duplicates.
    """
    base = FeedbackSet.of(feedback).held()
    make = Findings(base)
    report = CheckReport(base.source, base.format, kind_name(base.kind), len(base))
    report.add(_malformed(base))
    report.add(_empty(base, make))
    report.add(_identical(base, make))
    report.add(_roles(base, make))
    report.add(_duplicates(base, make, near))
    report.add(_contradictions(base, make))
    report.add(_labels(base, make))
    if against is not None:
        report.add(_shared_prompts(base, FeedbackSet.of(against), make))
    report.add(_length_bias(length_bias(base), report))
    if base.kind is Votes:
        _annotators(base, report)
    if tokenizer is not None:
        faults = template_faults(
            base,
            tokenizer,
            template=template,
            max_length=max_length,
            max_prompt_length=max_prompt_length,
        )
        report.add(template_findings(base, faults, tokenizer, make))
        report.add(limit_findings(faults, max_length, make))
        in_tokens = token_length_bias(base, faults)
        if in_tokens is not None:
            report.add(_length_bias(in_tokens, report))
    return report


def _malformed(base: FeedbackSet) -> Iterator[Finding]:
    if base.rejects:
        examples = [
            {"file": r.file, "row": r.row, "field": r.field, "reason": r.reason}
            for r in base.rejects[:EXAMPLES]
        ]
        yield Finding(
            "error",
            "malformed",
            "rows that cannot be read:",
            len(base.rejects),
            len(base) + len(base.rejects),
            tuple(examples),
            removed=True,
        )


def _empty(base: FeedbackSet, make: Findings) -> Iterator[Finding]:
    rows: list[int] = []
    details: list[dict[str, Any]] = []
    count = total = 0
    prompts: list[int] = []
    for index, record in enumerate(base):
        blank = [i for i, answer in enumerate(answers_of(record)) if is_blank(answer)]
        total += len(answers_of(record))
        count += len(blank)
        if blank:
            rows.append(index)
            details.append({"answers": _names(record, blank)})
        if not isinstance(record, Demonstration) and any(is_blank(p) for p in prompts_of(record)):
            prompts.append(index)
    # Voters and raters saw the empty answers of votes and scores: they are data there.
    judged = base.kind in (Votes, Scored)
    yield from make.make(
        "warning" if judged else "error",
        "empty-completion",
        "answers without any text:",
        rows,
        details=details,
        removed=not judged,
        count=count,
        of=total,
        unit="answers",
    )
    error: Level = "error" if base.kind is Prompt else "warning"
    yield from make.make(
        error, "empty-prompt", "prompts without any text:", prompts, removed=base.kind is Prompt
    )


def _names(record: Record, places: list[int]) -> str:
    names = ("chosen", "rejected", *record.others) if isinstance(record, Pair) else None
    return " and ".join(names[i] if names else str(i) for i in places)


def _identical(base: FeedbackSet, make: Findings) -> Iterator[Finding]:
    rows = []
    for index, record in enumerate(base):
        if not isinstance(record, (Pair, Scored, Votes)):
            continue
        answers = answers_of(record)
        if isinstance(record, Pair):
            answers = answers[:2]  # a gold answer may well be the chosen one
        texts = [text_of(answer) for answer in answers]
        if len(set(texts)) < len(texts):
            rows.append(index)
    if base.kind is Pair:
        yield from make.make(
            "error", "identical-answers", "chosen equal to rejected:", rows, removed=True
        )
    else:
        yield from make.make(
            "warning", "identical-answers", "rows with the same answer twice:", rows
        )


def _roles(base: FeedbackSet, make: Findings) -> Iterator[Finding]:
    """Conversational answers that no assistant gives, and prompts that end with one."""
    answers, prompts = [], []
    for index, record in enumerate(base):
        for answer in answers_of(record):
            if is_conversation(answer) and answer[-1]["role"] != "assistant":
                answers.append(index)
                break
        if any(is_conversation(p) and p[-1]["role"] == "assistant" for p in _prompts(record)):
            prompts.append(index)
    yield from make.make(
        "error",
        "answer-role",
        "answers that do not end with an assistant turn:",
        answers,
        removed=True,
    )
    yield from make.make(
        "warning", "prompt-role", "prompts that already end with an assistant turn:", prompts
    )


def _prompts(record: Any) -> list[Any]:
    return list(record.prompts) if isinstance(record, Quadruple) else [record.prompt]


def _duplicates(base: FeedbackSet, make: Findings, near: bool) -> Iterator[Finding]:
    repeats = sorted((row, group[0]) for group in exact_duplicates(base) for row in group[1:])
    yield from make.make(
        "warning",
        "exact-duplicate",
        "rows that repeat an earlier one exactly:",
        [row for row, _ in repeats],
        details=[{"repeats": base[first].key} for _, first in repeats[:EXAMPLES]],
        removed=True,
    )
    if not near:
        return
    alike = {j: (i, similarity) for i, j, similarity in reversed(near_duplicates(base))}
    rows = sorted(alike)
    yield from make.make(
        "warning",
        "near-duplicate",
        "rows nearly the same as an earlier one:",
        rows,
        details=[
            {"resembles": base[alike[row][0]].key, "similarity": round(alike[row][1], 3)}
            for row in rows[:EXAMPLES]
        ],
    )


def _contradictions(base: FeedbackSet, make: Findings) -> Iterator[Finding]:
    """Rows that prefer A to B beside rows that prefer B to A, or call one answer good and bad."""
    stated: dict[tuple[int, int, int], list[int]] = {}
    labels: dict[tuple[int, int], dict[bool, list[int]]] = {}
    for index, record in enumerate(base):
        if isinstance(record, Binary):
            place = (_hash(prompt_identity(record.prompt)), _hash(canonical(record.completion)))
            labels.setdefault(place, {}).setdefault(record.label, []).append(index)
        for prompt, better, worse in preferences(record):
            triple = (
                _hash(prompt_identity(prompt)),
                _hash(canonical(better)),
                _hash(canonical(worse)),
            )
            if triple[1] != triple[2]:
                stated.setdefault(triple, []).append(index)
    rows: dict[int, int] = {}
    for (prompt, better, worse), ours in stated.items():
        theirs = stated.get((prompt, worse, better), [])
        for row in ours if theirs else []:
            rows.setdefault(row, theirs[0])
    for both in labels.values():
        if len(both) == 2:
            for label, members in both.items():
                for row in members:
                    rows.setdefault(row, both[not label][0])
    order = sorted(rows)
    yield from make.make(
        "warning",
        "contradiction",
        "rows that another row contradicts:",
        order,
        details=[{"against": base[rows[row]].key} for row in order[:EXAMPLES]],
        removed=base.kind in (Pair, Binary),
    )


def _hash(text: str) -> int:
    # Within one process: smaller than the texts, and never written anywhere.
    return hash(text)


def _labels(base: FeedbackSet, make: Findings) -> Iterator[Finding]:
    """Feedback that prefers nothing: labels all equal, scores all tied."""
    if base.kind is Binary:
        counts = Counter(record.label for record in base if isinstance(record, Binary))
        if len(counts) == 1:
            word = "good" if True in counts else "bad"
            yield from make.make(
                "warning", "one-label", f"every answer is labelled {word}:", range(len(base))
            )
    if base.kind is Scored:
        tied = [
            index
            for index, record in enumerate(base)
            if isinstance(record, Scored)
            and len(record.scores) > 1
            and len(set(record.scores)) == 1
        ]
        yield from make.make(
            "note", "tied-scores", "rows whose scores are all equal (they make no pair):", tied
        )
    if base.kind is Votes:
        silent = [index for index, record in enumerate(base) if not any(preferences(record))]
        yield from make.make(
            "note", "tied-votes", "rows that no majority decides (they make no pair):", silent
        )


def _shared_prompts(base: FeedbackSet, other: FeedbackSet, make: Findings) -> Iterator[Finding]:
    theirs = {prompt_identity(p) for record in other for p in prompts_of(record)}
    rows = [
        index
        for index, record in enumerate(base)
        if any(prompt_identity(p) in theirs for p in prompts_of(record))
    ]
    yield from make.make(
        "error",
        "shared-prompts",
        f"rows whose prompt also stands in {other.source}:",
        rows,
        removed=True,
    )


def _length_bias(bias: LengthBias, report: CheckReport) -> Iterator[Finding]:
    if not bias.decided:
        return
    report.facts[f"longer answer preferred ({bias.unit})"] = bias.to_dict()
    low, high = bias.interval
    strong = low > 0.5 + STRONG_BIAS or high < 0.5 - STRONG_BIAS
    taste = "longer" if bias.share > 0.5 else "shorter"
    code = "length-bias" if bias.unit == "characters" else "length-bias-tokens"
    if low > 0.5 or high < 0.5:
        yield Finding(
            "warning" if strong else "note",
            code,
            f"the {taste} answer tends to win (95% interval of the longer's share "
            f"{low:.1%} to {high:.1%}); the longer ({bias.unit}) won",
            bias.longer_won,
            bias.decided,
            unit="decided pairs",
        )


def _annotators(base: FeedbackSet, report: CheckReport) -> None:
    report.facts["annotators"] = agreement(base).to_dict()
