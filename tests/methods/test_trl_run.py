"""What TRL's and transformers' flags of a run become."""

from __future__ import annotations

import math

import pytest

from polyalign.methods.trl import import_config
from tests.methods.trl_kit import dpo, note


def test_batch_is_what_one_optimizer_step_saw_on_one_device():
    got = dpo(per_device_train_batch_size=2, gradient_accumulation_steps="8")
    assert got.options["batch"] == 16
    assert "number of devices" in note(got, "per_device_train_batch_size").differs


def test_defaults_that_differ_from_ours_are_carried_over_and_marked():
    got = dpo()
    kept = {"lr": 1e-6, "batch": 8, "epochs": 3.0, "warmup": 0.0, "full": True, "save_every": 500}
    assert {name: got.options[name] for name in kept} == kept
    assert note(got, "learning_rate").default
    assert not note(dpo(learning_rate="5e-7"), "learning_rate").default


def test_a_rate_that_yaml_reads_as_text_is_a_number(tmp_path):
    file = tmp_path / "dpo.yaml"
    file.write_text("learning_rate: 5e-7\nbeta: 0.1\n")
    assert import_config(file).options["lr"] == 5e-7


def test_max_steps_decides_alone_as_in_transformers():
    got = dpo(max_steps=200, num_train_epochs=1)
    assert got.options["max_steps"] == 200
    assert got.options["epochs"] == 200.0
    assert "decides alone" in note(got, "num_train_epochs").differs
    assert "max_steps" not in dpo(max_steps=-1).options


def test_warmup_by_steps_or_share_and_none_with_a_constant_rate():
    assert dpo(warmup_ratio=0.1).options["warmup"] == 0.1
    assert dpo(warmup_ratio=0.1, warmup_steps=50).options["warmup"] == 50
    got = dpo(lr_scheduler_type="constant", warmup_steps=50)
    assert (got.options["schedule"], got.options["warmup"]) == ("constant", 0.0)
    got = dpo(lr_scheduler_type="constant_with_warmup", warmup_steps=50)
    assert (got.options["schedule"], got.options["warmup"]) == ("constant", 50)


def test_lora_keeps_its_scale_also_under_rslora():
    got = dpo(use_peft=True, lora_r=16, lora_alpha=8, use_rslora=True)
    assert got.options["full"] is False
    assert got.options["lora"]["alpha"] / 16 == pytest.approx(8 / math.sqrt(16))
    assert "no dropout" in note(got, "lora_dropout").differs
    assert "q_proj" in note(got, "lora_target_modules").differs
    named = dpo(use_peft=True, lora_target_modules=["q_proj", "v_proj"])
    assert named.options["lora"]["targets"] == ["q_proj", "v_proj"]


def test_lora_flags_without_use_peft_have_no_effect_in_either():
    got = dpo(lora_r=8)
    assert "lora" not in got.options
    assert "ignores it without use_peft" in note(got, "lora_r").differs


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"bf16": True}, "bfloat16"),
        ({"bf16": True, "dtype": "float32"}, "bfloat16"),
        ({"bf16": False}, "float32"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"fp16": True}, None),
        ({}, None),
    ],
)
def test_precision(flags, dtype):
    assert dpo(**flags).options.get("dtype") == dtype


def test_evaluation_needs_data_of_its_own():
    got = dpo(eval_strategy="steps", eval_steps=25, dataset_test_split="test")
    assert got.options["eval_every"] == 25
    assert "eval_data" in note(got, "eval_strategy").differs
    assert "eval_every" not in dpo(eval_strategy="no").options
    assert "once an epoch" in note(dpo(eval_strategy="epoch"), "eval_strategy").differs


def test_precomputed_references_are_always_cached():
    got = dpo(precompute_ref_log_probs=True)
    assert note(got, "precompute_ref_log_probs").became == "the reference cache, always on"
    assert note(got, "precompute_ref_log_probs").differs is None


def test_loggers_that_are_here_are_kept():
    got = dpo(report_to=["wandb", "comet_ml"])
    assert got.options["loggers"] == ["wandb"]
    assert "comet_ml" in note(got, "report_to").differs
    assert dpo(report_to="none").options["loggers"] == []


def test_a_mixture_of_data_keeps_its_paths():
    got = dpo(datasets=[{"path": "a/b"}, {"path": "json", "data_files": ["x.jsonl"], "split": "t"}])
    assert got.options["data"] == ["a/b", "x.jsonl"]
    assert "split" in note(got, "datasets").differs


def test_flags_without_a_counterpart_say_so_and_those_that_are_off_are_silent():
    got = dpo(push_to_hub=True, load_in_8bit=False, padding_free=True)
    assert "uploads nothing" in note(got, "push_to_hub").differs
    assert note(got, "load_in_8bit").differs is None
    assert "loss is not touched" in note(got, "padding_free").differs
    assert all(note(got, f).became is None for f in ("push_to_hub", "load_in_8bit", "padding_free"))


@pytest.mark.parametrize("flag", ["load_in_4bit", "load_in_8bit"])
def test_a_base_in_few_bits_stays_one(flag):
    got = dpo(use_peft=True, **{flag: True})
    assert got.options["quantize"] == flag.removeprefix("load_in_")
    assert note(got, flag).differs is None


@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"])
def test_averages_in_8_bits_stay_so(name):
    got = dpo(optim=name)
    assert got.options["optimizer"] == "adamw_8bit"
    assert (note(got, "optim").differs is None) == (not name.startswith("paged"))
