"""What tests of comparisons share: a tiny model, little feedback, a comparison of seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.runs.kit import write_judge, write_pairs

SMALL: dict[str, Any] = {
    "seeds": 1,
    "budget": "2k",
    "max_new_tokens": 6,
    "lr": 1e-2,
    "batch": 8,
    "prompts": 4,
    "best_of": 2,
    "threads": 1,
}
"""Options of a comparison that takes seconds."""


def small(folder: Path, model: Path, **more: Any) -> dict[str, Any]:
    """Keyword arguments of ``compare`` for a comparison in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "pairs.jsonl"
    if not data.exists():
        write_pairs(data, 40)
    judge = write_judge(folder / "judge.py")
    return {
        "model": str(model),
        "data": str(data),
        "judge": f"{judge}:score",
        "output": folder / "out",
        **SMALL,
        **more,
    }


TIMED = {"seconds", "memory_bytes"}


def untimed(value: Any) -> Any:
    """A result without what time and memory it took, and without where its files lie."""
    match value:
        case dict():
            return {k: untimed(v) for k, v in value.items() if k not in TIMED}
        case list():
            return [untimed(v) for v in value]
    return value


def result_in(folder: Path) -> dict[str, Any]:
    """The result that a comparison left."""
    found: dict[str, Any] = json.loads((folder / "comparison.json").read_text("utf-8"))
    return found
