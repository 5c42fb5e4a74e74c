"""``FeedbackSet``: records of one kind as a lazy sequence."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from polyalign.errors import DataError
from polyalign.feedback.records import Record, kind_name
from polyalign.feedback.rowstore import ListStore, Reject, Store


class FeedbackSet(Sequence[Record]):
    """Records of one kind, read when asked for.

    ``kind`` is the record class, ``format`` says in words what was recognised, ``rejects`` are
    the rows that are no records (with file, row, field, reason), ``columns`` the columns found.
    """

    def __init__(
        self,
        store: Store,
        kind: type[Record],
        format: str,
        source: str,
        rejects: Sequence[Reject] = (),
        columns: Sequence[str] = (),
        indices: Sequence[int] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self._store = store
        self._indices = indices
        self.kind = kind
        self.format = format
        self.source = source
        self.rejects = list(rejects)
        self.columns = tuple(columns)
        self.notes = list(notes)

    @classmethod
    def of(cls, records: Iterable[Record], source: str = "memory") -> FeedbackSet:
        """A set of records that are already there; raises :class:`DataError` for mixed kinds."""
        if isinstance(records, FeedbackSet):
            return records
        held = list(records)
        kinds = {type(record) for record in held}
        if len(kinds) != 1:
            names = ", ".join(sorted(kind_name(kind) for kind in kinds))
            raise DataError(
                f"{source} holds records of several kinds ({names})."
                if kinds
                else "There is no feedback: the list is empty.",
                "Give records of one kind.",
            )
        return cls(ListStore(held, source), kinds.pop(), "records", source)

    def __len__(self) -> int:
        return len(self._store) if self._indices is None else len(self._indices)

    def _at(self, index: int) -> int:
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"row {index} of {n}")
        index %= n
        return index if self._indices is None else int(self._indices[index])

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> FeedbackSet: ...
    def __getitem__(self, index: int | slice) -> Record | FeedbackSet:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        return self._store.record(self._at(operator.index(index)))

    def __iter__(self) -> Iterator[Record]:
        for index in range(len(self)):
            yield self._store.record(self._at(index))

    def raw(self, index: int) -> Mapping[str, Any]:
        """The row as it stands in the source."""
        return self._store.raw(self._at(index))

    def place(self, index: int) -> tuple[str, int]:
        """The file and the row number (1-based; the line in text files)."""
        return self._store.place(self._at(index))

    def select(self, indices: Iterable[int], *, rejects: Sequence[Reject] = ()) -> FeedbackSet:
        """The rows at ``indices``, in that order, without copying any."""
        chosen = [self._at(index) for index in indices]
        return FeedbackSet(
            self._store, self.kind, self.format, self.source, rejects, self.columns, chosen
        )

    def held(self, limit: int = 100_000) -> FeedbackSet:
        """The same set with its records in memory, unless there are more than ``limit``."""
        if len(self) > limit or isinstance(self._store, ListStore):
            return self
        store = HeldStore(self, list(self))
        return FeedbackSet(
            store, self.kind, self.format, self.source, self.rejects, self.columns, None, self.notes
        )

    def __repr__(self) -> str:
        bad = f", {len(self.rejects)} rejected" if self.rejects else ""
        return f"<{len(self)} {kind_name(self.kind)} from {self.source} ({self.format}{bad})>"


class HeldStore:
    """A set's records in memory; rows and places still come from the set."""

    def __init__(self, base: FeedbackSet, records: list[Record]) -> None:
        self.base = base
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Record:
        return self.records[index]

    def raw(self, index: int) -> Mapping[str, Any]:
        return self.base.raw(index)

    def place(self, index: int) -> tuple[str, int]:
        return self.base.place(index)
