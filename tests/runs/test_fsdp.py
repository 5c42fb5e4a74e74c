"""Sharded over two processes (FSDP2), every kind of run gives the numbers of one process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from polyalign import api
from polyalign.errors import OptionError, RunError
from tests.runs.kit import final_bytes, rows_without_time, write_judge, write_pairs
from tests.runs.together import RUNS, options

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def where(tiny_llama, tmp_path_factory) -> Path:
    """A folder in which two processes, started by ``accelerate launch``, made all runs."""
    folder = tmp_path_factory.mktemp("fsdp")
    (folder / "model").symlink_to(tiny_llama)
    write_pairs(folder / "pairs.jsonl", 11)  # a last step whose shares are unequal
    write_judge(folder / "judge.py")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", port]
    done = subprocess.run(
        [*launch, str(ROOT / "tests" / "runs" / "together.py"), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_sharded_processes_give_the_numbers_of_one(where, tmp_path, name):
    api.train(**options(name, where, tmp_path / "one"))
    one, two = rows_without_time(tmp_path / "one"), rows_without_time(where / f"two-{name}")
    assert len(one) == len(two) > 1
    for row, second in zip(one, two, strict=True):
        # A context that processes share is counted by each.
        for part in ("tokens", "split"):
            row.pop(part), second.pop(part)
        assert second == pytest.approx(row, rel=1e-10, abs=1e-10)
    for file in (tmp_path / "one" / "final").glob("*.safetensors"):
        ours, theirs = load_file(file), load_file(where / f"two-{name}" / "final" / file.name)
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            torch.testing.assert_close(theirs[key], tensor, rtol=0, atol=1e-10)
    samples = [
        (run / "samples.jsonl").read_text() for run in (tmp_path / "one", where / f"two-{name}")
    ]
    assert samples[0] == samples[1]


def test_a_signal_to_one_process_stops_both_and_the_rest_is_bit_for_bit(where):
    said = [json.loads((where / f"said-{rank}.json").read_text()) for rank in (0, 1)]
    assert all("after step 2; everything is saved" in one["interrupted"] for one in said)
    assert final_bytes(where / "two-stopped") == final_bytes(where / "two-full")
    assert rows_without_time(where / "two-stopped") == rows_without_time(where / "two-full")


def test_what_cannot_be_sharded_is_refused_in_a_sentence_by_both(where):
    words = {
        "quantize": "4bit",
        "optimizer": "adamw_8bit",
        "module": "value module",
        "device": "2 processes on one device",
    }
    for rank in (0, 1):
        said = json.loads((where / f"said-{rank}.json").read_text())
        for name, part in words.items():
            assert part in said[name] or "could not go on" in said[name], said[name]
    first = json.loads((where / "said-0.json").read_text())
    assert all(part in first[name] for name, part in words.items())


def test_one_process_cannot_be_sharded_and_is_told_how_to_start_more(where, tmp_path):
    with pytest.raises(OptionError, match="this is one") as caught:
        api.plan(**options("full", where, tmp_path / "run") | {"fsdp": True})
    assert "torchrun --nproc-per-node" in str(caught.value)


def test_another_number_of_processes_is_refused_and_goes_on_after_replan(where, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(where / "two-stopped", run)
    shutil.rmtree(run / "final")
    said = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(said.replace("fsdp: true", "fsdp: false"))
    with pytest.raises(RunError, match="processes=2"):
        api.resume(run)
    shutil.rmtree(run / "checkpoints" / "step-00000004", ignore_errors=True)
    api.resume(run, replan=True)
    ours, theirs = (
        load_file(p / "final" / "model.safetensors") for p in (run, where / "two-stopped")
    )
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-10)
