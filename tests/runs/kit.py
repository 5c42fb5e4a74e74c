"""What tests of runs share: small data, a small model, runs that are stopped and continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polyalign.api import declaration_of
from polyalign.runs.config import TrainConfig, configure


def write_pairs(path: Path, count: int = 24) -> Path:
    """Pairs in TRL's form: the chosen answer says good things."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Say {i}"}],
            "chosen": [{"role": "assistant", "content": "good " * (1 + i % 3) + str(i)}],
            "rejected": [{"role": "assistant", "content": "bad " * (1 + i % 4)}],
        }
        for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def write_prompts(path: Path, count: int = 6) -> Path:
    rows = [{"prompt": [{"role": "user", "content": f"Say {i}"}]} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def write_judge(path: Path) -> Path:
    """A judge that likes vowels."""
    path.write_text(
        "def score(prompt, completion):\n    return float(sum(c in 'aeiou' for c in completion))\n"
    )
    return path


def config(method: str, model: Path, data: Path, output: Path, **options: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "batch": 8,
        "epochs": 2,
        "lr": 1e-2,
        "samples": 1,
        "max_new_tokens": 6,
        "save_every": 1,
        "threads": 1,
    }
    values = {"model": str(model), "data": str(data), "output": output, **defaults, **options}
    return configure({"method": method, **values}, declaration_of(method))


def final_bytes(folder: Path) -> dict[str, bytes]:
    """The trained weights as they lie on disk."""
    return {
        path.name: path.read_bytes() for path in sorted((folder / "final").glob("*.safetensors"))
    }


def rows_without_time(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]
