"""A data step for methods that need two kinds of pairs of the same prompts."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polyalign.errors import DataError, PolyalignWarning
from polyalign.feedback.records import Pair, Record


@dataclass(frozen=True)
class BothKinds:
    """The pairs as they are, after a look whether both kinds are there.

    A pair's number ``field`` is 1 or 0. Raises :class:`DataError` when a pair lacks it or one kind
    is missing; warns when fewer than half of the prompts of one kind are asked in the other. A
    prompt may go on in the second kind, by an empty block, say.
    """

    field: str

    def __call__(self, records: Sequence[Record], ctx: Any) -> list[Record]:
        kinds: dict[bool, set[str]] = {True: set(), False: set()}
        for record in records:
            value = record.fields.get(self.field)
            if not isinstance(record, Pair) or value not in (0.0, 1.0):
                raise DataError(
                    f"Example {record.key} does not say whether it is of the first kind: its "
                    f"'{self.field}' is {value}.",
                    f"Give every pair a number '{self.field}', 1 or 0.",
                )
            kinds[bool(value)].add(_text(record.prompt))
        for kind, prompts in kinds.items():
            if not prompts:
                raise DataError(
                    f"No pair has {self.field}={int(kind)}, and the method mixes two kinds.",
                    f"Bring pairs of both kinds, with a number '{self.field}' of 1 and 0.",
                )
        shared = _shared(sorted(kinds[True]), kinds[False])
        if shared < len(kinds[False]) / 2:
            warnings.warn(
                f"Only {shared} of {len(kinds[False])} prompts of pairs with {self.field}=0 are "
                f"also asked with {self.field}=1: the two kinds are about different prompts.",
                PolyalignWarning,
                stacklevel=2,
            )
        return list(records)


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else repr(prompt)


def _shared(known: Sequence[str], others: set[str]) -> int:
    """How many of ``others`` begin with, or are, one of the sorted ``known``."""
    count = 0
    for other in others:
        before = bisect_right(known, other)
        count += before > 0 and other.startswith(known[before - 1])
    return count
