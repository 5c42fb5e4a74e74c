"""What each of several processes does in the tests of sharded runs: one launch, many runs."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyalign import api
from polyalign.engine import processes
from polyalign.errors import Interrupted, PolyalignError
from polyalign.runs.folder import Silent
from tests.runs.kit import config

FEW = {"max_steps": 2}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("dpo", {"full": True, "micro": 60, "weight_decay": 0.01}),
    "adapters": ("dpo", {"full": False, "checkpointing": True, **FEW}),
    "batch": ("aot", {"full": True, "micro": 60, **FEW}),
    "laws": ("tdpo", {"full": True, "variant": "tdpo2", **FEW}),
    "moving": ("tr-dpo", {"full": True, "max_steps": 3}),
    "stages": ("sdpo", {"full": False, **FEW}),
    "sampled": ("grpo", {"full": False, "G": 2, **FEW}),
}
"""Runs by name: their method and what is said beside the kit's options."""


def options(name: str, where: Path, output: Path) -> dict[str, Any]:
    """All options of a run; model, pairs and judge lie in ``where``."""
    method, said = RUNS[name]
    judge = {"judge": f"{where / 'judge.py'}:score"} if name == "sampled" else {}
    made = config(
        method, where / "model", where / "pairs.jsonl", output, dtype="float64", **(said | judge)
    ).model_dump(mode="json")
    return {k: v for k, v in made.items() if k != "hyper"} | made["hyper"]


class Killed(Silent):
    """Sends this process a polite kill after its second step."""

    def step(self, row: Mapping[str, Any], total: int) -> None:
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def everything(where: Path) -> None:
    """All runs, and what is asked of a sharded policy otherwise."""
    said: dict[str, Any] = {}
    for name in RUNS:
        api.train(**options(name, where, where / f"two-{name}") | {"fsdp": True})
    stopped = options("full", where, where / "two-stopped") | {"fsdp": True}
    try:
        # The signal reaches the second process only.
        api.train(**stopped, watcher=Killed() if processes.rank() else None)
    except Interrupted as error:
        said["interrupted"] = error.what
    api.resume(where / "two-stopped")
    for name, bad in {
        "quantize": {"quantize": "4bit", "full": False},
        "optimizer": {"optimizer": "adamw_8bit"},
        "module": {"method": "dro"},
        "device": {"device": "cuda:1", "fsdp": False},
    }.items():
        try:
            api.train(**stopped | {"output": where / f"refused-{name}"} | bad)
        except PolyalignError as error:
            said[name] = error.what
    (where / f"said-{processes.rank()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    with processes.joined():
        everything(Path(sys.argv[1]))
