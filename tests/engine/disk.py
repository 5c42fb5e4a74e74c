"""Disks that fail: a system that refuses, a process that is killed, a machine that loses power."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from polyalign.engine.storage import FileSystem


class Killed(BaseException):
    """The process is gone: nothing after this has any effect."""


class Disk(FileSystem):
    """Counts effects; ``at`` the k-th (from 0) it does what a subclass says."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.count = at, 0
        self.paths: dict[int, Path] = {}

    def strike(self, path: Path, data: memoryview | None = None, file: int = -1) -> None:
        """The k-th effect comes."""

    def _next(self, path: Path, data: memoryview | None = None, file: int = -1) -> None:
        self.count += 1
        if self.at >= 0 and self.count > self.at:
            self.strike(path, data, file)

    def mkdir(self, path):
        self._next(path)
        super().mkdir(path)

    def create(self, path):
        self._next(path)
        file = super().create(path)
        self.paths[file] = path
        return file

    def append(self, path):
        self._next(path)
        file = super().append(path)
        self.paths[file] = path
        return file

    def write(self, file, data):
        self._next(self.paths[file], memoryview(data), file)
        super().write(file, data)

    def truncate(self, file, size):
        self._next(self.paths[file])
        super().truncate(file, size)

    def sync(self, file):
        self._next(self.paths[file])
        super().sync(file)

    def sync_folder(self, path):
        self._next(path)
        super().sync_folder(path)

    def rename(self, old, new):
        self._next(new)
        super().rename(old, new)

    def remove(self, path):
        self._next(path)
        super().remove(path)


class Refusing(Disk):
    """From the k-th effect on (``lasting``) or at it alone, the system refuses with ``code``."""

    def __init__(self, at: int, code: int = errno.ENOSPC, lasting: bool = False) -> None:
        super().__init__(at)
        self.code, self.lasting = code, lasting

    def strike(self, path, data=None, file=-1):
        if self.lasting or self.count == self.at + 1:
            if data is not None:  # a disk fills up in the middle of a write
                os.write(file, data[: len(data) // 2])
            raise OSError(self.code, os.strerror(self.code), str(path))


class FullDisk(Refusing):
    """No space for anything new; removing still works, as on a real full disk."""

    def strike(self, path, data=None, file=-1):
        super().strike(path, data, file)

    def remove(self, path):
        FileSystem.remove(self, path)

    def rename(self, old, new):
        FileSystem.rename(self, old, new)


class Killing(Disk):
    """kill -9 at the k-th effect: what was done before stays, also half of a write."""

    def strike(self, path, data=None, file=-1):
        if data is not None and self.count == self.at + 1:
            os.write(file, data[: len(data) // 2])
        raise Killed


class PowerLoss(Killing):
    """The machine stops at the k-th effect: what was not synced is gone (:meth:`lose`)."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.unsynced: set[Path] = set()  # files whose content is only in the cache
        # Effects on folders not yet synced: what, from, to, and the file that a rename covered.
        self.names: list[tuple[str, Path, Path, bytes | None]] = []

    def mkdir(self, path):
        super().mkdir(path)
        self.names.append(("made", path, path, None))

    def create(self, path):
        new = not path.exists()
        file = super().create(path)
        self.unsynced.add(path)
        if new:
            self.names.append(("made", path, path, None))
        return file

    def sync(self, file):
        super().sync(file)
        self.unsynced.discard(self.paths[file])

    def sync_folder(self, path):
        super().sync_folder(path)
        self.names = [name for name in self.names if path not in (name[1].parent, name[2].parent)]

    def rename(self, old, new):
        covered = new.read_bytes() if new.is_file() else None
        super().rename(old, new)
        self.names.append(("renamed", old, new, covered))
        self.unsynced = {
            new / p.relative_to(old) if p.is_relative_to(old) else p for p in self.unsynced
        }

    def lose(self) -> None:
        """What the disk looks like after the machine comes up again."""
        for path in self.unsynced:
            if path.is_file():
                os.truncate(path, path.stat().st_size // 2)
        for what, old, new, covered in reversed(self.names):
            if what == "renamed" and new.exists():
                os.replace(new, old)
                if covered is not None:
                    new.write_bytes(covered)
            elif what == "made" and old.is_dir():
                shutil.rmtree(old)
            elif what == "made" and old.exists():
                old.unlink()
