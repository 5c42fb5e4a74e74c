"""Faults of a tokenizer and its chat template on given feedback, and what a length limit cuts.

Takes any tokenizer with the interface of ``transformers``; nothing is imported from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from polyalign.errors import OptionError
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
)

CHUNK = 256
"""Rows tokenised together."""

Slot = tuple[Payload, Payload | None]


def slots_of(record: Record) -> list[Slot]:
    """The (prompt, answer) pairs of a record that a policy would score."""
    match record:
        case Prompt(prompt=prompt):
            return [(prompt, None)]
        case Pair(prompt=prompt, chosen=chosen, rejected=rejected, others=others):
            return [(prompt, answer) for answer in (chosen, rejected, *others.values())]
        case (
            Demonstration(prompt=prompt, completion=answer)
            | Binary(prompt=prompt, completion=answer)
        ):
            return [(prompt, answer)]
        case Scored(prompt=prompt, completions=many) | Votes(prompt=prompt, completions=many):
            return [(prompt, answer) for answer in many]
        case Quadruple(prompts=prompts, completions=answers):
            return [(prompt, answer) for prompt in prompts for answer in answers]
        case Steps(prompt=prompt, steps=steps):
            joined: Payload = "\n".join(text_of(step) for step in steps)
            if is_conversation(prompt):
                joined = ({"role": "assistant", "content": joined},)
            return [(prompt, joined)]
    return []


@dataclass
class TemplateFaults:
    """Rows (by index) with each fault, and the token lengths of every prompt and answer."""

    refused: list[tuple[int, str]] = field(default_factory=list)
    text_prefix: list[int] = field(default_factory=list)
    token_prefix: list[int] = field(default_factory=list)
    doubled_bos: list[int] = field(default_factory=list)
    added_bos: list[int] = field(default_factory=list)
    missing_bos: list[int] = field(default_factory=list)
    missing_end: list[int] = field(default_factory=list)
    prompt_lengths: list[int] = field(default_factory=list)
    answer_lengths: list[list[int]] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    emptied: list[int] = field(default_factory=list)
    without_template: list[int] = field(default_factory=list)
    slots: int = 0
    slots_truncated: int = 0
    slots_emptied: int = 0


class Encoder:
    """Renders and tokenises payloads as a policy would, but keeps every fault."""

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.bos = tokenizer.bos_token_id
        plain = self.ids(["a"], special=True)[0]
        self.adds_bos = self.bos is not None and plain[:1] == [self.bos]
        self.ends = self._end_ids()

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered."""
        return bool(self.template or getattr(self.tokenizer, "chat_template", None))

    def ids(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Token ids of texts; ``special`` lets the tokenizer add its own tokens."""
        if not texts:
            return []
        found = self.tokenizer(list(texts), add_special_tokens=special)["input_ids"]
        return [list(ids) for ids in found]

    def render(
        self, messages: Sequence[Mapping[str, Any]], generate: bool, tools: Any = None
    ) -> str:
        """The text of a conversation by the chat template."""
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": generate}
        if self.template:
            options["chat_template"] = self.template
        if tools:
            options["tools"] = tools
        text: str = self.tokenizer.apply_chat_template(list(messages), **options)
        return text

    def _end_ids(self) -> set[int]:
        """Tokens that may end an answer: EOS and every special token but BOS and PAD."""
        ends = set(getattr(self.tokenizer, "all_special_ids", []))
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        ends |= {i for i, token in added.items() if getattr(token, "special", False)}
        others = {self.bos, getattr(self.tokenizer, "pad_token_id", None)}
        eos = self.tokenizer.eos_token_id
        return (ends - others) | ({eos} if eos is not None else set())


@dataclass(frozen=True)
class Rendered:
    """One slot as text: the prompt, the whole, and where the answer's own words end."""

    row: int
    prompt: str
    whole: str | None
    tail: str
    chat: bool


def template_faults(
    records: Iterable[Record],
    tokenizer: Any,
    *,
    template: str | None = None,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
) -> TemplateFaults:
    """Look at every row as the tokenizer and its template (or ``template``) make it.

    A prompt is cut to ``max_prompt_length`` and then to ``max_length`` tokens, an answer to what
    room is left: an answer is *truncated* where some of it is lost, *emptied* where all is.
    """
    for name, value in (("max_length", max_length), ("max_prompt_length", max_prompt_length)):
        if value is not None and value < 1:
            raise OptionError(f"{name} is {value}.", "Give a number of tokens of at least 1.")
    encoder = Encoder(tokenizer, template)
    faults = TemplateFaults()
    numbered = enumerate(records)
    while chunk := list(islice(numbered, CHUNK)):
        rendered = [slot for row, record in chunk for slot in _render(row, record, encoder, faults)]
        _measure(rendered, encoder, faults, max_length, max_prompt_length)
    return faults


def _render(
    row: int, record: Record, encoder: Encoder, faults: TemplateFaults
) -> Iterator[Rendered]:
    """The slots of a record as text, or a fault where the template gives none."""
    tools = record.meta.get("tools")
    tools = tools if isinstance(tools, list) else None
    for prompt, answer in slots_of(record):
        chat = is_conversation(prompt) or is_conversation(answer)
        if not chat:
            text = text_of(prompt)
            own = None if answer is None else text_of(answer)
            yield Rendered(row, text, None if own is None else text + own, "", False)
            continue
        if not encoder.has_template:
            _once(faults.without_template, row)
            continue
        turns = list(prompt) if is_conversation(prompt) else []
        try:
            opened = encoder.render(turns, True, tools) if turns else ""
            if answer is None:
                yield Rendered(row, opened, None, "", True)
                continue
            whole = encoder.render([*turns, *answer], False, tools)
        except Exception as error:  # templates raise what they like
            if not any(index == row for index, _ in faults.refused[-1:]):
                faults.refused.append((row, str(error).splitlines()[0] if str(error) else "?"))
            continue
        words = str(answer[-1].get("content", "")).strip()
        tail = whole[whole.rfind(words) + len(words) :] if words else ""
        yield Rendered(row, opened, whole, tail, True)


def _measure(
    slots: list[Rendered],
    encoder: Encoder,
    faults: TemplateFaults,
    max_length: int | None,
    max_prompt_length: int | None,
) -> None:
    """Tokenise the slots together and note what is wrong with each."""
    prompts = dict.fromkeys(slot.prompt for slot in slots)
    prompt_ids = dict(zip(prompts, encoder.ids(list(prompts)), strict=True))
    wholes = dict.fromkeys(slot.whole for slot in slots if slot.whole is not None)
    whole_ids = dict(zip(wholes, encoder.ids(list(wholes)), strict=True))
    tails = dict.fromkeys(slot.tail for slot in slots if slot.chat)
    tail_ids = dict(zip(tails, encoder.ids(list(tails)), strict=True))
    for slot in slots:
        head = prompt_ids[slot.prompt]
        faults.slots += 1
        _note_bos(slot, head, encoder, faults)
        if slot.whole is None:
            _lengths(slot, len(head), None, faults, max_length, max_prompt_length)
            continue
        ids = whole_ids[slot.whole]
        if not slot.whole.startswith(slot.prompt):
            _once(faults.text_prefix, slot.row)
        elif ids[: len(head)] != head:
            _once(faults.token_prefix, slot.row)
        answer = max(len(ids) - len(head), 0)
        if slot.chat:
            if slot.tail != "" and not encoder.ends & set(tail_ids[slot.tail]):
                _once(faults.missing_end, slot.row)
        elif encoder.tokenizer.eos_token_id is None:
            _once(faults.missing_end, slot.row)
        else:
            answer += 1  # EOS, which the policy adds to plain text
            head_bos = encoder.adds_bos and head[:1] != [encoder.bos]
            _lengths(slot, len(head) + head_bos, answer, faults, max_length, max_prompt_length)
            continue
        _lengths(slot, len(head), answer, faults, max_length, max_prompt_length)


def _note_bos(slot: Rendered, head: list[int], encoder: Encoder, faults: TemplateFaults) -> None:
    """BOS twice in the text, once more by the tokenizer, or nowhere."""
    bos = encoder.bos
    if bos is None or not head:
        return
    if head[:2] == [bos, bos]:
        _once(faults.doubled_bos, slot.row)
    elif encoder.adds_bos and head[0] == bos:
        _once(faults.added_bos, slot.row)
    elif encoder.adds_bos and slot.chat:
        _once(faults.missing_bos, slot.row)


def _lengths(
    slot: Rendered,
    prompt: int,
    answer: int | None,
    faults: TemplateFaults,
    max_length: int | None,
    max_prompt_length: int | None,
) -> None:
    """Note the lengths, and what the limits would take."""
    faults.prompt_lengths.append(prompt)
    while len(faults.answer_lengths) <= slot.row:
        faults.answer_lengths.append([])
    if answer is None:
        if max_length is not None and prompt > max_length:
            _once(faults.truncated, slot.row)
            faults.slots_truncated += 1
        return
    faults.answer_lengths[slot.row].append(answer)
    if max_length is None:
        return
    kept = min([prompt, max_length, *([max_prompt_length] if max_prompt_length else [])])
    room = max_length - kept
    if room <= 0:
        _once(faults.emptied, slot.row)
        faults.slots_emptied += 1
    elif room < answer:
        _once(faults.truncated, slot.row)
        faults.slots_truncated += 1


def _once(rows: list[int], row: int) -> None:
    """Add a row that was not the last one added."""
    if not rows or rows[-1] != row:
        rows.append(row)
