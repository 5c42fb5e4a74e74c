"""Splitting by prompt: no prompt stands in two parts, whatever the order of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from polyalign.errors import DataError, OptionError
from polyalign.feedback.payloads import is_conversation, text_of
from polyalign.feedback.records import Payload, Quadruple, Record
from polyalign.feedback.table import FeedbackSet


def prompt_identity(prompt: Payload) -> str:
    """A hash of a prompt that ignores white space and the form (text, or one user turn)."""
    if is_conversation(prompt) and not (len(prompt) == 1 and prompt[0]["role"] == "user"):
        words = "\x1e".join(f"{turn['role']}\x1f{_words(turn['content'])}" for turn in prompt)
    else:
        words = _words(text_of(prompt))
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _words(text: str) -> str:
    return " ".join(text.split())


def prompts_of(record: Any) -> list[Payload]:
    """The prompts of a record; a text without a prompt stands for itself."""
    if isinstance(record, Quadruple):
        return list(record.prompts)
    if record.prompt in ("", ()) and hasattr(record, "completion"):
        return [record.completion]
    return [record.prompt]


def split(
    feedback: Iterable[Record], test: float = 0.1, seed: int = 0
) -> tuple[FeedbackSet, FeedbackSet]:
    """Train and test parts by a hash of (seed, prompt): stable under order and added rows.

    ``test`` is the expected share of prompts in the test part. Raises :class:`OptionError` for
    a share that is not between 0 and 1 and :class:`DataError` where a part would be empty.
    """
    if not 0.0 < test < 1.0:
        raise OptionError(f"The test share is {test}.", "Give a number between 0 and 1.")
    base = FeedbackSet.of(feedback)
    groups = _groups(base)
    parts: tuple[list[int], list[int]] = ([], [])
    for index, group in enumerate(groups):
        parts[in_test(group, test, seed)].append(index)
    for name, part in zip(("train", "test"), parts, strict=True):
        if not part:
            raise DataError(
                f"The {name} part would be empty: {base.source} has {len(set(groups))} prompts.",
                "Use another share or seed, or give files with more prompts.",
            )
    train, held = (base.select(part) for part in parts)
    return train, held


def in_test(group: str, test: float, seed: int) -> bool:
    """Whether a group of prompts falls into the test part."""
    digest = hashlib.sha256(f"{seed}\x1f{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < test * 2**64


def _groups(feedback: FeedbackSet) -> list[str]:
    """The group of each row: its prompt, or all prompts that quadruples tie together."""
    rows = [[prompt_identity(p) for p in prompts_of(record)] for record in feedback]
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for first, *others in rows:
        for other in others:
            # The smaller name is the root, so the group's name does not depend on the order.
            small, large = sorted((root(first), root(other)))
            parent[large] = small
    return [root(first) for first, *_ in rows]
