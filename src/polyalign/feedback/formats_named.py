"""Well-known sets: SHP, UltraFeedback, HelpSteer, arena-like comparisons.

An ``instruction`` is a turn of a user, so these become conversations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyalign.feedback.formats import Parts, as_label, as_list, as_number, formed, has, shown
from polyalign.feedback.formats_factory import ALPACA, alpaca_prompt, assistant, text_in
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
from polyalign.feedback.records import Pair, Scored, Votes


def parse_shp(row: Row) -> Parts:
    """SHP: labels is 1 where reply A has the higher score."""
    first = as_label(need(row, "labels"), "labels")
    a, b = (assistant(text_in(row, f"human_ref_{name}")) for name in "AB")
    parts: Parts = {
        "prompt": user_turn(text_in(row, "history")),
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
        texts.append(assistant(text_in(item, "response")))
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
    prompt = user_turn(text_in(row, "instruction"))
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


NAMED = (
    formed(
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
    formed(
        "UltraFeedback",
        Scored,
        "instruction, completions: [{response, annotations | overall_score}]",
        lambda row: has(row, "instruction") and isinstance(row.get("completions"), (list, tuple)),
        parse_ultrafeedback,
        "instruction",
        "completions",
    ),
    formed(
        "HelpSteer",
        Scored,
        "prompt, response, helpfulness, …",
        lambda row: has(row, "prompt", "response", "helpfulness"),
        _parse_helpsteer,
        "prompt",
        "response",
        *HELPSTEER,
    ),
    formed(
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
    formed(
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
)
"""Well-known sets, the most specific first."""
