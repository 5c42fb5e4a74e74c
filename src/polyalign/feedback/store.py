"""Records to and from plain JSON-able data, so that what was made in a run can be kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from polyalign.errors import DataError
from polyalign.feedback.records import KINDS, Record, kind_name


def dump(record: Record) -> dict[str, Any]:
    """A record as JSON-able data that :func:`load` reads back equal."""
    fields = {f.name: _plain(getattr(record, f.name)) for f in dataclasses.fields(record)}
    return {"kind": kind_name(type(record)), **fields}


def load(data: Mapping[str, Any]) -> Record:
    """The record that :func:`dump` wrote.

    >>> from polyalign.feedback.records import Pair
    >>> pair = Pair(key="a", prompt="p", chosen=(1, 2), rejected=(3,))
    >>> load(dump(pair)) == pair
    True
    """
    if data.get("kind") not in KINDS:
        raise DataError(
            f"A stored record has the unknown kind {data.get('kind')!r}.", "Delete the file."
        )
    kind = KINDS[data["kind"]]
    return kind(**{name: _back(value) for name, value in data.items() if name != "kind"})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _back(value: Any) -> Any:
    """Lists were tuples: payloads are immutable."""
    if isinstance(value, dict):
        return {key: _back(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_back(item) for item in value)
    return value
