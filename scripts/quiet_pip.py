"""Run pip with one moving line instead of a page of output; the whole output goes to a log.

Standard library only: it runs before anything is installed. pip keeps the user's own
configuration (indexes, proxies, certificates).

    python scripts/quiet_pip.py LABEL [arguments of `pip install` …]
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
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
        if re.match(r"(Collecting|Requirement already satisfied:) ", line):
            self.packages += 1
        elif match := re.match(r"\s*(?:Downloading|Using cached|Processing) (\S+)(.*)", line):
            name = match[1].rstrip("/").rsplit("/", 1)[-1]
            self.doing = "-".join(name.split("-")[:2]) + match[2]
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
    terminal = out.isatty()
    start = last = time.monotonic()
    if not terminal:
        print(f"{label} …", file=out, flush=True)
    progress, lines = Progress(), []
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        for line in process.stdout:
            progress.read(line)
            if not line.startswith("Progress "):
                log.write(line)
                lines.append(line)
            now = time.monotonic()
            if terminal and now - last > 0.1:
                width = shutil.get_terminal_size().columns - 1
                text = f"{label} … {progress} {clock(now - start)}"
                print(f"\r{text[:width]:<{width}}", end="", file=out, flush=True)
                last = now
            elif not terminal and now - last > HEARTBEAT_S:
                print(f"  {progress} ({clock(now - start)})", file=out, flush=True)
                last = now
        status = process.wait()
    width = shutil.get_terminal_size().columns - 1 if terminal else 0
    verdict = "done" if status == 0 else f"failed (pip's exit status {status})"
    closing = f"{label} … {verdict} ({clock(time.monotonic() - start)})"
    print(f"\r{closing:<{width}}" if terminal else closing, file=out, flush=True)
    if status != 0:
        print("".join(lines[-15:]), file=out, end="")
        print(f"The whole output of pip is in {LOG}.", file=out, flush=True)
    return status


def pip_knows_raw_progress() -> bool:
    """Whether this environment's pip is 24.1 or newer, which prints machine-readable progress."""
    import importlib.metadata

    found = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("pip"))
    return bool(found) and (int(found[1]), int(found[2])) >= (24, 1)


if __name__ == "__main__":
    sys.exit(pip_install(sys.argv[1], sys.argv[2:]))
