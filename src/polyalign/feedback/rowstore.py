"""Stores: where the rows of a feedback set lie.

Rows are kept as they were read (JSON text in a memory-mapped Arrow file), beside their key and
place, and become records only when asked for. So files of any shape fit, and files larger than
memory work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from polyalign.errors import DataError
from polyalign.feedback.records import Record

CHUNK = 1000
"""Rows a record batch."""

VERSION = "1"
"""Goes up when the stored form changes, so that old caches are not read."""


@dataclass(frozen=True)
class Reject:
    """A row that could not be read or was removed: where, which field, why, and the row whole."""

    file: str
    row: int
    field: str
    reason: str
    raw: Any
    key: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The reject as a line of a rejects file."""
        place = {"file": self.file, "row": self.row, "field": self.field, "reason": self.reason}
        return {**place, **({"key": self.key} if self.key else {}), "raw": self.raw}

    @property
    def where(self) -> str:
        """File and row, in words."""
        return f"{self.file}, row {self.row}"


class Store(Protocol):
    """Rows by index: the record, the row as it was read, and its place."""

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record: ...

    def raw(self, index: int) -> Mapping[str, Any]: ...

    def place(self, index: int) -> tuple[str, int]: ...


def cache_folder() -> Path:
    """``$POLYALIGN_CACHE``, else ``polyalign`` in the user's cache folder."""
    own = os.environ.get("POLYALIGN_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "polyalign"


def cache_entry(identity: Any) -> Path:
    """The folder that belongs to a source read in one way."""
    spelled = json.dumps([VERSION, identity], sort_keys=True)
    return cache_folder() / "feedback" / hashlib.sha256(spelled.encode()).hexdigest()[:24]


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` at once when the block ends well."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    except OSError as error:
        raise _no_cache(folder, error) from error
    try:
        yield temporary
        with contextlib.suppress(OSError):  # somebody else wrote the same meanwhile
            temporary.rename(folder)
    except OSError as error:
        raise _no_cache(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _no_cache(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"Cannot write the cache of the feedback in {folder.parent} ({error.strerror or error}).",
        "Free some space there, or name another folder in the variable POLYALIGN_CACHE.",
    )


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("own", pa.string()),
            ("hash", pa.string()),
            ("file", pa.int32()),
            ("row", pa.int64()),
            ("raw", pa.large_string()),
        ]
    )


class TableWriter:
    """Collects rows and writes them in chunks, to a file or to memory."""

    def __init__(self, path: Path | None) -> None:
        import pyarrow as pa

        self.path = path
        self.schema = _schema()
        self.batches: list[Any] = []
        self.rows: list[tuple[str | None, str, int, int, str]] = []
        self.sink = pa.OSFile(str(path), "wb") if path else None
        self.writer = pa.ipc.new_file(self.sink, self.schema) if path else None

    def add(self, own: str | None, content: str, file: int, row: int, raw: str) -> None:
        self.rows.append((own, content, file, row, raw))
        if len(self.rows) == CHUNK:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if not self.rows:
            return
        columns = [
            pa.array(values, type=field.type)
            for values, field in zip(zip(*self.rows, strict=True), self.schema, strict=True)
        ]
        batch = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        if self.writer is not None:
            self.writer.write_batch(batch)
        else:
            self.batches.append(batch)
        self.rows = []

    def close(self) -> Any:
        """The table, memory-mapped where it was written to a file."""
        import pyarrow as pa

        self.flush()
        if self.writer is None:
            return pa.Table.from_batches(self.batches, schema=self.schema)
        self.writer.close()
        assert self.sink is not None
        self.sink.close()
        assert self.path is not None
        return open_table(self.path)

    def abort(self) -> None:
        if self.sink is not None:
            self.sink.close()


def open_table(path: Path) -> Any:
    """The memory-mapped table of a file."""
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


class TableStore:
    """Rows in an Arrow table, parsed when asked for."""

    def __init__(
        self,
        table: Any,
        files: list[str],
        parse: Callable[[Mapping[str, Any], str], Record],
        shared_ids: frozenset[str],
        path: Path | None = None,
    ) -> None:
        self.table = table
        self.files = files
        self.parse = parse
        self.shared_ids = shared_ids
        self.path = path
        self.columns = {name: table.column(name) for name in ("own", "hash", "file", "row", "raw")}

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def value(self, column: str, index: int) -> Any:
        # Every chunk but the last has CHUNK rows, so the place is known without a search.
        return self.columns[column].chunk(index // CHUNK)[index % CHUNK].as_py()

    def key(self, index: int) -> str:
        """The row's own id where no other row has it, else the hash of its content."""
        own = self.value("own", index)
        if own is not None and own not in self.shared_ids:
            return str(own)
        return str(self.value("hash", index))

    def raw(self, index: int) -> Mapping[str, Any]:
        row: Mapping[str, Any] = json.loads(self.value("raw", index))
        return row

    def record(self, index: int) -> Record:
        return self.parse(self.raw(index), self.key(index))

    def place(self, index: int) -> tuple[str, int]:
        return self.files[self.value("file", index)], self.value("row", index)

    def __getstate__(self) -> dict[str, Any]:
        # Workers open the file anew instead of receiving a copy of it.
        state = dict(self.__dict__)
        del state["columns"]
        if self.path is not None:
            del state["table"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.path is not None:
            self.table = open_table(self.path)
        self.columns = {
            name: self.table.column(name) for name in ("own", "hash", "file", "row", "raw")
        }


class ListStore:
    """Records in memory, for sets that come from elsewhere than a file."""

    def __init__(self, records: list[Record], source: str) -> None:
        self.records = records
        self.source = source

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Record:
        return self.records[index]

    def raw(self, index: int) -> Mapping[str, Any]:
        from polyalign.feedback.writing import to_row

        return to_row(self.records[index])

    def place(self, index: int) -> tuple[str, int]:
        return self.source, index + 1
