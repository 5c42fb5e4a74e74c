"""TRL's dataset types, plain and conversational, and transcripts in the style of HH."""

from __future__ import annotations

from polyalign.feedback.formats import Format, Parts, as_label, as_list, has
from polyalign.feedback.payloads import (
    Row,
    RowError,
    as_answer,
    as_messages,
    as_payload,
    is_conversation,
    is_messages,
    is_transcript,
    need,
    parse_transcript,
    split_common_text,
    split_common_turns,
    type_name,
    user_turn,
)
from polyalign.feedback.records import (
    OTHER_ANSWERS,
    Binary,
    Demonstration,
    Message,
    Pair,
    Payload,
    Prompt,
    Quadruple,
    Steps,
)


def last_assistant_turn(turns: tuple[Message, ...], field: str) -> Parts:
    """A conversation as the turns before its last assistant turn, and that turn."""
    places = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not places:
        raise RowError(field, "has no assistant turn")
    last = places[-1]
    after = turns[last + 1 :]
    return {
        "prompt": turns[:last],
        "completion": (turns[last],),
        "meta": {"turns_after": list(after)} if after else {},
    }


def _parse_explicit_pair(row: Row) -> Parts:
    prompt = as_payload(need(row, "prompt"), "prompt")
    chosen = as_payload(need(row, "chosen"), "chosen")
    rejected = as_payload(need(row, "rejected"), "rejected")
    if isinstance(prompt, str) and is_conversation(chosen) and is_conversation(rejected):
        # A plain prompt beside whole conversations repeats their first turns (as TRL reads it).
        if chosen[0]["role"] != "assistant":
            return _implicit_turns(chosen, rejected)
        prompt = user_turn(prompt)
    return {
        "prompt": prompt,
        "chosen": as_answer(chosen, "chosen", prompt),
        "rejected": as_answer(rejected, "rejected", prompt),
    }


def _is_answer(value: object) -> bool:
    return (isinstance(value, str) and bool(value)) or is_messages(value)


def _brings_answers(row: Row) -> bool:
    """Whether a pair has a further answer (text or messages) under one of their names."""
    return any(_is_answer(row.get(name)) for name in OTHER_ANSWERS)


def _parse_pair_and_others(row: Row) -> Parts:
    parts = _parse_explicit_pair(row)
    others = {
        name: as_answer(as_payload(row[name], name), name, parts["prompt"])
        for name in OTHER_ANSWERS
        if row.get(name) is not None
    }
    return {**parts, "others": others} if others else parts


