"""A stated limit of memory decides the micro-batch and whether activations are computed again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyalign import methods
from polyalign.api import declaration_of
from polyalign.engine import heap
from polyalign.errors import OptionError
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.kept import bytes_per_token
from polyalign.runs import memory
from polyalign.runs.folder import Silent
from polyalign.runs.memory import Costs, budget, parse
from polyalign.runs.training import prepare, train
from tests.policies import tiny
from tests.runs import kit

COSTS = Costs(now=1000, per_token=100, inputs=10, layers=10, trainable=50, head=400)
FIXED = 1000 + 12 * 50 + 400


def test_the_micro_batch_is_what_the_limit_holds():
    found = budget(COSTS, FIXED + 160 * 300, 200, 5000, device="cpu")
    assert (found.micro, found.checkpointing, found.note) == (300, False, None)
    assert found.bytes <= found.limit
    wide = budget(COSTS, FIXED + 10**9, 200, 5000, device="cpu")
    assert wide.micro == 768  # more is hardly faster on a CPU
    assert budget(COSTS, FIXED + 10**9, 200, 5000, device="cuda:0").micro == 16384


def test_activations_are_computed_again_only_where_an_example_would_not_fit():
    found = budget(COSTS, FIXED + 160 * 150, 200, 5000, device="cpu")
    assert found.checkpointing
    assert found.micro == 160 * 150 // 32  # a layer at a time, beside the inputs of all
    kept = budget(COSTS, FIXED + 160 * 150, 200, 5000, device="cpu", checkpointing=False)
    assert kept.micro == 200
    assert kept.note is not None


def test_a_limit_that_a_person_set_and_that_cannot_hold_an_example_is_refused():
    with pytest.raises(OptionError, match="200 tokens takes about .* may be used.*memory"):
        budget(COSTS, FIXED + 100, 200, 5000, device="cpu", told=True)
    assert budget(COSTS, FIXED + 100, 200, 5000, device="cpu").note is not None


def test_an_optimizer_counts_by_what_it_keeps():
    assert COSTS.fixed() - replace(COSTS, state=2).fixed() == 6 * COSTS.trainable


def test_a_value_network_counts_like_a_second_policy(tmp_path, tiny_llama, monkeypatch):
    """It has weights, gradients and averages of its own, and is computed in the policy's pass."""
    found = {name: memory.copies(methods.get(name)()) for name in ("infonca", "dro", "oreo")}
    assert found == {"infonca": (0, 0), "dro": (1, 1), "oreo": (1, 1)}
    monkeypatch.setattr(memory, "used", lambda device: 1 << 30)
    data = tmp_path / "scored.jsonl"
    row = {"prompt": "say it", "completions": ["a b c", "d"], "scores": [1, 0]}
    data.write_text(json.dumps(row) + "\n", "utf-8")
    bytes_of = {}
    for name in ("infonca", "dro"):
        config = kit.config(name, tiny_llama, data, tmp_path / name, max_steps=1, micro=64)
        ready = prepare(declaration_of(name), config, Silent())
        bytes_of[name] = ready.plan["memory_bytes"]
    trainable = sum(p.numel() for p in ready.policy.trainable().values())
    assert bytes_of["dro"] - bytes_of["infonca"] >= 16 * trainable


def test_where_large_blocks_are_kept_apart_less_is_lost_between_them():
    wide = budget(COSTS, FIXED + 160 * 300, 200, 5000, device="cpu")
    apart = budget(replace(COSTS, spare=1.3), FIXED + 160 * 300, 200, 5000, device="cpu")
    assert apart.micro == 160 * 300 // 130 > wide.micro


def test_a_stated_threshold_of_blocks_decides(monkeypatch):
    for told, held in (("65536", True), (str(heap.LARGE), True), (str(heap.LARGE + 1), False)):
        monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", told)
        heap.apart.cache_clear()
        assert heap.apart() is held
    heap.apart.cache_clear()


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_a_c_library_that_knows_no_threshold_is_left_alone(monkeypatch, platform):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr(heap.sys, "platform", platform)
    heap.apart.cache_clear()
    assert heap.apart() is False
    heap.apart.cache_clear()


