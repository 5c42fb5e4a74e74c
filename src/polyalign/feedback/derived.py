"""Derived sets: records made of other records, when asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from polyalign.errors import DataError
from polyalign.feedback.records import Record, kind_name
from polyalign.feedback.table import FeedbackSet

Expand = Callable[[Record], Sequence[Record]]
"""Zero or more records of one record; pure, so that it may be called again."""


class DerivedStore:
    """Rows of ``base`` expanded by ``function``; only their number is kept."""

    def __init__(self, base: FeedbackSet, function: Expand, counts: Sequence[int]) -> None:
        self.base = base
        self.function = function
        self.ends = list(accumulate(counts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def _source(self, index: int) -> tuple[int, int]:
        """The base row of an index, and which of its records it is."""
        row = bisect_right(self.ends, index)
        return row, index - (self.ends[row - 1] if row else 0)

    def record(self, index: int) -> Record:
        row, which = self._source(index)
        return self.function(self.base[row])[which]

    def raw(self, index: int) -> Mapping[str, Any]:
        from polyalign.feedback.writing import to_row

        return to_row(self.record(index))

    def place(self, index: int) -> tuple[str, int]:
        return self.base.place(self._source(index)[0])


def derive(
    base: FeedbackSet, function: Expand, kind: type[Record], how: str, none_left: str
) -> tuple[FeedbackSet, list[int]]:
    """``base`` expanded by ``function``, and how many records each row gave.

    Raises :class:`DataError` with the mend ``none_left`` when no row gives any.
    """
    counts = [len(function(record)) for record in base]
    if not any(counts):
        raise DataError(f"No {kind_name(kind)} come out of {base.source} ({how}).", none_left)
    store = DerivedStore(base, function, counts)
    words = f"{base.format}; {how}"
    return FeedbackSet(store, kind, words, base.source, base.rejects, base.columns), counts
