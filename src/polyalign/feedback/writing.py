"""Writing: records as TRL's rows, rows as files."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from polyalign.errors import DataError
from polyalign.feedback.payloads import is_conversation, plain, spelled
from polyalign.feedback.readers import ending
from polyalign.feedback.records import (
    OTHER_ANSWERS,
    Binary,
    Demonstration,
    Pair,
    Payload,
    Prompt,
    Quadruple,
    Record,
    Scored,
    Steps,
    Votes,
)
from polyalign.feedback.rowstore import Reject
from polyalign.feedback.table import FeedbackSet

WRITTEN = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Endings that can be written; the text ones also with ``.gz``; no ending is a folder."""

LABELS = {1.0: "a", 0.0: "b", 0.5: "tie"}


def as_column(payload: Payload) -> Any:
    """A payload as a file holds it: text, or a list of messages."""
    if is_conversation(payload):
        return [dict(turn) for turn in payload]
    return payload


def content_row(record: Record) -> dict[str, Any]:
    """The columns that say what a record's kind says, under TRL's names where it has them."""
    match record:
        case Prompt(prompt=prompt):
            return {"prompt": as_column(prompt)}
        case Demonstration(prompt="", completion=completion):
            return {"text": as_column(completion)}
        case Demonstration(prompt=prompt, completion=completion):
            return {"prompt": as_column(prompt), "completion": as_column(completion)}
        case Pair(prompt=prompt, chosen=chosen, rejected=rejected, others=others):
            return {
                "prompt": as_column(prompt),
                "chosen": as_column(chosen),
                "rejected": as_column(rejected),
                **{role: as_column(answer) for role, answer in others.items()},
            }
        case Binary(prompt=prompt, completion=completion, label=label):
            return {
                "prompt": as_column(prompt),
                "completion": as_column(completion),
                "label": label,
            }
        case Scored(prompt=prompt, completions=completions, scores=scores, aspects=aspects):
            row = {
                "prompt": as_column(prompt),
                "completions": [as_column(c) for c in completions],
                "scores": list(scores),
            }
            return {**row, **({"aspects": plain(aspects)} if aspects else {})}
        case Votes(prompt=prompt, completions=completions, votes=votes):
            return {
                "prompt": as_column(prompt),
                "completions": [as_column(c) for c in completions],
                "annotations": [
                    {"annotator": who, "first": i, "second": j, "label": LABELS[outcome]}
                    for who, i, j, outcome in votes
                ],
            }
        case Quadruple(prompts=prompts, completions=completions):
            return {
                "prompt_1": as_column(prompts[0]),
                "prompt_2": as_column(prompts[1]),
                "completion_1": as_column(completions[0]),
                "completion_2": as_column(completions[1]),
            }
        case Steps(prompt=prompt, steps=steps, labels=labels):
            return {
                "prompt": as_column(prompt),
                "completions": [as_column(step) for step in steps],
                "labels": list(labels),
            }
    raise DataError(f"A {type(record).__name__} has no form as a row.", "Convert it first.")


def to_row(record: Record) -> dict[str, Any]:
    """A record as one row: its key as ``id``, its content, weight, fields and meta as columns."""
    row = {"id": record.key, **content_row(record)}
    if record.weight != 1.0:
        row["weight"] = record.weight
    # A name that is already a column of another meaning goes one level down.
    for name, values in (("fields", record.fields), ("meta", record.meta)):
        below = {k: v for k, v in values.items() if k in row or k in RESERVED}
        row.update({k: plain(v) for k, v in values.items() if k not in below})
        if below:
            row[name] = plain(below)
    return row


RESERVED = frozenset(
    {
        *("id", "key", "weight", "fields", "meta", "prompt", "chosen", "rejected", "completion"),
        *("completions", "responses", "text", "messages", "conversations", "label", "kto_tag"),
        *("labels", "steps", "annotations", "pairwise", "scores", "ranks", "rewards", "aspects"),
        *("reward", "score", "winner", "instruction", "image", "images", *OTHER_ANSWERS),
    }
)
"""Column names that change what a row is taken for."""


