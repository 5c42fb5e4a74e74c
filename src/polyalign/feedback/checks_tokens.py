"""Findings about a tokenizer: template faults, what limits cut, length bias in tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from polyalign.feedback.finder import Findings
from polyalign.feedback.payloads import canonical
from polyalign.feedback.records import Quadruple
from polyalign.feedback.report import EXAMPLES, Finding
from polyalign.feedback.statistics import LengthBias, answers_of, preferences
from polyalign.feedback.table import FeedbackSet
from polyalign.feedback.templates import TemplateFaults


def template_findings(
    base: FeedbackSet, faults: TemplateFaults, tokenizer: Any, make: Findings
) -> Iterator[Finding]:
    """What the tokenizer and its template do that they should not."""
    yield from make.make(
        "error",
        "template-missing",
        "conversations, but the tokenizer has no chat template:",
        faults.without_template,
    )
    refused = [row for row, _ in faults.refused]
    yield from make.make(
        "error",
        "template-refused",
        "conversations that the chat template refuses:",
        refused,
        details=[{"reason": reason} for _, reason in faults.refused[:EXAMPLES]],
        removed=True,
    )
    yield from make.make(
        "error",
        "template-prefix",
        "the template renders the prompt differently once the answer follows:",
        faults.text_prefix,
    )
    yield from make.make(
        "warning",
        "token-prefix",
        "the prompt's tokens are not the first tokens of prompt and answer:",
        faults.token_prefix,
    )
    yield from make.make(
        "error", "bos-doubled", "texts that begin with BOS twice:", faults.doubled_bos
    )
    yield from make.make(
        "note",
        "bos-in-text",
        "texts that hold BOS already (a tokenizer call that adds special tokens doubles it):",
        faults.added_bos,
    )
    yield from make.make(
        "warning",
        "bos-missing",
        "the tokenizer begins texts with BOS, the chat template does not:",
        faults.missing_bos,
    )
    yield from make.make(
        "warning",
        "end-missing",
        "answers after which no end token follows (the model will not learn to stop):",
        faults.missing_end,
    )
    pad, eos = getattr(tokenizer, "pad_token_id", None), tokenizer.eos_token_id
    if pad is not None and pad == eos:
        yield Finding(
            "note",
            "pad-is-eos",
            "the pad token is the end token (harmless here: masks come from positions):",
            1,
            1,
            unit="tokenizer",
        )


def limit_findings(
    faults: TemplateFaults, max_length: int | None, make: Findings
) -> Iterator[Finding]:
    """What a length limit takes from answers."""
    yield from make.make(
        "warning",
        "truncated",
        f"answers cut at max_length {max_length}:",
        faults.truncated,
        count=faults.slots_truncated,
        of=faults.slots,
        unit="answers",
    )
    all_gone = faults.slots_emptied == faults.slots
    yield from make.make(
        "error" if all_gone else "warning",
        "emptied",
        f"answers of which max_length {max_length} leaves nothing:",
        faults.emptied,
        count=faults.slots_emptied,
        of=faults.slots,
        unit="answers",
        removed=True,
    )


def token_length_bias(base: FeedbackSet, faults: TemplateFaults) -> LengthBias | None:
    """Length bias by the lengths that the tokenizer gave, answers in the records' order."""
    if base.kind is Quadruple:
        return None
    longer = decided = equal = 0
    for index, record in enumerate(base):
        lengths = faults.answer_lengths[index] if index < len(faults.answer_lengths) else []
        answers = answers_of(record)
        if len(lengths) != len(answers):
            continue
        # Identical answers have identical lengths, so the text finds the length.
        by_text = {canonical(a): n for a, n in zip(answers, lengths, strict=True)}
        for _, better, worse in preferences(record):
            a, b = by_text[canonical(better)], by_text[canonical(worse)]
            longer, decided, equal = longer + (a > b), decided + (a != b), equal + (a == b)
    return LengthBias(longer, decided, equal, "tokens")
