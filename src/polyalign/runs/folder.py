"""A run folder: what is written where, and what a session's hooks do with it."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from polyalign.engine import checkpoint, processes, sharding
from polyalign.engine.storage import append_line, explain, make_folder, read_lines, truncate_lines
from polyalign.errors import Interrupted, RunError
from polyalign.evaluation.diagnosis import advise
from polyalign.loops.session import Session
from polyalign.runs.config import TrainConfig
from polyalign.runs.loggers import Loggers


class Watcher(Protocol):
    """Who looks at a run while it goes: the command line's progress bars, or nobody."""

    def note(self, text: str) -> None:
        """One line to read."""
        ...

    def step(self, row: Mapping[str, Any], total: int) -> None:
        """An optimizer step or an evaluation is done."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """Something else that takes long: ``done`` of ``total``."""
        ...


class Silent:
    """Watches without a word."""

    def note(self, text: str) -> None: ...

    def step(self, row: Mapping[str, Any], total: int) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...


class Ended(Exception):
    """Training ends before its last step because a metric no longer improves."""


class RunFolder:
    """The files of one run: config.yaml, plan.json, metrics.jsonl, checkpoints/, final/, …"""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def started(self) -> bool:
        """Whether a run has been here."""
        return (self.path / "plan.json").exists()

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "final" / "polyalign.json").exists()

    def create(self) -> None:
        """Make the folder; raises :class:`RunError` where that is not allowed."""
        try:
            make_folder(self.path)
        except OSError as error:
            raise explain(error, "make the run folder", self.path) from None

    def metrics(self) -> list[dict[str, Any]]:
        """Every row of metrics.jsonl that is whole."""
        file = self.path / "metrics.jsonl"
        return read_lines(file) if file.exists() else []

    def plan(self) -> dict[str, Any]:
        """plan.json as data; raises :class:`RunError` when it cannot be read."""
        try:
            return dict(json.loads((self.path / "plan.json").read_text("utf-8")))
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.path / 'plan.json'} cannot be read ({error}).",
                "Start the run again in a new folder.",
            ) from None


class FolderHooks:
    """A session's hooks that write to a run folder, watch for signals and give advice."""

    def __init__(
        self, folder: RunFolder, config: TrainConfig, steps: int, watcher: Watcher, loggers: Loggers
    ) -> None:
        self.folder = folder
        self.config = config
        self.steps = steps
        self.watcher = watcher
        self.loggers = loggers
        self.history = folder.metrics()
        self.before = max((row.get("time", 0.0) for row in self.history), default=0.0)
        self.began = time.monotonic()
        self.stopping: str | None = None
        self.saved: int | None = None
        self.given = {line["code"] for line in read_lines(folder / "advice.jsonl")}

    # What the session calls

    def step(self, session: Session, row: dict[str, Any]) -> None:
        row["time"] = round(self.before + time.monotonic() - self.began, 3)
        if processes.rank() == 0:
            self.history.append(row)
            self.loggers.log(row)
            self._advise()
        self.watcher.step(row, self.steps)
        if row["split"] == "eval" and self.config.early_stopping:
            self._early(session, row)

    def boundary(self, session: Session) -> None:
        step = session.position["step"]
        due = self.config.save_every and step % self.config.save_every == 0
        # A signal may reach one process before another; they stop at the same boundary.
        stopping = next((why for why in processes.gather(self.stopping) if why), None)
        if due or stopping:
            self.save(session)
        if stopping:
            raise Interrupted(
                f"Stopped by {stopping} after step {step}; everything is saved.",
                f"Continue with: polyalign train --resume {self.folder.path}",
            )
        if session.loop_state.get("early", {}).get("bad", 0) >= self.config.patience:
            self.save(session)
            raise Ended

    def put(self, name: str, value: Any, own: bool = False) -> None:
        value = value if own else sharding.gathered(value)

        def write() -> None:
            checkpoint.save(self.folder / "kept" / name, {"value": value}, step=0, keep=1)

        write() if own else processes.first(write)

    def get(self, name: str) -> Any | None:
        folder = self.folder / "kept" / name
        found = checkpoint.newest(folder) if folder.is_dir() else None
        return None if found is None else checkpoint.load(found)[0]["value"]

    def place(self, name: str) -> Path | None:
        return self.folder / "kept" / name

    def progress(self, what: str, done: int, total: int) -> None:
        self.watcher.progress(what, done, total)

    # Its own

    def save(self, session: Session) -> None:
        """Write a checkpoint of this boundary, once; all processes call it together."""
        step = session.position["step"]
        if self.saved == step:
            return
        folder, keep = self.folder / "checkpoints", self.config.keep
        shared = sharding.in_lockstep(session.policy)
        tree = sharding.gathered(session.state()) if shared or processes.rank() == 0 else {}
        processes.first(lambda: checkpoint.save(folder, tree, step=step, keep=keep))
        self.saved = step

    def _advise(self) -> None:
        for advice in advise(self.history):
            if advice.code not in self.given:
                self.given.add(advice.code)
                append_line(
                    self.folder / "advice.jsonl",
                    {"step": advice.step, "code": advice.code, "text": advice.text},
                )
                self.watcher.note(f"Step {advice.step}: {advice.text}")

    def _early(self, session: Session, row: Mapping[str, Any]) -> None:
        metric = str(self.config.early_stopping)
        if metric not in row:
            raise RunError(
                f"early_stopping names '{metric}', which is not among the evaluation's metrics.",
                f"It has: {', '.join(sorted(k for k in row if k.startswith('eval_')))}.",
            )
        early = session.loop_state.setdefault("early", {"best": None, "bad": 0})
        falling = "loss" in metric or metric.endswith("kl")
        value = float(row[metric]) * (-1 if falling else 1)
        if early["best"] is None or value > early["best"]:
            early.update(best=value, bad=0, step=row["step"])
            self.put("best", session.state()["policy"])
        else:
            early["bad"] += 1

    def rewind(self, step: int) -> None:
        """Forget rows that a resumed run will write again."""

        def forget() -> None:
            for name in ("metrics.jsonl", "advice.jsonl"):
                if (self.folder / name).exists():
                    truncate_lines(self.folder / name, lambda row: row.get("step", 0) <= step)

        processes.first(forget)
        self.history = self.folder.metrics()
        self.before = max((row.get("time", 0.0) for row in self.history), default=0.0)
        self.given = {line["code"] for line in read_lines(self.folder / "advice.jsonl")}

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within, Ctrl-C and a polite kill stop the run at the next boundary; a second one at
        once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = "Ctrl-C" if number == signal.SIGINT else "a signal"
            self.watcher.note("Stopping after this step; press Ctrl-C again to stop at once.")

        old: dict[int, Callable[..., Any] | int | None] = {
            number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