def _implicit_turns(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Parts:
    prompt, ours, theirs = split_common_turns(chosen, rejected)
    return {"prompt": prompt, "chosen": ours, "rejected": theirs}


def _parse_implicit_pair(row: Row) -> Parts:
    chosen = as_payload(need(row, "chosen"), "chosen")
    rejected = as_payload(need(row, "rejected"), "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError(
            "rejected",
            f"is {type_name(row['rejected'])} beside {type_name(row['chosen'])} in chosen",
        )
    if isinstance(chosen, str):
        prompt, ours, theirs = split_common_text(chosen, rejected)
        return {"prompt": prompt, "chosen": ours, "rejected": theirs}
    return _implicit_turns(chosen, rejected)


def _parse_transcript_pair(row: Row) -> Parts:
    texts = {name: need(row, name) for name in ("chosen", "rejected")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise RowError(name, f"should be a transcript, not {type_name(text)}")
    chosen, rejected = (parse_transcript(text, name) for name, text in texts.items())
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1]["role"] != "assistant":
            raise RowError(name, "does not end with an Assistant turn")
    if chosen[:-1] != rejected[:-1]:
        raise RowError("rejected", "differs from chosen before the last turn")
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def transcript_prompt(value: Payload, field: str) -> tuple[Message, ...]:
    """The turns of a prompt that ends where the assistant is to speak."""
    if not isinstance(value, str):
        raise RowError(field, f"should be a transcript, not {type_name(value)}")
    turns = parse_transcript(value, field)
    if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns = turns[:-1]
    if not turns:
        raise RowError(field, "has no turn")
    return turns


def _parse_transcript_prompt_pair(row: Row) -> Parts:
    prompt = transcript_prompt(need(row, "prompt"), "prompt")
    answers: Parts = {"prompt": prompt}
    for name in ("chosen", "rejected"):
        text = need(row, name)
        if not isinstance(text, str):
            raise RowError(name, f"should be a string, not {type_name(text)}")
        answers[name] = ({"role": "assistant", "content": text.strip()},)
    return answers


def _parse_binary(row: Row) -> Parts:
    return {**_parse_completion(row), "label": as_label(need(row, "label"), "label")}


def _parse_completion(row: Row) -> Parts:
    prompt = as_payload(need(row, "prompt"), "prompt")
    answer = as_payload(need(row, "completion"), "completion")
    if isinstance(prompt, str) and is_conversation(answer):
        prompt = user_turn(prompt)
    return {"prompt": prompt, "completion": as_answer(answer, "completion", prompt)}


def _parse_steps(row: Row) -> Parts:
    prompt = as_payload(need(row, "prompt"), "prompt")
    name = "completions" if "completions" in row else "steps"
    steps = as_list(need(row, name), name)
    labels = as_list(need(row, "labels"), "labels")
    for index, step in enumerate(steps):
        if not isinstance(step, str):
            raise RowError(f"{name}[{index}]", f"should be a string, not {type_name(step)}")
    values = tuple(as_label(v, f"labels[{i}]") for i, v in enumerate(labels))
    # Labels may stop at the first mistake; TRL's own type wants one for each step.
    if len(values) > len(steps) or (name == "completions" and len(values) != len(steps)):
        raise RowError("labels", f"has {len(values)} entries for {len(steps)} {name}")
    rest = steps[len(values) :]
    return {
        "prompt": prompt,
        "steps": tuple(steps[: len(values)]),
        "labels": values,
        "meta": {"unlabelled_steps": rest} if rest else {},
    }


def _parse_messages(row: Row) -> Parts:
    return last_assistant_turn(as_messages(need(row, "messages"), "messages"), "messages")


def _parse_messages_label(row: Row) -> Parts:
    name = "label" if "label" in row else "kto_tag"
    return {**_parse_messages(row), "label": as_label(need(row, name), name)}


def _parse_text(row: Row) -> Parts:
    text = need(row, "text")
    if not isinstance(text, str):
        raise RowError("text", f"should be a string, not {type_name(text)}")
    return {"prompt": "", "completion": text}


def _parse_prompt(row: Row) -> Parts:
    return {"prompt": as_payload(need(row, "prompt"), "prompt")}


def _parse_quadruple(row: Row) -> Parts:
    prompts = tuple(as_payload(need(row, f"prompt_{i}"), f"prompt_{i}") for i in (1, 2))
    completions = tuple(
        as_answer(need(row, f"completion_{i}"), f"completion_{i}", prompts[i - 1]) for i in (1, 2)
    )
    for name, (first, second) in (("prompt_2", prompts), ("completion_2", completions)):
        if first == second:
            raise RowError(name, f"is the same as {name[:-1]}1, so nothing is told apart")
    return {"prompts": prompts, "completions": completions}


def is_list_of_labels(row: Row) -> bool:
    """Whether ``labels`` is a list (SHP's is a number)."""
    return isinstance(row.get("labels"), (list, tuple))


def _columns(*names: str) -> frozenset[str]:
    return frozenset(names)


TRL_SPECIFIC = (
    Format(
        "Two prompts and two completions (iopo)",
        Quadruple,
        "prompt_1, prompt_2, completion_1, completion_2",
        lambda row: has(row, "prompt_1", "prompt_2", "completion_1", "completion_2"),
        _parse_quadruple,
        _columns("prompt_1", "prompt_2", "completion_1", "completion_2"),
    ),
    Format(
        "TRL stepwise supervision",
        Steps,
        "prompt, completions, labels",
        lambda row: has(row, "prompt", "completions") and is_list_of_labels(row),
        _parse_steps,
        _columns("prompt", "completions", "labels"),
    ),
    Format(
        "Steps with labels",
        Steps,
        "prompt, steps, labels",
        lambda row: has(row, "prompt", "steps") and is_list_of_labels(row),
        _parse_steps,
        _columns("prompt", "steps", "labels"),
    ),
)
"""Formats that must be tried before those of the other files."""

TRL = (
    Format(
        "HH transcripts, explicit prompt",
        Pair,
        "prompt, chosen, rejected",
        lambda row: has(row, "chosen", "rejected") and is_transcript(row.get("prompt")),
        _parse_transcript_prompt_pair,
        _columns("prompt", "chosen", "rejected"),
    ),
    Format(
        "TRL preference, explicit prompt and further answers",
        Pair,
        "prompt, chosen, rejected, gold | source_chosen",
        lambda row: has(row, "prompt", "chosen", "rejected") and _brings_answers(row),
        _parse_pair_and_others,
        _columns("prompt", "chosen", "rejected", *OTHER_ANSWERS),
    ),
    Format(
        "TRL preference, explicit prompt",
        Pair,
        "prompt, chosen, rejected",
        lambda row: has(row, "prompt", "chosen", "rejected"),
        _parse_explicit_pair,
        _columns("prompt", "chosen", "rejected"),
    ),
    Format(
        "HH transcripts, implicit prompt",
        Pair,
        "chosen, rejected",
        lambda row: is_transcript(row.get("chosen")) and has(row, "rejected"),
        _parse_transcript_pair,
        _columns("chosen", "rejected"),
    ),
    Format(
        "TRL preference, implicit prompt",
        Pair,
        "chosen, rejected",
        lambda row: has(row, "chosen", "rejected"),
        _parse_implicit_pair,
        _columns("chosen", "rejected"),
    ),
    Format(
        "TRL unpaired preference",
        Binary,
        "prompt, completion, label",
        lambda row: has(row, "prompt", "completion", "label"),
        _parse_binary,
        _columns("prompt", "completion", "label"),
    ),
    Format(
        "Conversations with a label",
        Binary,
        "messages, label | kto_tag",
        lambda row: (
            is_messages(row.get("messages"))
            and (has(row, "kto_tag") or isinstance(row.get("label"), bool))
        ),
        _parse_messages_label,
        _columns("messages", "label", "kto_tag"),
    ),
    Format(
        "TRL prompt-completion",
        Demonstration,
        "prompt, completion",
        lambda row: has(row, "prompt", "completion"),
        _parse_completion,
        _columns("prompt", "completion"),
    ),
    Format(
        "TRL language modeling",
        Demonstration,
        "messages",
        lambda row: has(row, "messages"),
        _parse_messages,
        _columns("messages"),
    ),
    Format(
        "TRL language modeling",
        Demonstration,
        "text",
        lambda row: has(row, "text"),
        _parse_text,
        _columns("text"),
    ),
    Format(
        "TRL prompt-only",
        Prompt,
        "prompt",
        lambda row: has(row, "prompt"),
        _parse_prompt,
        _columns("prompt"),
    ),
)
"""TRL's types, the richest first."""
