"""LLaMA-Factory's files: alpaca and sharegpt.

An ``instruction`` is a turn of a user, so these become conversations.
"""

from __future__ import annotations

from polyalign.feedback.formats import Parts, as_label, formed, has
from polyalign.feedback.formats_trl import last_assistant_turn
from polyalign.feedback.payloads import (
    Row,
    RowError,
    as_answer,
    as_messages,
    need,
    type_name,
    user_turn,
)
from polyalign.feedback.records import Binary, Demonstration, Message, Pair, Prompt

ALPACA = ("instruction", "input", "output", "system", "history")


def text_in(row: Row, field: str) -> str:
    """A column that holds text."""
    value = need(row, field)
    if not isinstance(value, str):
        raise RowError(field, f"should be a string, not {type_name(value)}")
    return value


def assistant(text: str) -> tuple[Message, ...]:
    """One turn of the assistant."""
    return ({"role": "assistant", "content": text},)


def alpaca_prompt(row: Row) -> tuple[Message, ...]:
    """system, history, then instruction and input as one user turn."""
    turns: list[Message] = []
    if row.get("system"):
        turns.append({"role": "system", "content": text_in(row, "system")})
    for index, past in enumerate(row.get("history") or []):
        if not (isinstance(past, (list, tuple)) and len(past) == 2):
            raise RowError(f"history[{index}]", "should be a question and an answer")
        turns += [
            {"role": "user", "content": str(past[0])},
            {"role": "assistant", "content": str(past[1])},
        ]
    texts = [text_in(row, "instruction")]
    if row.get("input"):
        texts.append(text_in(row, "input"))
    return (*turns, *user_turn("\n".join(texts)))


def _parse_alpaca(row: Row) -> Parts:
    return {"prompt": alpaca_prompt(row), "completion": assistant(text_in(row, "output"))}


def _parse_alpaca_pair(row: Row) -> Parts:
    answers = {name: assistant(text_in(row, name)) for name in ("chosen", "rejected")}
    return {"prompt": alpaca_prompt(row), **answers}


def _parse_alpaca_binary(row: Row) -> Parts:
    return {**_parse_alpaca(row), "label": as_label(need(row, "kto_tag"), "kto_tag")}


def _parse_alpaca_prompt(row: Row) -> Parts:
    return {"prompt": alpaca_prompt(row)}


def _sharegpt_turns(row: Row) -> tuple[Message, ...]:
    turns = as_messages(need(row, "conversations"), "conversations")
    if row.get("system"):
        turns = ({"role": "system", "content": text_in(row, "system")}, *turns)
    return turns


def _parse_sharegpt(row: Row) -> Parts:
    return last_assistant_turn(_sharegpt_turns(row), "conversations")


def _parse_sharegpt_binary(row: Row) -> Parts:
    name = "kto_tag" if "kto_tag" in row else "label"
    return {**_parse_sharegpt(row), "label": as_label(need(row, name), name)}


def _parse_sharegpt_pair(row: Row) -> Parts:
    prompt = _sharegpt_turns(row)
    if prompt[-1]["role"] == "assistant":
        raise RowError("conversations", "ends with an answer beside chosen and rejected")
    answers = {name: as_answer(need(row, name), name, prompt) for name in ("chosen", "rejected")}
    return {"prompt": prompt, **answers}


FACTORY = (
    formed(
        "LLaMA-Factory sharegpt preference",
        Pair,
        "conversations, chosen, rejected",
        lambda row: has(row, "conversations", "chosen", "rejected"),
        _parse_sharegpt_pair,
        "conversations",
        "chosen",
        "rejected",
        "system",
    ),
    formed(
        "LLaMA-Factory sharegpt with a thumb",
        Binary,
        "conversations, kto_tag",
        lambda row: (
            has(row, "conversations")
            and (has(row, "kto_tag") or isinstance(row.get("label"), bool))
        ),
        _parse_sharegpt_binary,
        "conversations",
        "kto_tag",
        "label",
        "system",
    ),
    formed(
        "LLaMA-Factory sharegpt",
        Demonstration,
        "conversations",
        lambda row: has(row, "conversations"),
        _parse_sharegpt,
        "conversations",
        "system",
    ),
    formed(
        "LLaMA-Factory alpaca preference",
        Pair,
        "instruction, input, chosen, rejected",
        lambda row: has(row, "instruction", "chosen", "rejected"),
        _parse_alpaca_pair,
        *ALPACA,
        "chosen",
        "rejected",
    ),
    formed(
        "LLaMA-Factory alpaca with a thumb",
        Binary,
        "instruction, input, output, kto_tag",
        lambda row: has(row, "instruction", "output", "kto_tag"),
        _parse_alpaca_binary,
        *ALPACA,
        "kto_tag",
    ),
    formed(
        "LLaMA-Factory alpaca",
        Demonstration,
        "instruction, input, output",
        lambda row: has(row, "instruction", "output"),
        _parse_alpaca,
        *ALPACA,
    ),
    formed(
        "Instructions",
        Prompt,
        "instruction, input",
        lambda row: has(row, "instruction") and not has(row, "prompt") and not has(row, "text"),
        _parse_alpaca_prompt,
        *ALPACA,
    ),
)
"""LLaMA-Factory's formats, the most specific first."""
