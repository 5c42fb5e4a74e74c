"""How TRL's configurations are read, and what holds for every one of them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from polyalign.errors import OptionError
from polyalign.methods import get
from polyalign.methods.trl import import_config
from polyalign.methods.trl.flags import LOSSES, OWN, RUN, TRAINERS, UNUSED, known
from polyalign.runs.config import configure
from tests.methods.trl_kit import dpo

# Reading, and telling which trainer is meant.

EXAMPLE = {
    "model_name_or_path": "smollm2", "dataset_name": "pairs.jsonl", "output_dir": "out",
    "beta": 0.1, "learning_rate": 1e-5,
}  # fmt: skip


def test_a_yaml_and_a_json_file_named_after_the_trainer(tmp_path):
    (tmp_path / "my-orpo.yaml").write_text(yaml.safe_dump(EXAMPLE))
    (tmp_path / "kto_run.json").write_text(json.dumps(EXAMPLE))
    assert import_config(tmp_path / "my-orpo.yaml").method == "orpo"
    assert import_config(str(tmp_path / "kto_run.json")).method == "kto"


def test_flags_that_fit_several_trainers_are_not_guessed(tmp_path):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(EXAMPLE))
    with pytest.raises(OptionError, match="trainers: dpo, kto, bco, orpo, cpo, tpo, grpo"):
        import_config(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "command",
    [
        "trl dpo --beta 0.2 --bf16 --no_gradient_checkpointing --report_to wandb tensorboard",
        "accelerate launch --num_processes 4 trl/scripts/dpo.py --beta=0.2 --bf16 true "
        "--gradient-checkpointing False --report_to wandb tensorboard",
        "python -m trl.scripts.dpo \\\n --beta 0.2 \\\n --bf16 --no-gradient-checkpointing "
        "--report_to wandb tensorboard",
    ],
)
def test_a_command_line_is_read_as_trl_reads_it(command):
    got = import_config(command)
    assert (got.method, got.options["hyper"]["beta"]) == ("dpo", 0.2)
    assert got.options["dtype"] == "bfloat16"
    assert got.options["checkpointing"] is False
    assert got.options["loggers"] == ["wandb", "tensorboard"]


def test_a_command_with_a_file_reads_both_and_the_command_goes_first(tmp_path):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(EXAMPLE))
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh\n# trl kto --beta 9\ntrl dpo --config x.yaml \\\n  --beta 0.5\n")
    got = import_config(script)
    assert got.options["hyper"]["beta"] == 0.5
    assert got.options["lr"] == 1e-5


def test_a_configuration_object_gives_what_was_changed_in_it():
    @dataclass
    class KTOConfig:
        beta: float = 0.1
        desirable_weight: float = 1.0
        undesirable_weight: float = 1.0

    got = import_config(KTOConfig(undesirable_weight=0.5))
    assert got.method == "kto"
    assert [n.flag for n in got.notes if not n.default] == ["undesirable_weight"]


def test_an_unknown_flag_is_an_error_with_the_nearest_name():
    with pytest.raises(OptionError, match="TRL has no flag 'learning_rte'") as caught:
        dpo(learning_rte=1e-5)
    assert "learning_rate" in caught.value.mend


def test_a_flag_of_another_trainer_names_its_owner():
    with pytest.raises(OptionError, match="simpo_gamma is a flag of TRL's cpo, not of dpo"):
        dpo(simpo_gamma=1.0)
    with pytest.raises(OptionError, match=r"simpo_gamma \(cpo\).*desirable_weight \(kto\)"):
        import_config({"simpo_gamma": 1.0, "desirable_weight": 1.0})


@pytest.mark.parametrize("name", ["rloo", "PPOConfig", "online_dpo", "OnlineDPOTrainer"])
def test_a_trainer_without_a_counterpart_says_so(name):
    with pytest.raises(OptionError, match="has no counterpart in this version"):
        import_config({}, trainer=name)


def test_an_unknown_trainer_names_the_nearest():
    with pytest.raises(OptionError, match="no trainer 'dpoo'") as caught:
        import_config({}, trainer="dpoo")
    assert "dpo" in caught.value.mend


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"beta": "small"}, "beta='small' is not a number"),
        ({"lora_r": 2.5, "use_peft": True}, "lora_r=2.5 is not a whole number"),
        ({"use_peft": "perhaps"}, "use_peft='perhaps' is not true or false"),
        ({"lr_scheduler_type": "sawtooth"}, "not one of transformers' schedules"),
        ({"eval_strategy": "often"}, "is no strategy"),
    ],
)
def test_a_value_of_the_wrong_type_is_one_sentence(flags, says):
    with pytest.raises(OptionError, match=says):
        dpo(**flags)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.yaml", "beta: [0.1\n", "not valid YAML"),
        ("a.json", '{"beta": }', "not valid JSON"),
        ("a.yaml", "- 1\n", "does not hold flags"),
        ("a.sh", "echo hello\n", "has 0 command lines"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_sentence(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(OptionError, match=says):
        import_config(tmp_path / name)
    with pytest.raises(OptionError, match="no file"):
        import_config(tmp_path / "absent.yaml")


# What holds for every configuration.

VALUES = {
    "loss_type": None, "datasets": [{"path": "a/b"}], "lr_scheduler_type": "cosine",
    "eval_strategy": "steps", "evaluation_strategy": "steps", "save_strategy": "epoch",
    "report_to": "all", "optim": "adamw_8bit", "beta": 0.3, "lora_target_modules": "all-linear",
    "f_divergence_type": "reverse_kl", "scale_rewards": "group", "use_peft": True,
    "multi_objective_aggregation": "sum_then_normalize", "importance_sampling_level": "sequence",
    "ld_alpha": 1, "top_entropy_quantile": 1.0, "entropy_coef": 0.0, "dtype": "bfloat16",
    "model_name_or_path": "m", "output_dir": "o", "dataset_name": "d",
    "truncation_mode": "keep_end",
    "reward_funcs": ["a.b"], "reward_model_name_or_path": "rm", "torch_dtype": "auto",
    "delta": 4.0, "learning_rate": 1e-4, "label_smoothing": 0.1, "epsilon": 0.1,
    "epsilon_high": 0.3, "lora_dropout": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.9,
    "weight_decay": 0.1, "simpo_gamma": 1.0, "top_p": 0.9, "temperature": 0.8,
}  # fmt: skip
REFUSED = {"use_weighting", "rpo_alpha", "reference_free", "sync_ref_model", "alpha",
           "use_adaptive_entropy", "off_policy_mask_threshold"}  # fmt: skip
FLAGS_OF_TYPE = {"trust_remote_code", "gradient_checkpointing", "activation_checkpointing", "bf16",
                 "fp16", "adafactor", "use_rslora", "use_dora", "disable_dropout",
                 "precompute_ref_log_probs", "assistant_only_loss", "use_bias_correction_kl",
                 "mask_truncated_completions", "load_best_model_at_end", "load_in_4bit",
                 "load_in_8bit"}  # fmt: skip
LOSS = {"dpo": "robust", "kto": "kto", "cpo": "simpo", "tpo": "hinge", "sft": "nll", "grpo": "grpo"}


def flags_of(trainer: str) -> dict[str, object]:
    """Every flag of a trainer with a value that is not off (where that is refused, off)."""
    values: dict[str, object] = {}
    for flag in sorted(known(trainer)):
        if flag == "loss_type":
            values[flag] = LOSS[trainer]
        elif flag in REFUSED:
            values[flag] = None
        else:
            values[flag] = VALUES.get(flag, True if flag in FLAGS_OF_TYPE else 3)
    return values


@pytest.mark.parametrize("trainer", TRAINERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_given_flag_is_noted_exactly_once_and_the_result_is_a_valid_run(trainer, data):
    every = flags_of(trainer)
    chosen = data.draw(st.just(set(every)) | st.sets(st.sampled_from(sorted(every))))
    if trainer == "cpo":
        chosen |= {"loss_type"}
    flags = {name: every[name] for name in sorted(chosen)}
    got = import_config(flags, trainer=trainer)
    names = [n.flag for n in got.notes]
    assert len(names) == len(set(names))
    assert set(flags) <= set(names)
    assert {n.flag for n in got.notes if not n.default} == set(flags)
    complete = {"model": "m", "data": ["d"], "output": "o"} | got.options
    assert yaml.safe_load(yaml.safe_dump(got.options)) == got.options  # it can be written down
    declared = get(got.method)
    config = configure(complete, declared)
    declared(**config.hyper)
    for name, value in got.options["hyper"].items():
        assert config.hyper[name] == value


@pytest.mark.parametrize("trainer", TRAINERS)
def test_no_flag_of_transformers_is_unknown(trainer):
    assert {f.name for f in dataclasses.fields(TrainingArguments)} <= known(trainer)


def test_the_tables_of_flags_do_not_contradict_each_other():
    used = RUN.union(*OWN.values())
    both = {"ref_model_mixup_alpha", "ref_model_sync_steps", "f_alpha_divergence_coef",
            "discopop_tau"}  # fmt: skip
    assert used & set(UNUSED) == both
    assert set(OWN) == set(LOSSES) == set(TRAINERS)
