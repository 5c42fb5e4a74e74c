"""Run pip with one moving line instead of a page of output; the whole output goes to a log.

Standard library only: it runs before anything is installed. pip keeps the user's own
configuration (indexes, proxies, certificates).

    python scripts/quiet_pip.py LABEL [arguments of `pip install` …]
"""

from __future__ import annotations

import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

LOG = Path(sys.prefix) / "install.log"
HEARTBEAT_S = 20.0
BAR = 20


class Progress:
    """What pip is doing now, read from its output line by line."""

    def __init__(self) -> None:
        self.packages = 0
        self.doing = "resolving"
        self.fraction: float | None = None

    def read(self, line: str) -> None:
        """Take one line of pip's output (``--progress-bar raw``)."""
        if match := re.match(r"Progress (\d+) of (\d+)", line):
            done, total = int(match[1]), int(match[2])
            self.fraction = done / total if total else None
            return
        if re.match(r"(Collecting|Processing|Requirement already satisfied:) ", line):
            self.packages += 1
        source = r"\s*(?:Downloading|Using cached|Processing) (\S+)( \([\d.]+ .?B\))?"
        if match := re.match(source, line):
            name = match[1].rstrip("/").rsplit("/", 1)[-1]
            self.doing = "-".join(name.split("-")[:2]) + (match[2] or "")
            self.fraction = None
        elif line.startswith("Installing collected packages:"):
            self.doing = f"installing {line.count(',') + 1} packages"
            self.fraction = None

    def __str__(self) -> str:
        bar = ""
        if self.fraction is not None:
            full = round(BAR * self.fraction)
            bar = f" [{'#' * full}{'.' * (BAR - full)}] {self.fraction:4.0%}"
        return f"{self.packages} packages, {self.doing}{bar}"


def clock(seconds: float) -> str:
    """Minutes and seconds, as in ``1:04``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def pip_install(label: str, arguments: list[str], out: TextIO = sys.stdout) -> int:
    """Run ``pip install`` with ``arguments`` under one status line; pip's exit status."""
    command = [sys.executable, "-m", "pip", "install", *arguments]
    if pip_knows_raw_progress():
        command += ["--progress-bar", "raw"]
    line_of = StatusLine(label, out)
    progress, kept = Progress(), []
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        for line in ticking(process):
            if line:
                progress.read(line)
            if line and not line.startswith("Progress "):
                log.write(line)
                kept.append(line)
            line_of.show(str(progress))
        status = process.wait()
    line_of.close("done" if status == 0 else f"failed (pip's exit status {status})")
    if status != 0:
        print("".join(kept[-15:]), file=out, end="")
        print(f"The whole output of pip is in {LOG}.", file=out, flush=True)
    return status


def ticking(process: subprocess.Popen[str]) -> Iterator[str]:
    """The lines of ``process``, and an empty one whenever it has been silent for a while."""
    lines: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            yield ""
            continue
        if line is None:
            return
        yield line


class StatusLine:
    """One line that moves on a terminal; elsewhere one at the start, the end and now and then."""

    def __init__(self, label: str, out: TextIO) -> None:
        self.label, self.out = label, out
        self.start = self.last = time.monotonic()
        self.terminal = out.isatty()
        if not self.terminal:
            print(f"{label} …", file=out, flush=True)

    def show(self, text: str) -> None:
        """Show ``text``, unless the line was shown a moment ago."""
        now = time.monotonic()
        if now - self.last < (0.1 if self.terminal else HEARTBEAT_S):
            return
        self.last = now
        if self.terminal:
            self._overwrite(f"{self.label} … {text} {clock(now - self.start)}")
        else:
            print(f"  {text} ({clock(now - self.start)})", file=self.out, flush=True)

    def close(self, verdict: str) -> None:
        """End the line with ``verdict`` and the time it took."""
        text = f"{self.label} … {verdict} ({clock(time.monotonic() - self.start)})"
        if self.terminal:
            self._overwrite(text)
            print(file=self.out, flush=True)
        else:
            print(text, file=self.out, flush=True)

    def _overwrite(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{text[:width]:<{width}}", end="", file=self.out, flush=True)


def pip_knows_raw_progress() -> bool:
    """Whether this environment's pip is 24.1 or newer, which prints machine-readable progress."""
    import importlib.metadata

    found = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("pip"))
    return bool(found) and (int(found[1]), int(found[2])) >= (24, 1)


if __name__ == "__main__":
    sys.exit(pip_install(sys.argv[1], sys.argv[2:]))
