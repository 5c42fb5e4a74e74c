"""Files of other libraries and well-known sets: LLaMA-Factory, SHP, UltraFeedback, HelpSteer,
arena-like comparisons.

An ``instruction`` is a turn of a user, so these become conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from polyalign.feedback.formats import Format, Parts, as_label, as_list, as_number, has, shown
from polyalign.feedback.formats_ranked import outcome_of, overall
from polyalign.feedback.formats_trl import last_assistant_turn
from polyalign.feedback.payloads import (
    Row,
    RowError,
    as_answer,
    as_messages,
    as_payload,
    need,
    type_name,
    user_turn,
)
from polyalign.feedback.records import Binary, Demonstration, Message, Pair, Prompt, Scored, Votes

ALPACA = ("instruction", "input", "output", "system", "history")


def _text_in(row: Row, field: str) -> str:
    value = need(row, field)
    if not isinstance(value, str):
        raise RowError(field, f"should be a string, not {type_name(value)}")
    return value


def _assistant(text: str) -> tuple[Message, ...]:
    return ({"role": "assistant", "content": text},)


# LLaMA-Factory: alpaca and sharegpt.


def alpaca_prompt(row: Row) -> tuple[Message, ...]:
    """system, history, then instruction and input as one user turn."""
    turns: list[Message] = []
    if row.get("system"):
        turns.append({"role": "system", "content": _text_in(row, "system")})
    for index, past in enumerate(row.get("history") or []):
        if not (isinstance(past, (list, tuple)) and len(past) == 2):
            raise RowError(f"history[{index}]", "should be a question and an answer")
        turns += [
            {"role": "user", "content": str(past[0])},
            {"role": "assistant", "content": str(past[1])},
        ]
    texts = [_text_in(row, "instruction")]
    if row.get("input"):
        texts.append(_text_in(row, "input"))
    return (*turns, *user_turn("\n".join(texts)))


def _parse_alpaca(row: Row) -> Parts:
    return {"prompt": alpaca_prompt(row), "completion": _assistant(_text_in(row, "output"))}


def _parse_alpaca_pair(row: Row) -> Parts:
    answers = {name: _assistant(_text_in(row, name)) for name in ("chosen", "rejected")}
    return {"prompt": alpaca_prompt(row), **answers}


def _parse_alpaca_binary(row: Row) -> Parts:
    return {**_parse_alpaca(row), "label": as_label(need(row, "kto_tag"), "kto_tag")}


def _parse_alpaca_prompt(row: Row) -> Parts:
    return {"prompt": alpaca_prompt(row)}


def _sharegpt_turns(row: Row) -> tuple[Message, ...]:
    turns = as_messages(need(row, "conversations"), "conversations")
    if row.get("system"):
        turns = ({"role": "system", "content": _text_in(row, "system")}, *turns)
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


# Well-known sets.


def parse_shp(row: Row) -> Parts:
    """SHP: labels is 1 where reply A has the higher score."""
    first = as_label(need(row, "labels"), "labels")
    a, b = (_assistant(_text_in(row, f"human_ref_{name}")) for name in "AB")
    parts: Parts = {
        "prompt": user_turn(_text_in(row, "history")),
        "chosen": a if first else b,
        "rejected": b if first else a,
    }
    if has(row, "score_A", "score_B"):
        scores = [as_number(row[f"score_{name}"], f"score_{name}") for name in "AB"]
        best, worst = scores if first else scores[::-1]
        parts["fields"] = {"score_chosen": best, "score_rejected": worst}
    return parts


def rating(value: Any, field: str) -> float | None:
    """UltraFeedback's ratings: {"Rating": "4"} or a number; N/A is no rating."""
    if isinstance(value, Mapping):
        value = value.get("Rating")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return None if value is None else as_number(value, field)


