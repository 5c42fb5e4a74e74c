"""Formats: what a row's columns mean, and the record they make.

A :class:`Format` recognises rows by their columns and parses one row into the fields of a
record. The list of formats lies in three files by origin (TRL's types, ranked and voted
responses, other libraries' files); the first that fits wins, the most specific first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from polyalign.errors import DataError, nearest
from polyalign.feedback.payloads import (
    ImageError,
    Row,
    RowError,
    digest,
    is_conversation,
    type_name,
)
from polyalign.feedback.records import KINDS, Record, kind_name

Parts = dict[str, Any]
"""What a parser makes of a row: the record's own fields (and, perhaps, ``fields`` and ``meta``)."""


@dataclass(frozen=True)
class Format:
    """One way in which files hold one kind of feedback.

    ``fits`` looks at columns and value types only; ``parse`` raises :class:`RowError` for a
    row that does not hold what it should. ``used`` names the columns that ``parse`` reads:
    numbers in other columns go to ``fields``, everything else to ``meta``.
    """

    name: str
    kind: type[Record]
    columns: str
    fits: Callable[[Row], bool]
    parse: Callable[[Row], Parts]
    used: frozenset[str]


def formed(
    name: str,
    kind: type[Any],
    columns: str,
    fits: Callable[[Row], bool],
    parse: Callable[[Row], Parts],
    *used: str,
) -> Format:
    """A format whose ``used`` columns are no extras."""
    return Format(name, kind, columns, fits, parse, frozenset(used))


SCORE_FIELDS = ("margin", "score_chosen", "score_rejected", "score", "reward", "rating")
"""Extra columns that are scores whenever they hold a number: there NaN is a bad row."""


def has(row: Row, *names: str) -> bool:
    """Whether all the columns are there and not null."""
    return all(row.get(name) is not None for name in names)


@cache
def all_formats() -> tuple[Format, ...]:
    """Every format, in the order in which they are tried."""
    from polyalign.feedback.formats_factory import FACTORY
    from polyalign.feedback.formats_named import NAMED
    from polyalign.feedback.formats_ranked import RANKED
    from polyalign.feedback.formats_trl import TRL, TRL_SPECIFIC

    return (*TRL_SPECIFIC, *RANKED, *NAMED, *FACTORY, *TRL)


def recognise(row: Row, kind: type[Record] | None = None) -> Format | None:
    """The format of one row, or None; only formats of ``kind`` where that is given."""
    for form in all_formats():
        if (kind is None or form.kind is kind) and form.fits(row):
            return form
    return None


def as_kind(kind: type[Record] | str | None) -> type[Record] | None:
    """A record class from a class or its plural name; raises :class:`DataError` for others."""
    if kind is None or isinstance(kind, type):
        return kind
    if kind in KINDS:
        return KINDS[kind]
    for cls in KINDS.values():
        if cls.__name__.lower() == kind.lower():
            return cls
    raise DataError(f"There is no kind of feedback called {kind!r}.", nearest(kind, KINDS))


@dataclass(frozen=True)
class Recognised:
    """A format with the form of its texts: what a whole file is said to be."""

    form: Format
    conversational: bool

    @property
    def words(self) -> str:
        """The format in words, as commands print it."""
        head, _, tail = self.form.name.partition(",")
        if not head.startswith("TRL"):
            return self.form.name
        form = "conversational" if self.conversational else "plain text"
        return f"{head}, {form}{',' + tail if tail else ''}"


def recognise_all(rows: Iterable[Row], kind: type[Record] | None, where: str) -> Recognised:
    """The format that most of the sampled rows have; raises :class:`DataError` when none fits."""
    votes: Counter[tuple[str, bool]] = Counter()
    forms: dict[str, Format] = {}
    columns: dict[str, None] = {}
    for row in rows:
        columns.update(dict.fromkeys(row))
        refuse_images(row)
        form = recognise(row, kind)
        if form is None:
            continue
        forms[form.name] = form
        try:
            votes[form.name, conversational(form.parse(row))] += 1
        except RowError:
            votes[form.name, False] += 0
    if not forms:
        raise unrecognised(columns, kind, where)
    (name, is_conversational), _ = votes.most_common(1)[0]
    return Recognised(forms[name], is_conversational)