def test_a_container_has_what_its_limit_leaves_and_processes_share_it(tmp_path, monkeypatch):
    limit, usage = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "GROUPS", ((limit, usage), (tmp_path / "no", tmp_path / "none")))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    machine = memory.free("cpu")
    limit.write_text("max\n")
    usage.write_text("400\n")
    assert memory.free("cpu") == pytest.approx(machine, rel=0.5)
    limit.write_text("1400\n")
    assert memory.free("cpu") == 1000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.free("cpu") == 500


@pytest.mark.parametrize("text", ["6", "GB", "-1GB", "six GB", "0MB"])
def test_an_amount_of_memory_has_a_number_and_a_unit(text):
    with pytest.raises(OptionError, match="6GB or 800MB"):
        parse(text)


@pytest.mark.parametrize("lora", [None, LoraSpec(r=2, alpha=4)], ids=["whole", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_a_token_keeps_is_counted_on_the_model(family, lora):
    """Between the layers' inputs alone and twice what every product's inputs and outputs hold."""
    policy = tiny.policy(family, torch.float32, lora)
    found = bytes_per_token(policy)
    width, inner, layers = 16, 64 if family == "gpt2" else 32, 2
    assert layers * 4 * width < found < 2 * layers * 4 * (12 * width + 6 * inner)
    policy.trunk.checkpoint_layers()
    assert bytes_per_token(policy) < found / 2


def test_a_run_keeps_the_limit_that_is_stated(tmp_path: Path, tiny_llama: Path):
    data = kit.write_pairs(tmp_path / "pairs.jsonl")
    plans = {}
    for name, options in {
        "free": {},
        "checkpointed": {"checkpointing": True},
        "set": {"micro": 64},
    }.items():
        config = kit.config("dpo", tiny_llama, data, tmp_path / name, max_steps=1, **options)
        plans[name] = prepare(declaration_of("dpo"), config, Silent()).plan
    assert plans["free"]["micro"] == 768
    assert not plans["free"]["checkpointing"]
    assert plans["checkpointed"]["checkpointing"]
    assert plans["set"]["micro"] == 64
    assert all(plan["memory_bytes"] <= plan["memory_limit"] for plan in plans.values())
    config = kit.config("dpo", tiny_llama, data, tmp_path / "small", memory="50MB")
    with pytest.raises(OptionError, match="Raise memory, or lower max_length"):
        prepare(declaration_of("dpo"), config, Silent())
    with pytest.raises(OptionError, match="is not an amount of memory"):
        kit.config("dpo", tiny_llama, data, tmp_path / "wrong", memory="much")


def test_checkpointing_changes_no_bit_of_a_run(tmp_path: Path, tiny_llama: Path):
    data = kit.write_pairs(tmp_path / "pairs.jsonl", 8)
    finals = []
    for on in (False, True):
        config = kit.config(
            "dpo", tiny_llama, data, tmp_path / str(on), max_steps=2, checkpointing=on
        )
        train(declaration_of("dpo"), config)
        finals.append(kit.final_bytes(tmp_path / str(on)))
        plan = json.loads((tmp_path / str(on) / "plan.json").read_text())
        assert plan["checkpointing"] is on
    assert finals[0] == finals[1]


MEASURED = """
import sys
from pathlib import Path
import polyalign as pa

model, data, output = sys.argv[1:]
pa.train(
    "dpo", model=model, data=data, output=output, memory="1700MB", max_steps=1, samples=0, threads=1
)
account = Path("/proc/self/status").read_text()
print(account.partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's account of memory"
)
def test_a_stated_limit_holds_in_the_memory_of_the_process(tmp_path: Path, smollm2):
    words = "The quick brown fox jumps over the lazy dog. "
    row = {
        "prompt": [{"role": "user", "content": words * 40}],
        "chosen": [{"role": "assistant", "content": words * 4}],
        "rejected": [{"role": "assistant", "content": "No. " * 30}],
    }
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps(row) + "\n", "utf-8")
    words = [sys.executable, "-c", MEASURED, str(smollm2.path), str(data), str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["longest"] > 400
    assert plan["checkpointing"]  # it would not fit without
    taken = int(done.stdout.split()[-1]) * 1024
    assert taken <= plan["memory_limit"] == 1_700_000_000
    assert taken > 0.7 * plan["memory_bytes"]
