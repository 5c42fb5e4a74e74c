"""Two processes of `polyalign train` give the run that one process gives."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from polyalign import api
from tests.runs.kit import config, rows_without_time, write_pairs

PATIENCE_S = 300


def places(count: int) -> dict[str, str]:
    """What a launcher tells its processes of where they meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def start(words: list[str], **variables: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def both(words: list[str]) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of two processes of the command line."""
    where = places(2)
    running = [start(["-m", "polyalign", *words], RANK=str(rank), **where) for rank in range(2)]
    try:
        said = [process.communicate(timeout=PATIENCE_S) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        (process.returncode, out.decode(), errors.decode())
        for process, (out, errors) in zip(running, said, strict=True)
    ]


def train_words(model: Path, data: Path, output: Path, **options: object) -> list[str]:
    values = {"model": model, "data": data, "output": output, "batch": 8, "lr": 0.01, "epochs": 2}
    values |= {"samples": 1, "max-new-tokens": 6, "save-every": 1, "threads": 1} | options
    return ["train", "kto", *(w for n, v in values.items() for w in (f"--{n}", str(v)))]


def test_two_processes_train_what_one_does(tiny_llama, tmp_path):
    data = write_pairs(tmp_path / "pairs.jsonl", 6)
    words = train_words(tiny_llama, data, tmp_path / "2")
    (status, out, errors), (other, silence, _) = both(words)
    assert (status, other) == (0, 0), errors[-2000:]
    assert "final" in out
    assert silence == ""  # the first process speaks for both
    options = config("kto", tiny_llama, data, tmp_path / "1").model_dump(exclude={"hyper"})
    api.train(**options)
    one, two = (rows_without_time(tmp_path / n) for n in "12")
    assert len(one) == len(two) == 4
    for row, second in zip(one, two, strict=True):
        # What several processes compute twice, shared contexts, is counted twice.
        for name in ("tokens", "split"):
            row.pop(name), second.pop(name)
        assert second == pytest.approx(row, rel=1e-3, abs=1e-5)
    ours, theirs = (load_file(next((tmp_path / n / "final").glob("*.safetensors"))) for n in "12")
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).abs().max() < 2e-3, name


def test_a_mistake_before_training_stops_both_and_is_told_once(tiny_llama, tmp_path):
    found = both(train_words(tiny_llama, tmp_path / "none.jsonl", tmp_path / "run"))
    assert all(status != 0 for status, _, _ in found)
    assert "".join(errors for _, _, errors in found).count("none.jsonl") == 1


def test_a_signal_to_the_launcher_stops_both_at_one_step_with_everything_saved(
    tiny_llama, tmp_path
):
    data, run = write_pairs(tmp_path / "pairs.jsonl", 24), tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    words = train_words(tiny_llama, data, run, epochs=999)
    process = start([*launcher, places(2)["MASTER_PORT"], "-m", "polyalign", *words])
    deadline = time.monotonic() + PATIENCE_S
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert (run / "metrics.jsonl").exists(), errors.decode()[-2000:]
    stopped = rows_without_time(run)[-1]["step"]
    saved = max(int(p.name.removeprefix("step-")) for p in (run / "checkpoints").iterdir())
    assert 0 < saved == stopped < 5000
    assert json.loads((run / "plan.json").read_text())["processes"] == 2