def conversational(parts: Mapping[str, Any]) -> bool:
    """Whether the prompt or an answer is a conversation."""
    values = [parts.get(name) for name in ("prompt", "completion", "chosen")]
    for name in ("prompts", "completions"):
        values.extend((parts.get(name) or [])[:1])
    return any(is_conversation(value) for value in values)


def unrecognised(columns: Iterable[str], kind: type[Record] | None, where: str) -> DataError:
    """The error for rows that no format fits, with what was found and what would be read."""
    forms = [form for form in all_formats() if kind is None or form.kind is kind]
    known = "; ".join(dict.fromkeys(f"{form.columns} ({kind_name(form.kind)})" for form in forms))
    found = ", ".join(columns) or "none"
    as_what = f" as {kind_name(kind)}" if kind is not None else ""
    return DataError(
        f"{where} has no columns that can be read{as_what} (found: {found}).",
        f"Rename or map columns, for example columns={{'prompt': 'question'}}; "
        f"what can be read: {known}.",
    )


def as_number(value: Any, field: str) -> float:
    """A finite number; raises :class:`RowError` for anything else."""
    if value is None:
        raise RowError(field, "is null")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowError(field, f"should be a number, not {type_name(value)}")
    if not math.isfinite(value):
        raise RowError(field, f"is {value}, not a finite number")
    return float(value)


def as_label(value: Any, field: str) -> bool:
    """True or false; 1 and 0 count, nothing else does."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise RowError(field, f"should be true or false, not {shown(value) or type_name(value)}")


def shown(value: Any) -> str:
    """A short repr for messages."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"


def as_list(value: Any, field: str) -> list[Any]:
    """A non-empty list."""
    if not isinstance(value, (list, tuple)):
        raise RowError(field, f"should be a list, not {type_name(value)}")
    if not value:
        raise RowError(field, "is an empty list")
    return list(value)


def content_hash(parts: Mapping[str, Any]) -> str:
    """A hash of what a record says: payloads, labels and scores, not names and notes."""
    return digest({name: value for name, value in parts.items() if name not in ("fields", "meta")})


def refuse_images(row: Row) -> None:
    """Raise :class:`ImageError` where a row has an image column that is not empty."""
    for name in ("image", "images", "pixel_values", "video", "videos"):
        if row.get(name):
            raise ImageError


def extras(row: Row, form: Format) -> tuple[float, dict[str, float], dict[str, Any]]:
    """Weight, fields and meta: what the columns that the format does not read hold."""
    weight = 1.0
    fields: dict[str, float] = {}
    meta: dict[str, Any] = {}
    for name, value in row.items():
        if name in form.used or name in ("id", "key") or value is None:
            continue
        if name == "weight":
            weight = as_number(value, "weight")
            if weight < 0:
                raise RowError("weight", f"is negative ({value})")
        elif name == "fields" and isinstance(value, Mapping):
            fields.update(
                {k: as_number(v, f"fields.{k}") for k, v in value.items() if v is not None}
            )
        elif name == "meta" and isinstance(value, Mapping):
            meta.update({k: v for k, v in value.items() if v is not None})
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            # NaN is how tables spell "no value": only a score must not be NaN.
            if name in SCORE_FIELDS:
                fields[name] = as_number(value, name)
            elif math.isfinite(value):
                fields[name] = float(value)
        else:
            meta[name] = value
    return weight, fields, meta


def parse(row: Row, recognised: Recognised, key: str = "") -> tuple[Record, str]:
    """The record of one row, and the hash of its content where no key is given.

    Raises :class:`RowError` for a row that does not hold what the format needs.
    """
    refuse_images(row)
    form = recognised.form
    parts = form.parse(row)
    weight, fields, meta = extras(row, form)
    own_fields = parts.pop("fields", {})
    own_meta = parts.pop("meta", {})
    if conversational(parts) != recognised.conversational:
        now, others = ("a conversation", "plain text")
        if recognised.conversational:
            now, others = others, now
        raise RowError("row", f"is {now} where the other rows are {others}")
    content = "" if key else content_hash(parts)
    record = form.kind(
        key=key or content,
        weight=weight,
        fields={**fields, **own_fields},
        meta={**meta, **own_meta},
        **parts,
    )
    return record, content
