"""Records: the kinds of feedback, one class each.

A record says what was asked (``prompt``), what was answered, and what somebody thought of
it. Prompts and answers are *payloads*: opaque here, understood by the policy that encodes
them. For language models a payload is a string or a tuple of messages; in the exact worlds
it is a number or a tuple of numbers. So data steps, unit building and methods are the same
for all of them.

Every record has ``key`` (stable identity: all randomness about it is a function of the key),
``weight`` (default 1) and ``fields`` (further numbers that a method may need, by name).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]
"""One turn of a conversation: ``role`` and ``content`` (and, for tools, what the template
needs)."""

Payload = Any
"""A prompt or completion: ``str``, ``tuple[Message, ...]``, or a world's own numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What every kind of feedback has in common."""

    key: str
    weight: float = 1.0
    fields: Mapping[str, float] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(Record):
    """Something to answer; the answers come from a policy. ``meta`` may hold what a verifier
    needs.
    """

    prompt: Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration(Record):
    """A prompt with an answer to imitate (TRL: prompt-completion, language modeling)."""

    prompt: Payload
    completion: Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Record):
    """Two answers to one prompt, the first preferred (TRL: preference).

    ``others`` holds further answers to it by the role they play, see :data:`OTHER_ANSWERS`.
    """

    prompt: Payload
    chosen: Payload
    rejected: Payload
    others: Mapping[str, Payload] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary(Record):
    """One answer with a thumb up or down (TRL: unpaired preference)."""

    prompt: Payload
    completion: Payload
    label: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored(Record):
    """K >= 1 answers to one prompt with a score each; equal scores are ties.

    A ranking is scored by minus its rank. ``aspects`` keeps further scores by name, each [K].
    """

    prompt: Payload
    completions: tuple[Payload, ...]
    scores: tuple[float, ...]
    aspects: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes(Record):
    """K answers and comparisons by several annotators.

    ``votes`` holds (annotator, first, second, outcome): ``outcome`` 1.0 if answer ``first`` won,
    0.0 if ``second`` won, 0.5 for a tie.
    """

    prompt: Payload
    completions: tuple[Payload, ...]
    votes: tuple[tuple[str, int, int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quadruple(Record):
    """Two prompts and two answers, answer i right for prompt i and wrong for the other (iopo)."""

    prompts: tuple[Payload, Payload]
    completions: tuple[Payload, Payload]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps(Record):
    """An answer in steps with a label each (TRL: stepwise supervision)."""

    prompt: Payload
    steps: tuple[Payload, ...]
    labels: tuple[bool, ...]


OTHER_ANSWERS = {
    "gold": "an answer to imitate, better than the chosen one",
    "source_chosen": "the best answer of another model, beside the chosen one of the own",
}
"""What a pair may bring beside its two answers: columns of files, and roles of units."""

KINDS: dict[str, type[Record]] = {
    "prompts": Prompt,
    "demonstrations": Demonstration,
    "pairs": Pair,
    "binary": Binary,
    "scored": Scored,
    "votes": Votes,
    "quadruples": Quadruple,
    "steps": Steps,
}
"""Feedback kinds by the plural name that commands and messages use."""


def kind_name(kind: type[Record]) -> str:
    """The name in :data:`KINDS` of a record class; "transitions" for what comes from acting.

    >>> kind_name(Pair)
    'pairs'
    """
    return next((name for name, cls in KINDS.items() if cls is kind), "transitions")
