"""``read``: a source of feedback, recognised, parsed once and kept in the cache."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from polyalign.errors import DataError, nearest
from polyalign.feedback.formats import (
    Format,
    Recognised,
    all_formats,
    as_kind,
    parse,
    recognise,
    recognise_all,
)
from polyalign.feedback.payloads import ImageError, RowError, plain, spelled
from polyalign.feedback.readers import BadLine, Part
from polyalign.feedback.records import Prompt, Record, kind_name
from polyalign.feedback.rowstore import (
    Reject,
    TableStore,
    TableWriter,
    cache_entry,
    open_table,
    written_whole,
)
from polyalign.feedback.sources import Source, open_source
from polyalign.feedback.table import FeedbackSet

SAMPLE = 200
"""Rows looked at to recognise a format."""

MIXED = 0.1
"""Share of rows of another format beyond which a file is mixed and not merely flawed."""


def read(
    source: Source,
    *,
    split: str | None = None,
    kind: type[Record] | str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> FeedbackSet:
    """Feedback from JSONL, JSON, CSV, Parquet (also gzipped text), folders, a hub name or dicts.

    ``kind`` reads rows as that kind where they could be several; ``columns`` maps our names to
    the file's, for example ``{"prompt": "question"}``; ``limit`` stops after so many rows.
    Bad rows are kept in ``rejects``. Raises :class:`DataError` for whole-file mistakes: missing
    or empty files, wrong encoding, truncated gzip, no columns that can be read, mixed formats.
    """
    wanted = as_kind(kind)
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}.", "Give a number of rows of at least 1.")
    mapping = tuple(sorted((columns or {}).items()))
    if isinstance(source, FeedbackSet):
        source = [source.raw(i) for i in range(len(source))]
    elif not isinstance(source, (str, Path, Sequence)) and isinstance(source, Iterable):
        source = list(source)
    parts = open_source(source, split)
    if not parts[0].identity:
        return build(parts, wanted, mapping, limit, None)
    identity = [
        [part.identity for part in parts],
        kind_name(wanted) if wanted else None,
        mapping,
        limit,
    ]
    entry = cache_entry(identity)
    if not (entry / "set.json").exists():
        with written_whole(entry) as folder:
            built = build(parts, wanted, mapping, limit, folder)
        if not (entry / "set.json").exists():  # pragma: no cover - the cache could not be kept
            return built
    return reopen(entry)


def reopen(entry: Path) -> FeedbackSet:
    """The set stored in a folder of the cache."""
    about = json.loads((entry / "set.json").read_text(encoding="utf-8"))
    parser = RowParser(
        about["form"], about["conversational"], tuple((a, b) for a, b in about["mapping"])
    )
    path = entry / "rows.arrow"
    store = TableStore(
        open_table(path), about["files"], parser, frozenset(about["shared_ids"]), path
    )
    rejects = [Reject(**reject) for reject in about["rejects"]]
    recognised = parser.recognised()
    return FeedbackSet(
        store,
        recognised.form.kind,
        recognised.words,
        ", ".join(about["files"]),
        rejects,
        about["columns"],
    )


@dataclass(frozen=True)
class RowParser:
    """Parses a stored row: the columns' mapping, then the format."""

    form: str
    conversational: bool
    columns: tuple[tuple[str, str], ...]

    def __call__(self, row: Mapping[str, Any], key: str) -> Record:
        return parse(renamed(row, self.columns), self.recognised(), key)[0]

    def recognised(self) -> Recognised:
        """The format, found by its identity."""
        return _recognised(self.form, self.conversational)


@cache
def _recognised(identity: str, conversational: bool) -> Recognised:
    form = next(f for f in all_formats() if _identity_of(f) == identity)
    return Recognised(form, conversational)


def _identity_of(form: Format) -> str:
    return f"{form.name}|{form.columns}"


def renamed(row: Mapping[str, Any], columns: tuple[tuple[str, str], ...]) -> Mapping[str, Any]:
    """The row under our names: ``columns`` holds (ours, theirs)."""
    if not columns:
        return row
    taken = {theirs for _, theirs in columns} | {ours for ours, _ in columns}
    others = {name: value for name, value in row.items() if name not in taken}
    return {**{ours: row[theirs] for ours, theirs in columns if theirs in row}, **others}


