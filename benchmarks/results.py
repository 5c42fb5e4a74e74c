"""RESULTS.md: one section a benchmark, replaced by the command that made it."""

from __future__ import annotations

import re
from pathlib import Path

FILE = Path(__file__).parent / "RESULTS.md"


def write_section(title: str, body: str, file: Path = FILE) -> None:
    """Put ``body`` under ``## title``, in the place of what stood there."""
    old = file.read_text("utf-8") if file.exists() else "# Results\n"
    section = f"## {title}\n\n{body.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.S | re.M)
    new = pattern.sub(lambda _: section + "\n", old) if pattern.search(old) else f"{old}\n{section}"
    file.write_text(new.rstrip() + "\n", "utf-8")
