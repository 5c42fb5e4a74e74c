"""Payloads: turning what stands in a row into a string or a tuple of messages.

A plain prompt stays a string (the policy reads it as raw text); anything conversational
becomes a tuple of ``{"role", "content", …}`` mappings (the policy applies its template).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from polyalign.feedback.records import Message, Payload

Row = Mapping[str, Any]
"""One row of a file, as read."""

SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
"""Role names of ShareGPT-like files in the words of chat templates."""


class RowError(Exception):
    """A row does not hold what its format needs: ``field`` and ``reason`` say what."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class ImageError(Exception):
    """A row holds an image."""


def type_name(value: Any) -> str:
    """What a value is, in words of JSON.

    >>> type_name(None), type_name([1]), type_name(True)
    ('null', 'a list', 'a boolean')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    return type(value).__name__


def need(row: Row, field: str) -> Any:
    """The value of ``field``; raises :class:`RowError` when it is missing or null."""
    if field not in row:
        raise RowError(field, "is missing")
    if row[field] is None:
        raise RowError(field, "is null")
    return row[field]


def is_messages(value: Any) -> bool:
    """Whether a value looks like a conversation: a list of objects with a role."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and isinstance(value[0], Mapping)
        and any(name in value[0] for name in ("role", "from", "content", "value"))
    )


def text_content(content: Any, field: str) -> str:
    """The text of a message's content, which may be given in parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise RowError(field, f"should be a string, not {type_name(content)}")
    texts: list[str] = []
    for part in content:
        if not isinstance(part, Mapping):
            raise RowError(field, f"holds {type_name(part)} where a text part should stand")
        kind = part.get("type", "text")
        if "image" in str(kind) or any("image" in str(name) for name in part if part[name]):
            raise ImageError
        if not isinstance(part.get("text"), str):
            raise RowError(field, f"holds a part of type {kind!r} without text")
        texts.append(part["text"])
    return "".join(texts)


def as_message(value: Any, field: str) -> Message:
    """One message: ``role`` and ``content`` (or ``from`` and ``value``), nothing else changed."""
    if not isinstance(value, Mapping):
        raise RowError(field, f"should be a message (role, content), not {type_name(value)}")
    role = value.get("role")
    if role is None:
        role = value.get("from")
        role = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    if role is None:
        raise RowError(field, "has no role")
    if not isinstance(role, str) or not role:
        raise RowError(f"{field}.role", f"should be a name, not {type_name(role)}")
    content = value.get("content", value.get("value"))
    others = {
        name: part
        for name, part in value.items()
        if name not in ("role", "from", "content", "value") and part is not None
    }
    if content is None:
        if not others.get("tool_calls"):
            raise RowError(f"{field}.content", "is null" if "content" in value else "is missing")
        return {"role": role, "content": "", **others}
    return {"role": role, "content": text_content(content, f"{field}.content"), **others}


def as_messages(value: Any, field: str) -> tuple[Message, ...]:
    """A conversation: a non-empty list of messages (a single message counts as a list)."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise RowError(field, f"should be a list of messages, not {type_name(value)}")
    if not value:
        raise RowError(field, "is an empty list")
    return tuple(as_message(turn, f"{field}[{index}]") for index, turn in enumerate(value))


def as_payload(value: Any, field: str) -> Payload:
    """A string, or a conversation as a tuple of messages."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple, Mapping)):
        return as_messages(value, field)
    raise RowError(field, f"should be text or a list of messages, not {type_name(value)}")


def as_answer(value: Any, field: str, prompt: Payload) -> Payload:
    """A completion in the form of its prompt: text after a conversation is an assistant turn."""
    answer = as_payload(value, field)
    if isinstance(answer, str) and is_conversation(prompt):
        return ({"role": "assistant", "content": answer},)
    return without_prefix(answer, prompt)


def without_prefix(answer: Payload, prompt: Payload) -> Payload:
    """The turns of ``answer`` after those of ``prompt``, where it repeats them."""
    if is_conversation(answer) and is_conversation(prompt):
        n = len(prompt)
        if len(answer) > n and tuple(answer[:n]) == tuple(prompt):
            return answer[n:]
    return answer


def user_turn(text: str) -> tuple[Message, ...]:
    """A prompt of one user turn."""
    return ({"role": "user", "content": text},)


def is_conversation(payload: Payload) -> bool:
    """Whether a payload is a tuple of messages."""
    return isinstance(payload, (tuple, list)) and any(isinstance(t, Mapping) for t in payload)


def text_of(payload: Payload) -> str:
    """The words of a payload: the text itself, or the turns' contents, one a line."""
    if isinstance(payload, str):
        return payload
    if is_conversation(payload):
        return "\n".join(str(turn.get("content", "")) for turn in payload)
    return json.dumps(payload, default=str)


def is_blank(payload: Payload) -> bool:
    """Whether there is nothing to train on: no text beyond white space and no tool call."""
    if isinstance(payload, str):
        return not payload.strip()
    if is_conversation(payload):
        return all(
            not str(turn.get("content", "")).strip() and not turn.get("tool_calls")
            for turn in payload
        )
    return isinstance(payload, (tuple, list)) and len(payload) == 0


def canonical(value: Any) -> str:
    """One spelling for one value: JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def digest(value: Any) -> str:
    """The first 16 hexadecimal digits of the sha256 of a value's canonical spelling."""
    return hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()[:16]


# JSON.


def spelled(value: Any) -> str:
    """JSON of a row, whatever its cells hold."""
    return json.dumps(value, ensure_ascii=True, default=cell_text)


def cell_text(value: Any) -> Any:
    """What JSON has no word for: numbers and arrays of numpy, dates, bytes."""
    for name in ("tolist", "isoformat"):
        if hasattr(value, name):
            return getattr(value, name)()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def plain(row: Any) -> Any:
    """A row with only what JSON holds."""
    return json.loads(spelled(row))


# Implicit prompts.


def split_common_turns(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """The shared first turns of two conversations, and what follows in each (never nothing)."""
    limit = min(len(chosen), len(rejected)) - 1
    n = 0
    while n < limit and chosen[n] == rejected[n]:
        n += 1
    return chosen[:n], chosen[n:], rejected[n:]


def split_common_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The shared first words of two texts, and what follows in each.

    The cut is at a word's end and the space goes to the completions, as tokenizers want it.

    >>> split_common_text("The sky is blue.", "The sky is black.")
    ('The sky is', ' blue.', ' black.')
    """
    if chosen == rejected:
        return "", chosen, rejected
    n = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        n += 1
    while n > 0 and not (chosen[n : n + 1].isspace() and rejected[n : n + 1].isspace()):
        n -= 1
    while n > 0 and chosen[n - 1].isspace():
        n -= 1
    return chosen[:n], chosen[n:], rejected[n:]


# Transcripts in the style of Anthropic's HH.

_TURN = re.compile(r"\n\n(Human|Assistant):")


def is_transcript(value: Any) -> bool:
    """Whether a text is a transcript with Human: and Assistant: turns, as in HH."""
    return (
        isinstance(value, str)
        and re.match(r"\s*Human:", value) is not None
        and ("\n\nAssistant:" in value)
    )


def parse_transcript(text: str, field: str) -> tuple[Message, ...]:
    """The turns of a transcript, which must alternate."""
    parts = _TURN.split("\n\n" + text.lstrip())
    turns: list[Message] = []
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1]["role"] == role:
            raise RowError(field, f"has two {speaker} turns in a row (turn {len(turns) + 1})")
        turns.append({"role": role, "content": content.strip()})
    return tuple(turns)
