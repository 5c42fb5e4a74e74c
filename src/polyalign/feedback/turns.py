"""Which turns of a conversation are the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import overload

from polyalign.feedback.records import Demonstration, Record


def every_turn(record: Record) -> Record:
    """A demonstration whose answer begins at the assistant's first turn, not at its last.

    Other records, and prompts that are plain text, stay as they are.

    >>> turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"))]
    >>> shown = Demonstration(key="k", prompt=(*turns, turns[0]), completion=(turns[1],))
    >>> len(every_turn(shown).prompt), len(every_turn(shown).completion)
    (1, 3)
    """
    if not isinstance(record, Demonstration) or not isinstance(record.prompt, tuple):
        return record
    roles = [turn.get("role") for turn in record.prompt if isinstance(turn, dict)]
    if "assistant" not in roles or not isinstance(record.completion, tuple):
        return record
    first = roles.index("assistant")
    return replace(
        record,
        prompt=record.prompt[:first],
        completion=(*record.prompt[first:], *record.completion),
    )


class EveryTurn(Sequence[Record]):
    """Records seen through :func:`every_turn`, one at a time."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return EveryTurn(self.records[index])
        return every_turn(self.records[index])