def parse_ultrafeedback(row: Row) -> Parts:
    """UltraFeedback: completions with ratings by aspect and an overall (or fine-grained) score."""
    by_response: list[dict[str, float]] = []
    texts = []
    for index, item in enumerate(as_list(need(row, "completions"), "completions")):
        field = f"completions[{index}]"
        if not isinstance(item, Mapping):
            raise RowError(field, f"should be an object, not {type_name(item)}")
        texts.append(_assistant(_text_in(item, "response")))
        scores = {}
        for aspect, value in (item.get("annotations") or {}).items():
            number = rating(value, f"{field}.annotations.{aspect}")
            if number is not None:
                scores[str(aspect)] = number
        for name in ("overall_score", "fine-grained_score"):
            if item.get(name) is not None:
                scores["score"] = as_number(item[name], f"{field}.{name}")
                break
        if not scores:
            raise RowError(field, "has no ratings")
        by_response.append(scores)
    ranked = overall([score_first(scores) for scores in by_response], "completions")
    prompt = user_turn(_text_in(row, "instruction"))
    return {
        "prompt": prompt,
        "completions": tuple(texts),
        "scores": ranked[0],
        "aspects": {name: values for name, values in ranked[1].items() if name != "overall"},
    }


def score_first(scores: dict[str, float]) -> dict[str, float]:
    """UltraFeedback's own score under the name that ranks before its aspect helpfulness."""
    return {("overall" if name == "score" else name): value for name, value in scores.items()}


HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def _parse_helpsteer(row: Row) -> Parts:
    prompt = as_payload(need(row, "prompt"), "prompt")
    aspects = {
        name: (as_number(row[name], name),) for name in HELPSTEER if row.get(name) is not None
    }
    return {
        "prompt": prompt,
        "completions": (as_answer(need(row, "response"), "response", prompt),),
        "scores": aspects["helpfulness"],
        "aspects": aspects,
    }


def parse_helpsteer_preference(row: Row) -> Parts:
    """HelpSteer2/3 preference: strength from -3 (response 1 better) to 3 (response 2 better)."""
    strength_field = next(
        n for n in ("preference_strength", "overall_preference") if row.get(n) is not None
    )
    first, second = (
        ("response_1", "response_2") if "response_1" in row else ("response1", "response2")
    )
    prompt_field = "prompt" if "prompt" in row else "context"
    prompt = as_payload(need(row, prompt_field), prompt_field)
    return {
        "prompt": prompt,
        "completions": tuple(as_answer(need(row, n), n, prompt) for n in (first, second)),
        "scores": (0.0, as_number(row[strength_field], strength_field)),
    }


WINNER = ("winner", "preference", "better_response_id", "label")
DUELS = (
    ("response_a", "response_b"),
    ("response_1", "response_2"),
    ("response_0", "response_1"),
    ("output_1", "output_2"),
    ("conversation_a", "conversation_b"),
)
"""Column names of two answers side by side."""

WORDS = {"model_a": "a", "model_b": "b", "tie (bothbad)": "tie", "both": "tie"}


def _duel_columns(row: Row) -> tuple[str, str] | None:
    return next((names for names in DUELS if has(row, *names)), None)


def parse_duel(row: Row) -> Parts:
    """Two answers and a winner, as in arenas: one vote."""
    names = _duel_columns(row)
    assert names is not None
    if names[0] == "conversation_a":
        turns = [as_messages(row[name], name) for name in names]
        both = [last_assistant_turn(t, n) for t, n in zip(turns, names, strict=True)]
        if both[0]["prompt"] != both[1]["prompt"]:
            raise RowError("conversation_b", "differs from conversation_a before the last turn")
        prompt, answers = both[0]["prompt"], tuple(part["completion"] for part in both)
    else:
        name = next(n for n in ("prompt", "instruction") if row.get(n) is not None)
        prompt = as_payload(row[name], name)
        if name == "instruction":
            prompt = alpaca_prompt(row)
        answers = tuple(as_answer(row[n], n, prompt) for n in names)
    field = next(n for n in WINNER if row.get(n) is not None)
    outcome = winner_of(row[field], field, names)
    annotator = row.get("annotator", row.get("judge"))
    who = "0" if annotator is None else str(annotator)
    return {"prompt": prompt, "completions": answers, "votes": ((who, 0, 1, outcome),)}


