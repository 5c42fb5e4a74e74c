"""A run that is stopped anywhere and continued ends with the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from polyalign.api import declaration_of
from polyalign.engine import checkpoint
from polyalign.errors import Interrupted, RunError
from polyalign.runs.folder import FolderHooks
from polyalign.runs.training import train
from tests.runs.kit import (
    config,
    final_bytes,
    rows_without_time,
    write_judge,
    write_pairs,
    write_prompts,
)

CASES: dict[str, dict[str, Any]] = {
    "offline, reference cached over two epochs": {"method": "dpo"},
    "a statistic over the step, mismatched answers": {"method": "kto"},
    "a statistic over all steps so far": {"method": "bco", "beta": 0.5},
    "adapters": {"method": "simpo", "full": False, "lora": {"r": 4, "alpha": 8}},
    "held-out evaluation and early stopping": {
        "method": "dpo",
        "eval_every": 1,
        "early_stopping": "eval_loss",
    },
    "stages, a previous policy, samples": {"method": "sera", "n_iter": 2, "n_generate": 2},
    "a value module with its own update": {"method": "oreo"},
    "stages over chunks, each against the last policy": {"method": "sdpo", "epochs": 1},
    "rounds over a column, adapters, earlier policies beside the reference": {
        "method": "spo-sequential",
        "rounds": 3,
        "lam": "0.5,0.25",
        "full": False,
        "lora": {"r": 4, "alpha": 8},
    },
    "another model as a reference, held-out concentration": {
        "method": "modpo",
        "policies": "MODEL",
        "eval_every": 2,
        "epochs": 1,
    },
    "rollouts": {"method": "grpo", "G": 4, "inner_epochs": 2, "epochs": 1},
}


def prepare(tmp_path: Path, tiny: Path, name: str, output: str) -> Any:
    options = dict(CASES[name])
    method = options.pop("method")
    data = write_pairs(tmp_path / "pairs.jsonl")
    if method == "grpo":
        data = write_prompts(tmp_path / "prompts.jsonl")
        options["judge"] = f"{write_judge(tmp_path / 'judge.py')}:score"
    if method == "oreo":
        data = tmp_path / "scored.jsonl"
        rows = [
            {"prompt": f"Q{i}", "completion": "yes" * (1 + i % 2), "reward": float(i % 2)}
            for i in range(16)
        ]
        data.write_text("\n".join(map(json.dumps, rows)))
    if "eval_every" in options:
        options["eval_data"] = str(data)
    if "policies" in options:
        options["policies"] = str(tiny)
    if method == "spo-sequential":
        data = write_dimensions(tmp_path / "dimensions.jsonl", options.get("rounds", 2))
    return declaration_of(method), config(method, tiny, data, tmp_path / output, **options)


def write_dimensions(path: Path, count: int) -> Path:
    """Pairs of which every one says in which dimension it was labelled."""
    rows = [json.loads(line) for line in write_pairs(path).read_text("utf-8").splitlines()]
    named = [{**row, "dimension": f"d{i % count}"} for i, row in enumerate(rows)]
    path.write_text("\n".join(map(json.dumps, named)), "utf-8")
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_stopped_run_ends_with_the_weights_of_an_uninterrupted_one(
    name, tmp_path, tiny_llama, monkeypatch
):
    declaration, whole = prepare(tmp_path, tiny_llama, name, "whole")
    train(declaration, whole)
    _, parts = prepare(tmp_path, tiny_llama, name, "parts")

    boundary = FolderHooks.boundary

    def stop_each_time(self: FolderHooks, session: Any) -> None:
        self.stopping = "the test"
        boundary(self, session)

    monkeypatch.setattr(FolderHooks, "boundary", stop_each_time)
    for _ in range(40):
        try:
            train(declaration, parts, resume=True)
            break
        except Interrupted:
            continue
    assert final_bytes(parts.output) == final_bytes(whole.output)
    assert rows_without_time(parts.output) == rows_without_time(whole.output)
    stopped = len(list((parts.output / "checkpoints").iterdir()))
    assert stopped >= 1


def test_a_finished_run_is_not_overwritten(tmp_path, tiny_llama):
    declaration, once = prepare(tmp_path, tiny_llama, "adapters", "once")
    train(declaration, once)
    with pytest.raises(RunError, match="holds a run already.*--resume"):
        train(declaration, once)
    before = final_bytes(once.output)
    train(declaration, once, resume=True)
    assert final_bytes(once.output) == before


def test_a_plan_that_no_longer_fits_is_one_sentence_and_replan_goes_on(
    tmp_path, tiny_llama, monkeypatch
):
    declaration, first = prepare(
        tmp_path, tiny_llama, "offline, reference cached over two epochs", "r"
    )
    boundary = FolderHooks.boundary

    def stop(self: FolderHooks, session: Any) -> None:
        self.stopping = "the test"
        boundary(self, session)

    with monkeypatch.context() as patch:
        patch.setattr(FolderHooks, "boundary", stop)
        with pytest.raises(Interrupted):
            train(declaration, first)
    changed = first.model_copy(update={"lr": 5e-3})
    with pytest.raises(RunError, match=r"planned with lr=0\.01.*--replan"):
        train(declaration, changed, resume=True)
    assert train(declaration, changed, resume=True, replan=True).finished


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, tiny_llama, monkeypatch):
    name = "offline, reference cached over two epochs"
    declaration, whole = prepare(tmp_path, tiny_llama, name, "whole")
    train(declaration, whole)
    _, parts = prepare(tmp_path, tiny_llama, name, "parts")
    boundary = FolderHooks.boundary

    def stop_at_four(self: FolderHooks, session: Any) -> None:
        if session.position["step"] == 4:
            self.stopping = "the test"
        boundary(self, session)

    with monkeypatch.context() as patch:
        patch.setattr(FolderHooks, "boundary", stop_at_four)
        with pytest.raises(Interrupted):
            train(declaration, parts)
    newest = checkpoint.newest(parts.output / "checkpoints")
    assert newest is not None
    tensors = newest / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-7])
    with pytest.warns(match="step-0*4"):
        train(declaration, parts, resume=True)
    assert final_bytes(parts.output) == final_bytes(whole.output)


# Real kills


SCRIPT = """
import sys
from pathlib import Path
from polyalign.api import declaration_of
from polyalign.runs.training import open_run, train
folder = Path(sys.argv[1])
_, config = open_run(folder)
train(declaration_of(config.method), config, resume=True)
"""


def kill_and_continue(tmp_path: Path, tiny: Path, kills: int, seed: int, epochs: int) -> None:
    """Kill a training process at random moments, continuing each time; compare with one whole
    run."""
    import yaml

    data = write_pairs(tmp_path / "pairs.jsonl", 48)
    declaration = declaration_of("dpo")
    whole = config("dpo", tiny, data, tmp_path / "whole", epochs=epochs, batch=2)
    train(declaration, whole)
    parts = whole.model_copy(update={"output": tmp_path / "parts"})
    parts.output.mkdir()
    (parts.output / "config.yaml").write_text(yaml.safe_dump(parts.model_dump(mode="json")))
    draw = random.Random(seed)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(parts.output)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if done >= kills:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors.decode()
            break
        _wait_for_progress(parts.output, process)
        time.sleep(draw.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, "the run was over before the last kill"
        done += 1
    assert final_bytes(parts.output) == final_bytes(whole.output)
    assert rows_without_time(parts.output) == rows_without_time(whole.output)


def _wait_for_progress(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the process has written a new row, or has ended."""
    file = folder / "metrics.jsonl"
    before = file.stat().st_mtime_ns if file.exists() else 0
    while process.poll() is None:
        if file.exists() and file.stat().st_mtime_ns != before:
            return
        time.sleep(0.005)


def test_three_real_kills_change_nothing(tmp_path, tiny_llama):
    kill_and_continue(tmp_path, tiny_llama, kills=3, seed=1, epochs=3)


@pytest.mark.soak
def test_twenty_real_kills_at_random_moments_change_nothing(tmp_path, tiny_llama):
    kill_and_continue(tmp_path, tiny_llama, kills=20, seed=2, epochs=12)
