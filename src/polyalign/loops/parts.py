"""Data steps that give each stage its own part of the feedback.

All stages cut alike: what decides is computed once in a run, from the policy training began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from polyalign.errors import DataError, nearest
from polyalign.feedback.records import Pair, Record
from polyalign.feedback.units import order


@dataclass(frozen=True)
class Chunk:
    """Part ``which`` of ``count`` parts of the pairs, their sizes differing by one at most.

    ``cut``: "easy-first" orders pairs by how much more likely the start finds the chosen answer
    (``log ref(chosen) - log ref(rejected)``, largest first), so the share that it ranks rightly
    falls from part to part; "given" keeps the order of the data; "random" is a function of the
    run's seed. Raises :class:`DataError` when there are fewer pairs than parts.
    """

    samples: ClassVar[bool] = False
    count: int
    which: int
    cut: Literal["easy-first", "given", "random"] = "easy-first"

    def __call__(self, records: Sequence[Record], ctx: Any) -> list[Record]:
        if len(records) < self.count:
            raise DataError(
                f"{len(records)} examples cannot be cut into {self.count} parts.",
                "Use fewer stages, or bring more data.",
            )
        places = list(range(len(records)))
        if self.cut == "easy-first":
            gaps = ctx.kept("start-gaps", lambda: gaps_of(records, ctx))
            places.sort(key=lambda i: (-gaps[i], i))
        elif self.cut == "random":
            places = order(len(records), ctx.session.settings.seed, "chunks")
        size, more = divmod(len(records), self.count)
        begin = self.which * size + min(self.which, more)
        return [records[i] for i in places[begin : begin + size + (self.which < more)]]


@dataclass(frozen=True)
class Group:
    """The records whose column ``by`` holds the ``which``-th of its ``count`` values.

    ``names``: the values in the order of the stages; without any, the order in which they appear,
    or, ``easy_first``, sorted by the share of pairs whose chosen answer the start finds at least as
    likely. Raises :class:`DataError` for a record without the column and for another number of
    values.
    """

    samples: ClassVar[bool] = False
    by: str
    count: int
    which: int
    names: tuple[str, ...] = ()
    easy_first: bool = False

    def __call__(self, records: Sequence[Record], ctx: Any) -> list[Record]:
        values = [value_of(record, self.by) for record in records]
        found = list(dict.fromkeys(values))
        for name in self.names:
            if name not in found:
                raise DataError(f"No example has {self.by}={name}.", nearest(name, found))
        names = list(self.names) or found
        if len(names) != self.count:
            raise DataError(
                f"The column '{self.by}' has {len(names)} values ({', '.join(names[:8])}) for "
                f"{self.count} stages.",
                "Give as many stages as there are values.",
            )
        if self.easy_first:
            gaps = ctx.kept("start-gaps", lambda: gaps_of(records, ctx))
            right = {
                name: [gap >= 0 for gap, v in zip(gaps, values, strict=True) if v == name]
                for name in names
            }
            names.sort(key=lambda name: -sum(right[name]) / len(right[name]))
        return [r for r, value in zip(records, values, strict=True) if value == names[self.which]]


def value_of(record: Record, column: str) -> str:
    """What a record's row holds in a column that its kind of feedback does not read, as text."""
    value = record.meta.get(column, record.fields.get(column))
    if value is None:
        raise DataError(
            f"Example {record.key} has no '{column}', which says to which part it belongs.",
            f"Add a column '{column}' to the data, or name yours with by=COLUMN.",
        )
    return f"{value:g}" if isinstance(value, float) else str(value)


def gaps_of(records: Sequence[Record], ctx: Any) -> list[float]:
    """``log ref(chosen) - log ref(rejected)`` of each pair, nats, by the start."""
    pairs = [record for record in records if isinstance(record, Pair)]
    prompts = [pair.prompt for pair in pairs]
    chosen = ctx.log_probability(prompts, [pair.chosen for pair in pairs], "start")
    rejected = ctx.log_probability(prompts, [pair.rejected for pair in pairs], "start")
    return [a - b for a, b in zip(chosen, rejected, strict=True)]
