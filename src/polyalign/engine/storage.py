"""Files that survive a crash: whole or not at all, on the disk when a call returns.

Every effect on the disk goes through :data:`fs`, so that a test can fail or crash at each one.
Loads no torch.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from polyalign.errors import RunError

Bytes = bytes | memoryview

CHUNK = 1 << 24
"""Bytes handed to the system at once: hashing and writing a large tensor needs no copy of it."""


class FileSystem:
    """The effects that storage has on the disk, one method each."""

    def mkdir(self, path: Path) -> None:
        path.mkdir()

    def create(self, path: Path) -> int:
        """Open a new or emptied file for writing; returns its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def append(self, path: Path) -> int:
        """Open a file for appending (and for reading its end); returns its descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def write(self, file: int, data: Bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]

    def truncate(self, file: int, size: int) -> None:
        os.ftruncate(file, size)

    def sync(self, file: int) -> None:
        """Return once the file's content is on the disk and not merely in a cache."""
        with contextlib.suppress(ImportError, AttributeError, OSError):
            # On macOS fsync stops at the drive's own cache; this goes through it.
            import fcntl

            fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined,unused-ignore]
            return
        os.fsync(file)

    def sync_folder(self, path: Path) -> None:
        """Return once the names in a folder are on the disk."""
        folder = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        """Remove a file or an empty folder."""
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()

    def read(self, path: Path) -> Iterator[bytes]:
        """The file's bytes, in pieces of at most ``CHUNK``."""
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                yield piece


fs = FileSystem()


def explain(error: OSError, doing: str, path: Path) -> RunError:
    """The sentence and the mend for what the operating system refused.

    ``doing`` completes "cannot …", for example "write the checkpoint of step 10".
    """
    what = f"Cannot {doing}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"{what}: no space is left for {path}.",
            "Free space on that disk (or raise the quota), then go on with --resume.",
        )
    if error.errno == errno.EROFS:
        return RunError(f"{what}: {path} is on a read-only disk.", "Choose another --output.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return RunError(
            f"{what}: permission denied for {path}.",
            "Give yourself access to it (chmod, chown), or choose another --output.",
        )
    if error.errno == errno.ENOENT:
        return RunError(f"{what}: {path} does not exist.", "Check the path.")
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return RunError(
            f"{what}: {path} is {_sort(path)} where another sort of file is needed.",
            "Move it away, or choose another --output.",
        )
    return RunError(
        f"{what}: {error.strerror or error} ({path}).", "Check the disk, then go on with --resume."
    )


def _sort(path: Path) -> str:
    return "a folder" if path.is_dir() else "not a folder"


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, durably; an existing one is left as it is."""
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        fs.mkdir(path)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(path))
    fs.sync_folder(path.parent)


def write_file(path: Path, pieces: Iterable[Bytes]) -> tuple[int, str]:
    """Write and sync one file in place (not atomic); returns its size in bytes and its sha256.

    The name is durable only once the caller has synced the folder.
    """
    digest, size = hashlib.sha256(), 0
    file = fs.create(path)
    try:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            for start in range(0, len(view), CHUNK):
                part = view[start : start + CHUNK]
                fs.write(file, part)
                digest.update(part)
            size += len(view)
        fs.sync(file)
    finally:
        os.close(file)
    return size, digest.hexdigest()


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all it holds; nothing is done when it is absent."""
    if path.is_dir() and not path.is_symlink():
        for child in sorted(path.iterdir()):
            remove_tree(child)
    elif not path.exists() and not path.is_symlink():
        return
    fs.remove(path)


def _write_atomic(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.writing")
    try:
        write_file(temporary, [data])
        fs.rename(temporary, path)
        fs.sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_tree(temporary)
        raise


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 file that is, after any crash, the old one or the new one in full.

    Raises RunError when the system refuses; the old file is then intact.
    """
    path = Path(path)
    try:
        _write_atomic(path, text.encode())
    except OSError as error:
        raise explain(error, f"write {path.name}", path) from error


def write_json_atomic(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; keys keep their order.

    Raises RunError when the system refuses, TypeError when ``value`` is not JSON.
    """
    write_text_atomic(path, _dumps(value, indent=2) + "\n")


def _dumps(value: Any, indent: int | None = None) -> str:
    """JSON in readable Unicode; numbers that are not finite as NaN and Infinity."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: only an escape can carry it
        return json.dumps(value, indent=indent)
    return text


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON object as a line and return once it is on the disk.

    A line torn by an earlier crash is removed first. Raises RunError when the system refuses;
    the lines before are then intact and no part of the new one is left.
    """
    path = Path(path)
    line = (_dumps(value) + "\n").encode()
    try:
        new = not path.exists()
        file = fs.append(path)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                last = path.read_bytes().rpartition(b"\n")[2]
                if _is_object(last):  # complete, but for its end of line
                    line = b"\n" + line
                else:
                    size -= len(last)
                    fs.truncate(file, size)
            try:
                fs.write(file, line)
                fs.sync(file)
            except OSError:
                with contextlib.suppress(OSError):
                    fs.truncate(file, size)
                raise
        finally:
            os.close(file)
        if new:
            fs.sync_folder(path.parent)
    except OSError as error:
        raise explain(error, f"add a line to {path.name}", path) from error


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Each line as written and as read; without a torn last one."""
    lines = b"".join(fs.read(path)).split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    read: list[tuple[bytes, dict[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines):
                break
            raise RunError(
                f"Line {number} of {path} is not a JSON object.",
                f"Remove that line, for example with: sed -i {number}d {path}",
            ) from error
        read.append((line, value))
    return read


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, in order; a torn last line is left out, a missing file is empty.

    Raises RunError for an unreadable file or a broken line before the last.
    """
    path = Path(path)
    try:
        return [value for _, value in _lines(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise explain(error, f"read {path.name}", path) from error


def truncate_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Leave only the lines that ``keep`` accepts, byte for byte, rewriting the file atomically.

    A torn last line goes; a missing file stays missing. Raises as :func:`read_lines`.
    """
    path = Path(path)
    try:
        kept = b"".join(line + b"\n" for line, value in _lines(path) if keep(value))
        if kept != path.read_bytes():
            _write_atomic(path, kept)
    except FileNotFoundError:
        return
    except OSError as error:
        raise explain(error, f"rewrite {path.name}", path) from error
