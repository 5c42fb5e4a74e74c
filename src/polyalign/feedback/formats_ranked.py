"""Several responses to one prompt: votes, comparisons, scores, ranks, correctness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from polyalign.feedback.formats import Format, Parts, as_label, as_list, as_number, has, shown
from polyalign.feedback.payloads import (
    Row,
    RowError,
    as_answer,
    as_payload,
    is_conversation,
    need,
    type_name,
)
from polyalign.feedback.records import Payload, Scored, Votes

RESPONSES = ("responses", "completions")
SCORES = ("scores", "rewards", "ranks")
OVERALL = ("overall", "overall_score", "score", "reward", "helpfulness")
"""The aspect that ranks responses where several are given, by precedence."""

OUTCOMES = {"a": 1.0, "b": 0.0, "tie": 0.5}


def responses_of(row: Row, prompt: Payload) -> tuple[tuple[Payload, ...], list[Any], str]:
    """The responses as payloads, as found, and the column's name."""
    name = next((name for name in RESPONSES if name in row), "responses")
    found = as_list(need(row, name), name)
    payloads = []
    for index, response in enumerate(found):
        field = f"{name}[{index}]"
        value = response
        # {content, scores…} is a response with its scores; {role, content} is a message.
        if isinstance(response, Mapping) and "role" not in response:
            holder = next((k for k in ("content", "response", "text") if k in response), "content")
            field = f"{field}.{holder}"
            value = need(response, holder) if holder in response else None
        if value is None:
            raise RowError(field, "is null")
        payloads.append(as_answer(value, field, prompt))
    return tuple(payloads), found, name


def _prompt_of(row: Row) -> Payload:
    return as_payload(need(row, "prompt"), "prompt")


def outcome_of(label: Any, field: str) -> float:
    """1, 0 or 0.5 for a, b or tie."""
    value = OUTCOMES.get(label.lower()) if isinstance(label, str) else None
    if value is None:
        raise RowError(field, f"should be a, b or tie, not {shown(label)}")
    return value


def _parse_votes(row: Row) -> Parts:
    prompt = _prompt_of(row)
    completions, _, name = responses_of(row, prompt)
    votes = []
    for index, item in enumerate(as_list(need(row, "annotations"), "annotations")):
        field = f"annotations[{index}]"
        if not isinstance(item, Mapping):
            raise RowError(field, f"should be an object, not {type_name(item)}")
        votes.append(vote_of(item, field, len(completions), name, str(index)))
    return {"prompt": prompt, "completions": completions, "votes": tuple(votes)}


def vote_of(
    item: Mapping[str, Any], field: str, n: int, name: str, nobody: str
) -> tuple[str, int, int, float]:
    """One vote (annotator, first, second, outcome); the first two responses unless named."""
    if n != 2 and not has(item, "first", "second"):
        raise RowError(field, f"does not say which two of the {n} {name} it compares")
    places = []
    for which, default in (("first", 0), ("second", 1)):
        place = item.get(which, default)
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < n:
            raise RowError(f"{field}.{which}", f"should be 0 to {n - 1}, not {shown(place)}")
        places.append(place)
    if places[0] == places[1]:
        raise RowError(field, f"compares response {places[0]} with itself")
    annotator = item.get("annotator")
    return (
        nobody if annotator is None else str(annotator),
        places[0],
        places[1],
        outcome_of(item.get("label"), f"{field}.label"),
    )


def _parse_pairwise(row: Row) -> Parts:
    prompt = _prompt_of(row)
    completions, _, name = responses_of(row, prompt)
    votes = []
    for index, item in enumerate(as_list(need(row, "pairwise"), "pairwise")):
        field = f"pairwise[{index}]"
        if not isinstance(item, Mapping):
            raise RowError(field, f"should be an object, not {type_name(item)}")
        votes.append(vote_of(item, field, len(completions), name, "0"))
    return {"prompt": prompt, "completions": completions, "votes": tuple(votes)}


def _parse_scores(row: Row) -> Parts:
    prompt = _prompt_of(row)
    completions, _, name = responses_of(row, prompt)
    source = next(name for name in SCORES if row.get(name) is not None)
    values = as_list(row[source], source)
    if len(values) != len(completions):
        raise RowError(source, f"has {len(values)} entries for {len(completions)} {name}")
    scores = [as_number(value, f"{source}[{i}]") for i, value in enumerate(values)]
    if source == "ranks":
        scores = [-rank for rank in scores]
    parts: Parts = {"prompt": prompt, "completions": completions, "scores": tuple(scores)}
    aspects = row.get("aspects")
    if aspects is not None:
        parts["aspects"] = {
            str(aspect): _aspect_values(column, f"aspects.{aspect}", len(completions))
            for aspect, column in aspects.items()
            if column is not None
        }
    return parts


def _aspect_values(column: Any, field: str, n: int) -> tuple[float, ...]:
    values = as_list(column, field)
    if len(values) != n:
        raise RowError(field, f"has {len(values)} entries for {n} responses")
    return tuple(as_number(value, f"{field}[{i}]") for i, value in enumerate(values))