def to_trl(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """Rows of TRL's dataset types (and, for kinds it has no type for, of their nearest kin).

    >>> pair = Pair(key="a", prompt="1+1=", chosen=" 2", rejected=" 3")
    >>> next(to_trl([pair]))
    {'id': 'a', 'prompt': '1+1=', 'chosen': ' 2', 'rejected': ' 3'}
    """
    for record in records:
        yield to_row(record)


def own_rows(feedback: FeedbackSet) -> Iterator[Mapping[str, Any]]:
    """The rows of a set as they stand in their source."""
    for index in range(len(feedback)):
        yield feedback.raw(index)


def write(rows: Iterable[Mapping[str, Any] | Record], path: str | os.PathLike[str]) -> Path:
    """Write rows (or records, in TRL's form) to a file by its ending, or to a datasets folder.

    Endings: .jsonl, .json, .csv, .tsv (each also with .gz) and .parquet; a path without an
    ending becomes a ``datasets`` folder. What stood there is replaced once all is written.
    """
    target = Path(path).expanduser()
    data = (to_row(row) if isinstance(row, Record) else row for row in rows)
    kind = ending(target)
    if kind not in WRITTEN and target.suffix in ("", "."):
        writer = _write_folder
    elif kind in WRITTEN:
        writer = {".jsonl": _write_jsonl, ".json": _write_json, ".parquet": _write_parquet}.get(
            kind, write_csv
        )
    else:
        raise DataError(
            f"Cannot write {target}: the ending {target.suffix} is not known.",
            f"Use {', '.join(WRITTEN)}, or no ending for a datasets folder.",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=target.parent) as folder:
            # The name keeps its ending: it decides packing and delimiter.
            temporary = Path(folder) / target.name
            writer(data, temporary)
            if target.is_dir() and temporary.is_dir():
                shutil.rmtree(target)
            temporary.replace(target)
    except OSError as error:
        raise DataError(
            f"Cannot write {target} ({error.strerror or error}).",
            "Free some space, or give a path in a folder that may be written.",
        ) from error
    return target


@contextlib.contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    with contextlib.ExitStack() as stack:
        raw: Any = stack.enter_context(open(path, "wb"))
        if path.name.endswith(".gz"):
            # No name and time in the header: the same rows make the same bytes.
            raw = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8", newline=""))


def _write_jsonl(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    with _open_text(path) as file:
        for row in rows:
            file.write(json.dumps(plain(row), ensure_ascii=False) + "\n")


def _write_json(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    with _open_text(path) as file:
        json.dump([plain(row) for row in rows], file, ensure_ascii=False, indent=1)


def _all_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def write_csv(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Conversations and lists become JSON in their cell, as the reader expects."""
    held = list(rows)
    names = _all_columns(held)
    with _open_text(path) as file:
        writer = csv.writer(file, delimiter="\t" if ending(path) == ".tsv" else ",")
        writer.writerow(names)
        for row in held:
            writer.writerow([_csv_cell(row.get(name)) for name in names])


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else spelled(value)


def arrow_table(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Rows as an Arrow table; a column of mixed types is written as JSON text."""
    import pyarrow as pa

    held = [plain(row) for row in rows]
    columns: dict[str, Any] = {}
    for name in _all_columns(held):
        values = [row.get(name) for row in held]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns[name] = pa.array([None if v is None else spelled(v) for v in values])
        if columns[name].type == pa.struct([]):
            columns[name] = pa.array([None if v is None else spelled(v) for v in values])
    return pa.table(columns)


def _write_parquet(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(arrow_table(rows), path)


def _write_folder(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset(arrow_table(rows)).save_to_disk(str(path))


def write_rejects(rejects: Iterable[Reject], path: str | os.PathLike[str]) -> Path:
    """Write rejects as JSON Lines: file, row, field, reason and the row whole."""
    return write((reject.to_dict() for reject in rejects), path)