def winner_of(value: Any, field: str, names: tuple[str, str]) -> float:
    """1 where the first won: by its column's name or number, a | b | tie, or model_a | model_b."""
    if isinstance(value, str):
        if value in names:
            return 1.0 if value == names[0] else 0.0
        return outcome_of(WORDS.get(value, value), field)
    numbers = [int(name[-1]) for name in names if name[-1].isdigit()]
    if len(numbers) == 2 and value in numbers and not isinstance(value, bool):
        return 1.0 if value == numbers[0] else 0.0
    raise RowError(field, f"should say which answer won, not {shown(value)}")


def _form(
    name: str,
    kind: type[Any],
    columns: str,
    fits: Callable[[Row], bool],
    parse: Callable[[Row], Parts],
    *used: str,
) -> Format:
    return Format(name, kind, columns, fits, parse, frozenset(used))


NAMED = (
    _form(
        "SHP",
        Pair,
        "history, human_ref_A, human_ref_B, labels",
        lambda row: has(row, "history", "human_ref_A", "human_ref_B", "labels"),
        parse_shp,
        "history",
        "human_ref_A",
        "human_ref_B",
        "labels",
        "score_A",
        "score_B",
    ),
    _form(
        "UltraFeedback",
        Scored,
        "instruction, completions: [{response, annotations | overall_score}]",
        lambda row: has(row, "instruction") and isinstance(row.get("completions"), (list, tuple)),
        parse_ultrafeedback,
        "instruction",
        "completions",
    ),
    _form(
        "HelpSteer",
        Scored,
        "prompt, response, helpfulness, …",
        lambda row: has(row, "prompt", "response", "helpfulness"),
        _parse_helpsteer,
        "prompt",
        "response",
        *HELPSTEER,
    ),
    _form(
        "HelpSteer preference",
        Scored,
        "prompt, response_1, response_2, preference_strength",
        lambda row: (
            has(row, "prompt", "response_1", "response_2", "preference_strength")
            or has(row, "context", "response1", "response2", "overall_preference")
        ),
        parse_helpsteer_preference,
        "prompt",
        "context",
        "response_1",
        "response_2",
        "response1",
        "response2",
        "preference_strength",
        "overall_preference",
    ),
    _form(
        "Two responses and a winner",
        Votes,
        "prompt, response_a, response_b, winner (a | b | tie)",
        lambda row: (
            _duel_columns(row) is not None
            and (has(row, "prompt") or has(row, "instruction") or has(row, "conversation_a"))
            and any(row.get(name) is not None for name in WINNER)
        ),
        parse_duel,
        "prompt",
        *ALPACA,
        *(n for names in DUELS for n in names),
        *WINNER,
        "annotator",
        "judge",
    ),
    _form(
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
    _form(
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
    _form(
        "LLaMA-Factory sharegpt",
        Demonstration,
        "conversations",
        lambda row: has(row, "conversations"),
        _parse_sharegpt,
        "conversations",
        "system",
    ),
    _form(
        "LLaMA-Factory alpaca preference",
        Pair,
        "instruction, input, chosen, rejected",
        lambda row: has(row, "instruction", "chosen", "rejected"),
        _parse_alpaca_pair,
        *ALPACA,
        "chosen",
        "rejected",
    ),
    _form(
        "LLaMA-Factory alpaca with a thumb",
        Binary,
        "instruction, input, output, kto_tag",
        lambda row: has(row, "instruction", "output", "kto_tag"),
        _parse_alpaca_binary,
        *ALPACA,
        "kto_tag",
    ),
    _form(
        "LLaMA-Factory alpaca",
        Demonstration,
        "instruction, input, output",
        lambda row: has(row, "instruction", "output"),
        _parse_alpaca,
        *ALPACA,
    ),
    _form(
        "Instructions",
        Prompt,
        "instruction, input",
        lambda row: has(row, "instruction") and not has(row, "prompt") and not has(row, "text"),
        _parse_alpaca_prompt,
        *ALPACA,
    ),
)
"""Files of other libraries, the most specific first."""