def parse_own_scores(row: Row) -> Parts:
    """Responses that carry their scores: {content, scores: {aspect: …}} or {content, score}."""
    prompt = _prompt_of(row)
    completions, found, name = responses_of(row, prompt)
    by_response: list[dict[str, float]] = []
    for index, response in enumerate(found):
        field = f"{name}[{index}]"
        if not isinstance(response, Mapping):
            raise RowError(field, f"should be an object, not {type_name(response)}")
        by_response.append(_own_scores(response, field))
    scores, aspects = overall(by_response, name)
    return {"prompt": prompt, "completions": completions, "scores": scores, "aspects": aspects}


def _own_scores(response: Mapping[str, Any], field: str) -> dict[str, float]:
    scores = response.get("scores")
    if isinstance(scores, Mapping):
        if not scores:
            raise RowError(f"{field}.scores", "is empty")
        return {
            str(aspect): as_number(value, f"{field}.scores.{aspect}")
            for aspect, value in scores.items()
            if value is not None
        }
    for single in ("score", "reward", "rating"):
        if single in response:
            return {"score": as_number(response[single], f"{field}.{single}")}
    if "rank" in response:
        return {"score": -as_number(response["rank"], f"{field}.rank")}
    if "correct" in response:
        return {"score": float(as_label(response["correct"], f"{field}.correct"))}
    raise RowError(field, "has no scores")


def overall(
    by_response: list[dict[str, float]], name: str
) -> tuple[tuple[float, ...], dict[str, tuple[float, ...]]]:
    """One score a response, and the aspects that every response has.

    The score is the aspect named overall (or its like), else the mean of the common aspects.
    """
    common = [a for a in by_response[0] if all(a in scores for scores in by_response)]
    if not common:
        raise RowError(name, "have no aspect in common")
    aspects = {a: tuple(scores[a] for scores in by_response) for a in common}
    chief = next((a for a in OVERALL if a in common), None)
    if chief is not None:
        return aspects[chief], {a: v for a, v in aspects.items() if a != "score" or len(common) > 1}
    means = tuple(fmean(scores[a] for a in common) for scores in by_response)
    return means, aspects


def _parse_single_score(row: Row) -> Parts:
    prompt = _prompt_of(row)
    name = next(name for name in ("completion", "response") if row.get(name) is not None)
    score = next(name for name in ("reward", "score") if name in row)
    answer = as_answer(row[name], name, prompt)
    if isinstance(prompt, str) and is_conversation(answer):
        raise RowError("prompt", "is text beside a conversation")
    return {
        "prompt": prompt,
        "completions": (answer,),
        "scores": (as_number(row[score], score),),
    }


def _has_responses(row: Row) -> bool:
    return has(row, "prompt") and any(
        isinstance(row.get(name), (list, tuple)) for name in RESPONSES
    )


def _each_response(row: Row, holds: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Whether there are responses, all of them objects of which this holds."""
    found: list[Any] = next(
        (row[name] for name in RESPONSES if isinstance(row.get(name), (list, tuple))), []
    )
    return len(found) > 0 and all(isinstance(r, Mapping) and holds(r) for r in found)


def _carries_scores(row: Row) -> bool:
    return _each_response(row, lambda r: any(k in r for k in ("scores", "score", "reward", "rank")))


def _carries_correctness(row: Row) -> bool:
    return _each_response(row, lambda r: "correct" in r)


RANKED = (
    Format(
        "Votes of several annotators",
        Votes,
        "prompt, responses, annotations",
        lambda row: _has_responses(row) and has(row, "annotations"),
        _parse_votes,
        frozenset({"prompt", *RESPONSES, "annotations"}),
    ),
    Format(
        "Pairwise comparisons of several responses",
        Votes,
        "prompt, responses, pairwise",
        lambda row: _has_responses(row) and has(row, "pairwise"),
        _parse_pairwise,
        frozenset({"prompt", *RESPONSES, "pairwise"}),
    ),
    Format(
        "Scored responses",
        Scored,
        "prompt, completions | responses, scores | rewards | ranks",
        lambda row: (
            _has_responses(row) and any(isinstance(row.get(name), (list, tuple)) for name in SCORES)
        ),
        _parse_scores,
        frozenset({"prompt", *RESPONSES, *SCORES, "aspects"}),
    ),
    Format(
        "Responses that carry their scores",
        Scored,
        "prompt, responses: [{content, scores | score | rank}]",
        lambda row: _has_responses(row) and _carries_scores(row),
        parse_own_scores,
        frozenset({"prompt", *RESPONSES}),
    ),
    Format(
        "Responses with correctness",
        Scored,
        "prompt, responses: [{content, correct}]",
        lambda row: _has_responses(row) and _carries_correctness(row),
        parse_own_scores,
        frozenset({"prompt", *RESPONSES}),
    ),
    Format(
        "Scored completions",
        Scored,
        "prompt, completion | response, reward | score",
        lambda row: (
            has(row, "prompt")
            and (has(row, "completion") or has(row, "response"))
            and not has(row, "label")
            and any(isinstance(row.get(name), (int, float)) for name in ("reward", "score"))
            and not isinstance(row.get("reward", row.get("score")), bool)
        ),
        _parse_single_score,
        frozenset({"prompt", "completion", "response", "reward", "score"}),
    ),
)
"""Several responses (or one with a score)."""
