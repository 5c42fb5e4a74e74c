"""Runs whose answers are drawn by vLLM, by a stand-in for the package."""

from __future__ import annotations

import importlib.util
import math
import sys

import pytest

from polyalign.errors import OptionError
from polyalign.methods import get
from polyalign.runs.folder import Silent
from polyalign.runs.training import prepare, train
from tests.policies import stand_in_vllm
from tests.runs.kit import config, rows_without_time, write_judge, write_pairs, write_prompts


def test_answers_to_learn_from_can_be_drawn_by_vllm(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", stand_in_vllm.module())
    prompts, judge = write_prompts(tmp_path / "p.jsonl"), write_judge(tmp_path / "judge.py")
    options = {"judge": f"{judge}:score", "G": 2, "batch": 2, "epochs": 1, "full": False}
    done = train(
        get("grpo"),
        config("grpo", tiny_llama, prompts, tmp_path / "run", sampler="vllm", **options),
    )
    assert (done.path / "final").is_dir()
    plan, own = (
        prepare(
            get("grpo"), config("grpo", tiny_llama, prompts, tmp_path / name, **more), Silent()
        ).plan["memory_bytes"]
        for name, more in {"a": options | {"sampler": "vllm"}, "b": options}.items()
    )
    assert plan > own + 0.9 * (1 << 30)  # what the engine holds is part of the plan
    whole = options | {"full": True, "precompute_references": None}
    train(get("grpo"), config("grpo", tiny_llama, prompts, tmp_path / "c", sampler="vllm", **whole))
    engine, second = stand_in_vllm.LLM.made  # one a run, its start drawn by the same
    assert second.loads >= 3
    assert engine.loads >= 3
    assert all(math.isfinite(row["loss"]) for row in rows_without_time(done.path))


def test_vllm_is_refused_where_nothing_is_sampled_or_it_is_not_there(
    tiny_llama, tmp_path, monkeypatch
):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(OptionError, match="sampler='vllm' would have no effect on this run of dpo"):
        train(get("dpo"), config("dpo", tiny_llama, pairs, tmp_path / "run", sampler="vllm"))
    with pytest.raises(OptionError, match="vllm_memory=0.5 would have no effect.*sampler=vllm"):
        train(get("dpo"), config("dpo", tiny_llama, pairs, tmp_path / "run", vllm_memory=0.5))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    prompts, judge = write_prompts(tmp_path / "p.jsonl"), write_judge(tmp_path / "judge.py")
    with pytest.raises(OptionError, match="needs the package vllm"):
        train(
            get("grpo"),
            config(
                "grpo",
                tiny_llama,
                prompts,
                tmp_path / "run",
                sampler="vllm",
                judge=f"{judge}:score",
            ),
        )
