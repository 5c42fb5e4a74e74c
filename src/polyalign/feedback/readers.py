"""Readers: rows out of files, one at a time.

Nothing here knows what a row means. Whole-file mistakes (missing, empty, wrong encoding,
truncated) raise :class:`DataError`; a line that is not a row comes out as :class:`BadLine`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from polyalign.errors import DataError
from polyalign.feedback.payloads import is_messages, type_name

Rows = Iterator["tuple[int, Mapping[str, Any] | BadLine]"]
"""Rows with their number: the line in text files, else 1, 2, …"""

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")


@dataclass(frozen=True)
class BadLine:
    """A line that is not a row: what stands there, and why it cannot be read."""

    text: str
    reason: str


@dataclass(frozen=True)
class Part:
    """One place to read from: its name for messages, its identity for the cache, its rows."""

    name: str
    identity: str
    rows: Callable[[], Rows]


def ending(path: Path) -> str:
    """A file's ending without ``.gz``.

    >>> ending(Path("a/pairs.jsonl.gz"))
    '.jsonl'
    """
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def open_file(path: Path) -> Part:
    """The part that one file is; raises :class:`DataError` for empty and unknown files."""
    status = path.stat()
    if status.st_size == 0:
        raise DataError(f"{path} is empty.", "Write at least one row into it.")
    readers = {
        ".jsonl": jsonl_rows,
        ".ndjson": jsonl_rows,
        ".json": json_rows,
        ".csv": csv_rows,
        ".tsv": csv_rows,
        ".parquet": _parquet_rows,
        ".arrow": _arrow_rows,
    }
    reader = readers.get(ending(path))
    if reader is None:
        raise DataError(
            f"{path} is of no kind that can be read.",
            f"Give it one of the endings {', '.join(readers)} (text files also with .gz).",
        )
    identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    return Part(str(path), identity, lambda: reader(path))


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked if it is gzip; a damaged archive is a :class:`DataError`."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        if packed:
            with gzip.open(path, "rb") as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            with open(path, "rb") as file:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is a damaged or truncated gzip file ({error}).",
            f"Copy or download it again; gzip -t {path.name} tells when it is whole.",
        ) from error
    except PermissionError as error:
        raise DataError(f"{path} may not be read.", f"Allow it: chmod u+r {path}.") from error


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, number, error) from error


def _wrong_encoding(path: Path, number: int | None, error: UnicodeError) -> DataError:
    at = f" (line {number})" if number else ""
    return DataError(
        f"{path} is not UTF-8{at}: {error}.",
        f"Convert it, for example: iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}.",
    )


def jsonl_rows(path: Path) -> Rows:
    """One JSON object a line; blank lines hold nothing and are passed over."""
    rows = bad = 0
    first = ""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            text = _decode(line, path, number).strip()
            if not text:
                continue
            row = _parse_line(text)
            if isinstance(row, BadLine):
                bad += 1
                first = first or f"line {number}: {row.reason}"
                if rows == 0 and bad == 20:
                    raise _not_json(path, first)
            else:
                rows += 1
            yield number, row
    if rows == 0 and bad:
        raise _not_json(path, first)


def _not_json(path: Path, first: str) -> DataError:
    return DataError(f"{path} is not JSON Lines ({first}).", "Write one JSON object on each line.")


def _parse_line(text: str) -> Mapping[str, Any] | BadLine:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadLine(text, f"is not JSON: {error}")
    if not isinstance(row, Mapping):
        return BadLine(text, f"is {type_name(row)}, not an object")
    return row


def json_rows(path: Path) -> Rows:
    """A list of objects, or an object that holds one such list; JSON Lines pass too."""
    with opened(path) as file:
        data = file.read()
    try:
        whole = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, data[: error.start].count(b"\n") + 1, error) from error
    except ValueError as error:
        lines = data.decode("utf-8-sig").strip().split("\n", 1)
        if "Extra data" in str(error) and not isinstance(_parse_line(lines[0]), BadLine):
            yield from jsonl_rows(path)
            return
        raise DataError(
            f"{path} is not JSON: {error}.", "Mend it there, or write one object on each line."
        ) from error
    if isinstance(whole, Mapping):
        lists = [
            value
            for value in whole.values()
            if isinstance(value, list) and value and isinstance(value[0], Mapping)
        ]
        # A single row may itself hold one list of objects (its messages).
        if len(lists) == 1 and not any(
            name in lists[0][0] for name in ("role", "from", "annotator", "content")
        ):
            whole = lists[0]
        else:
            whole = [whole]
    if not isinstance(whole, list):
        raise DataError(f"{path} holds {type_name(whole)}, not rows.", "Make it a list of objects.")
    for number, row in enumerate(whole, 1):
        if isinstance(row, Mapping):
            yield number, row
        else:
            yield number, BadLine(json.dumps(row), f"is {type_name(row)}, not an object")


TEXT_COLUMNS = frozenset(
    {
        *("prompt", "chosen", "rejected", "completion", "text", "response", "instruction", "input"),
        *("output", "system", "question", "answer", "id", "key", "response_a", "response_b"),
        *("prompt_1", "prompt_2", "completion_1", "completion_2"),
    }
)


def cell(name: str, text: str) -> Any:
    """A CSV cell's value: JSON lists and objects, numbers and booleans outside text columns."""
    if name in TEXT_COLUMNS:
        # A text may look like JSON; only a conversation is taken for one.
        if text.startswith("[{"):
            with suppress(ValueError):
                value = json.loads(text)
                if is_messages(value):
                    return value
        return text
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    folded = text.strip().lower()
    if folded in ("", "null", "none"):
        return None
    if folded in ("true", "false"):
        return folded == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def csv_rows(path: Path) -> Rows:
    """A header and rows; the number is the line on which a row begins."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = "\t" if ending(path) == ".tsv" else ","
    with opened(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
            if not header:
                raise DataError(f"{path} has no header.", "Name the columns in its first line.")
            begins = reader.line_num + 1
            for cells in reader:
                if len(cells) == len(header):
                    row = {name: cell(name, t) for name, t in zip(header, cells, strict=True)}
                    yield begins, row
                elif cells:
                    reason = f"has {len(cells)} cells under a header of {len(header)}"
                    yield begins, BadLine(delimiter.join(cells), reason)
                begins = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise _wrong_encoding(path, None, error) from error
        except csv.Error as error:
            raise DataError(
                f"{path} is not CSV at line {reader.line_num}: {error}.",
                "Quote texts that hold quotes, commas or line breaks.",
            ) from error


def _parquet_rows(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(path, "Parquet", error) from error


def _arrow_rows(path: Path) -> Rows:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            try:
                batches: Iterable[Any] = pa.ipc.open_stream(file)
            except pa.ArrowInvalid:
                whole = pa.ipc.open_file(file)
                batches = (whole.get_batch(i) for i in range(whole.num_record_batches))
            number = 0
            for batch in batches:
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowInvalid, OSError) as error:
        raise damaged(path, "Arrow", error) from error


def damaged(path: Path, what: str, error: Exception) -> DataError:
    """The error for a file that is not what its ending says."""
    return DataError(
        f"{path} is not {what}, or damaged ({str(error).splitlines()[0]}).",
        "Write or copy it again.",
    )
