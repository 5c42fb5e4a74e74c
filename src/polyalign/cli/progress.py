"""What is seen of a run while it goes: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from polyalign.cli.screen import err, note, screen

SHOWN = {
    "loss": "loss",
    "rewards/accuracies": "acc",
    "rewards/margins": "margin",
    "reward": "reward",
    "kl": "kl",
    "lr": "lr",
    "eval_loss": "eval loss",
    "eval_rewards/accuracies": "eval acc",
    "eval_reward": "eval reward",
}
"""Metrics beside the bar, by their name in metrics.jsonl."""

PATIENCE_S = 10.0
"""Seconds between lines where there is no terminal."""


class Progress:
    """A watcher of runs, and of anything else that reports ``(what, done, total)``.

    On a terminal one bar for the steps and one for whatever else takes long; elsewhere a line
    every few seconds. Notes are lines in both.
    """

    def __init__(self, doing: str = "") -> None:
        self.doing = doing
        self.began = time.monotonic()
        self.first_step: tuple[int, float] | None = None
        self.last_line: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.bars: Any = None
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        console = err()
        if console.is_terminal and not screen.quiet:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bars
            from rich.text import Text

            class WithNumbers(Bars):
                """The bars, and a line of metrics below them."""

                numbers = ""

                def get_renderables(self) -> Iterator[Any]:
                    yield from super().get_renderables()
                    yield Text(self.numbers, style="cyan", no_wrap=True, overflow="ellipsis")

            self.bars = WithNumbers(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                expand=True,
                console=console,
                transient=True,
            )
            self.bars.start()
            if self.doing:
                self.tasks[self.doing] = self.bars.add_task(self.doing, total=None)
        return self

    def __exit__(self, *raised: object) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = None

    # What a run calls

    def note(self, text: str) -> None:
        """One line to read."""
        if self.bars is None:
            note(text)
        else:
            self.bars.console.print(text, markup=False, style="dim", soft_wrap=True)

    def step(self, row: Mapping[str, Any], total: int) -> None:
        """An optimizer step or an evaluation is done."""
        done = int(row.get("step", 0))
        if self.first_step is None or done <= self.first_step[0]:
            # The first step of this run, or of the next one that the same watcher sees.
            self.first_step = (done, time.monotonic())
            self.latest.clear()
        self.latest.update({n: row[n] for n in SHOWN if isinstance(row.get(n), (int, float))})
        numbers = "  ".join(f"{SHOWN[n]} {self.latest[n]:.3g}" for n in SHOWN if n in self.latest)
        if self.bars is not None:
            self.bars.numbers = numbers
            self._bar("training", done, total)
        elif row.get("split") == "eval" or self._due("training", done, total):
            note(f"step {done}/{total}  {numbers}{self._left(done, total)}")

    def progress(self, what: str, done: int, total: int) -> None:
        """Something else that takes long: ``done`` of ``total``."""
        if self.bars is not None:
            self._bar(what, done, total)
        elif self._due(what, done, total, first=False):
            note(f"{what} {done}/{total}")

    # Its own

    def _bar(self, what: str, done: int, total: int) -> None:
        for other in [name for name in self.tasks if name != what and name != "training"]:
            self.bars.remove_task(self.tasks.pop(other))
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total, completed=done)
        self.bars.update(self.tasks[what], completed=done, total=total)

    def _due(self, what: str, done: int, total: int, first: bool = True) -> bool:
        now = time.monotonic()
        if what not in self.last_line:
            self.last_line[what] = now
            return first
        if now - self.last_line[what] >= PATIENCE_S or (first and done == total):
            self.last_line[what] = now
            return True
        return False

    def _left(self, done: int, total: int) -> str:
        assert self.first_step is not None
        since, at = self.first_step
        if done <= since or done >= total:
            return ""
        return f"  left {span((time.monotonic() - at) / (done - since) * (total - done))}"


def span(seconds: float) -> str:
    """A duration as people read it.

    >>> span(9.6), span(75), span(7260)
    ('10 s', '1 min 15 s', '2 h 1 min')
    """
    whole = max(1, round(seconds)) if seconds > 0 else 0
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def waiting(doing: str, arriving: str | None = None) -> Iterator[Callable[[str], None]]:
    """A spinner and a clock beside what cannot count; the function given changes its words.

    ``arriving``: a pattern of folders in the model cache whose growing size is shown.
    """
    console = err()
    if screen.quiet or not console.is_terminal:
        yield note
        return
    from rich.progress import Progress as Bars
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    done = threading.Event()
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(doing)
        words = [doing]

        def tell(text: str) -> None:
            words[0] = text
            bars.update(task, description=text)

        def measure() -> None:
            while not done.wait(0.5):
                size = arrived(str(arriving))
                if size:
                    bars.update(task, description=f"{words[0]}  {size / 1e6:,.0f} MB")

        if arriving is not None:
            threading.Thread(target=measure, daemon=True).start()
        try:
            yield tell
        finally:
            done.set()


def arrived(pattern: str) -> int:
    """Bytes in the folders of the model cache that match a pattern; files may come and go."""
    from polyalign.policies.language.folders import cache_folder

    total = 0
    for folder in cache_folder().glob(pattern):
        for file in folder.rglob("*"):
            with contextlib.suppress(OSError):
                total += file.stat().st_size if file.is_file() else 0
    return total
