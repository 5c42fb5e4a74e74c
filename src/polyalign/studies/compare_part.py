"""What an unfinished cell keeps on the disk, so that an interrupted comparison goes on inside it.

A cell that is stopped continues from its last checkpoint, bit for bit as if it had not been: the
state of the training run, what was counted, and what smaller parts of the cell came to.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from polyalign.engine import checkpoint
from polyalign.engine.storage import make_folder, remove_tree, write_json_atomic
from polyalign.errors import RunError
from polyalign.loops.session import Session

EVERY = 60.0
"""Seconds between checkpoints. When one is written changes no figure."""
PATIENCE = 30.0
"""Seconds to wait for a process that was stopped and still holds the cell."""


class Part:
    """A folder of an unfinished cell; with None nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def held(self) -> Iterator[Part]:
        """Within, no other process works on this cell; raises :class:`RunError` where one does."""
        if self.folder is None:
            yield self
            return
        make_folder(self.folder)
        try:
            with FileLock(str(self.folder / "lock"), timeout=PATIENCE):
                yield self
        except Timeout:
            raise RunError(
                f"Another process works on {self.folder.name}.",
                "Wait until it is done, or choose another --output.",
            ) from None

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Plain data that is made once: an interrupted cell reads it back."""
        if self.folder is None:
            return json.loads(json.dumps(make()))
        path = self.folder / f"{name}.json"
        with contextlib.suppress(OSError, ValueError):
            return json.loads(path.read_text("utf-8"))
        value = json.loads(json.dumps(make()))
        write_json_atomic(path, value)
        return value

    def keeper(self, name: str) -> Keeper:
        """Where a training run of the cell keeps its state."""
        return Keeper(None if self.folder is None else self.folder / name)

    def remove(self) -> None:
        """Forget everything: the cell is finished."""
        if self.folder is not None:
            remove_tree(self.folder)


class Keeper:
    """Checkpoints of one training run inside a cell.

    What a session's hooks are given to keep is written with the checkpoint that follows it, and
    read back only up to the checkpoint that is continued: what came after is made again, and
    counted again.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.new: dict[str, Any] = {}
        self.began = self.last = time.monotonic()
        self.before = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of this run so far, earlier processes included."""
        return self.before + time.monotonic() - self.began

    def due(self) -> bool:
        """Whether the next boundary is to be saved."""
        return self.folder is not None and time.monotonic() - self.last >= EVERY

    def save(self, session: Session, counted: Mapping[str, Any], whole: bool = False) -> None:
        """Save a session at a boundary with what was counted; ``whole``: the run is at its end."""
        if self.folder is None or (whole and self.seconds < EVERY):
            return
        step = session.position["step"]
        if self.new and not whole:
            place = self.folder / "kept" / f"{step:08d}"
            checkpoint.save(place, {"value": self.new}, step=0, keep=1)
            self.new = {}
        state = {"policy": session.state()["policy"]} if whole else session.state()
        tree = {"session": state, "counted": dict(counted), "seconds": self.seconds, "whole": whole}
        checkpoint.save(self.folder / "state", tree, step=step, keep=1)
        if whole:
            remove_tree(self.folder / "kept")
        self.last = time.monotonic()

    def newest(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The checkpoint, and what was kept until then by name; None without a good one."""
        if self.folder is None or not (self.folder / "state").is_dir():
            return None
        try:
            found = checkpoint.newest(self.folder / "state")
            if found is None:
                return None
            tree, step = checkpoint.load(found)
            kept: dict[str, Any] = {}
            for place in sorted((self.folder / "kept").glob("*")):
                if int(place.name) > step:
                    remove_tree(place)
                else:
                    kept |= checkpoint.load(place / "step-00000000")[0]["value"]
        except RunError:  # damaged: this run of the cell is begun anew
            remove_tree(self.folder)
            return None
        self.before = float(tree["seconds"])
        return tree, kept