class Builder:
    """Parses every row once: keys, rejects and columns are known afterwards."""

    def __init__(
        self,
        recognised: Recognised,
        wanted: type[Record] | None,
        mapping: tuple[tuple[str, str], ...],
        writer: TableWriter,
    ) -> None:
        self.recognised = recognised
        self.wanted = wanted
        self.mapping = mapping
        self.writer = writer
        self.rejects: list[Reject] = []
        self.columns: dict[str, None] = {}
        self.ids: set[str] = set()
        self.shared_ids: set[str] = set()
        self.seen: dict[str, int] = {}
        self.foreign: dict[str, tuple[int, str]] = {}
        self.count = 0

    def add(self, file: int, name: str, number: int, row: Mapping[str, Any] | BadLine) -> None:
        self.count += 1
        if isinstance(row, BadLine):
            self.rejects.append(Reject(name, number, "row", row.reason, row.text))
            return
        self.columns.update(dict.fromkeys(row))
        try:
            ours = renamed(row, self.mapping)
            _, content = parse(ours, self.recognised)
        except RowError as error:
            self.rejects.append(Reject(name, number, error.field, error.reason, plain(row)))
            self.note_foreign(ours, f"{name}, row {number}")
            return
        except ImageError:
            raise _images(name, number) from None
        own = own_id(ours)
        if own is not None:
            (self.shared_ids if own in self.ids else self.ids).add(own)
        repeat = self.seen.get(content, 0)
        self.seen[content] = repeat + 1
        content = f"{content}-{repeat}" if repeat else content
        self.writer.add(own, content, file, number, spelled(row))

    def note_foreign(self, row: Mapping[str, Any], where: str) -> None:
        """Count a bad row that is a good row of another, no poorer format."""
        form, ours = recognise(row, self.wanted), self.recognised
        if form is None:
            return
        if form.name == ours.form.name and self.rejects[-1].field == "row":
            other = "plain text" if ours.conversational else "conversations"
        elif form.name == ours.form.name or form.kind is Prompt or form.used < ours.form.used:
            return
        else:
            other = form.name
        count, first = self.foreign.get(other, (0, where))
        self.foreign[other] = (count + 1, first)

    def refuse_mixture(self) -> None:
        for other, (count, first) in self.foreign.items():
            if count > MIXED * self.count:
                raise DataError(
                    f"Two formats are mixed: {self.count - count} rows are "
                    f"{self.recognised.words}, {count} are {other} (the first: {first}).",
                    "Put them into files of their own.",
                )


def build(
    parts: list[Part],
    wanted: type[Record] | None,
    mapping: tuple[tuple[str, str], ...],
    limit: int | None,
    folder: Path | None,
) -> FeedbackSet:
    """Read every row of the parts once, into ``folder`` or into memory."""
    rows = itertools.islice(numbered(parts), limit)
    name = parts[0].name if len(parts) == 1 else f"{parts[0].name} and {len(parts) - 1} more"
    head = list(itertools.islice(rows, SAMPLE))
    if not head:
        raise DataError(f"{name} has no rows.", "Write at least one row into it.")
    sample = [row for _, _, row in head if not isinstance(row, BadLine)]
    _check_mapping(sample, mapping, name)
    try:
        recognised = recognise_all((renamed(row, mapping) for row in sample), wanted, name)
    except ImageError:
        raise _images(name, None) from None
    writer = TableWriter(folder / "rows.arrow" if folder else None)
    builder = Builder(recognised, wanted, mapping, writer)
    try:
        for file, number, row in itertools.chain(head, rows):
            builder.add(file, parts[file].name, number, row)
        builder.refuse_mixture()
        if len(builder.rejects) == builder.count:
            bad = builder.rejects[0]
            raise DataError(
                f"{name} was taken for {recognised.words}, but none of its rows can be read "
                f"(row {bad.row}: {bad.field} {bad.reason}).",
                "Mend the rows, or map the columns.",
            )
        table = writer.close()
    except BaseException:
        writer.abort()
        raise
    parser = RowParser(_identity_of(recognised.form), recognised.conversational, mapping)
    files = [part.name for part in parts]
    if folder is not None:
        about = {
            "form": parser.form,
            "conversational": parser.conversational,
            "mapping": mapping,
            "files": files,
            "columns": list(builder.columns),
            "shared_ids": sorted(builder.shared_ids),
            "rejects": [vars(reject) for reject in builder.rejects],
        }
        (folder / "set.json").write_text(spelled(about), encoding="utf-8")
    return FeedbackSet(
        TableStore(table, files, parser, frozenset(builder.shared_ids)),
        recognised.form.kind,
        recognised.words,
        ", ".join(files),
        builder.rejects,
        list(builder.columns),
    )


def numbered(parts: list[Part]) -> Iterator[tuple[int, int, Mapping[str, Any] | BadLine]]:
    """(part, row number, row) over all the parts."""
    for file, part in enumerate(parts):
        for number, row in part.rows():
            yield file, number, row


def _check_mapping(
    sample: list[Mapping[str, Any]], mapping: tuple[tuple[str, str], ...], name: str
) -> None:
    found = {column for row in sample for column in row}
    for ours, theirs in mapping:
        if theirs not in found:
            raise DataError(
                f"{name} has no column {theirs!r} (asked for as {ours}).", nearest(theirs, found)
            )


def own_id(row: Mapping[str, Any]) -> str | None:
    """The row's own ``id`` or ``key``, as text."""
    for name in ("id", "key"):
        value = row.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def _images(name: str, number: int | None) -> DataError:
    at = f", row {number}," if number else ""
    return DataError(
        f"{name}{at} holds images, which polyalign does not train on.",
        "Use feedback on text, or leave the image columns out.",
    )
