from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from polyalign.errors import OptionError
from polyalign.methods import get
from polyalign.methods.trl import Imported, import_config
from polyalign.methods.trl.flags import LOSSES, OWN, RUN, TRAINERS, UNUSED, known
from polyalign.runs.config import configure


def note(imported: Imported, flag: str):
    found = [note for note in imported.notes if note.flag == flag]
    assert len(found) == 1, found
    return found[0]


def dpo(**flags):
    return import_config(flags, trainer="dpo")


def grpo(**flags):
    return import_config(flags, trainer="grpo")


# Losses of the DPO trainer.


def test_sigmoid_is_dpo():
    got = dpo(loss_type="sigmoid", beta=0.2)
    assert got.method == "dpo"
    assert got.options["hyper"] == {"beta": 0.2, "loss": "dpo"}
    assert note(got, "beta").differs is None


def test_label_smoothing_with_sigmoid_is_cdpo_and_says_that_trl_1_ignores_it():
    got = dpo(loss_type=["sigmoid"], label_smoothing=0.1)
    assert got.options["hyper"] == {"beta": 0.1, "loss": "cdpo", "label_smoothing": 0.1}
    assert "TRL 1.x ignores label_smoothing" in note(got, "label_smoothing").differs


def test_robust_is_dpo_with_its_own_loss():
    got = dpo(loss_type="robust", label_smoothing=0.1)
    assert got.method == "dpo"
    assert got.options["hyper"] == {"beta": 0.1, "loss": "robust", "label_smoothing": 0.1}


def test_ipo_averages_over_tokens_and_beta_is_tau():
    got = dpo(loss_type="ipo", beta=0.05)
    assert got.method == "ipo"
    assert got.options["hyper"] == {"tau": 0.05, "length_average": True}
    assert note(got, "beta").became == "tau=0.05"


def test_hinge_is_the_normalised_form_of_slic():
    got = dpo(loss_type="hinge", beta=0.3, label_smoothing=0.1)
    assert (got.method, got.options["hyper"]) == ("slic", {"form": "hinge-norm", "beta": 0.3})
    assert "does not use it" in note(got, "label_smoothing").differs


@pytest.mark.parametrize(
    ("loss", "form"), [("aot", "paired"), ("aot_unpaired", "unpaired"), ("aot_pair", "unpaired")]
)
def test_the_names_of_aot_are_the_forms_that_trl_ran(loss, form):
    got = dpo(loss_type=loss)
    assert got.method == "aot"
    assert got.options["hyper"]["form"] == form
    assert got.options["hyper"]["beta"] == 0.1
    assert ("up to 0.27 called" in note(got, "loss_type").differs) == (loss == "aot_pair")


def test_kto_pair_is_gone_and_the_mend_names_kto():
    with pytest.raises(OptionError, match="removed loss_type=kto_pair") as caught:
        dpo(loss_type="kto_pair")
    assert "trainer kto" in caught.value.mend


def test_a_loss_without_a_counterpart_is_refused():
    with pytest.raises(OptionError, match="loss_type=bco_pair of TRL's dpo is a method of its own"):
        dpo(loss_type="bco_pair")


def test_a_misspelt_loss_names_the_nearest():
    with pytest.raises(OptionError, match="no loss_type 'sigmod'") as caught:
        dpo(loss_type="sigmod")
    assert "sigmoid" in caught.value.mend


def test_a_mixture_of_losses_is_refused():
    with pytest.raises(OptionError, match="mixes 2 losses"):
        dpo(loss_type=["sigmoid", "sft"], loss_weights=[0.8, 0.2])


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("sync_ref_model", True, "the reference follows the policy"),
        ("use_weighting", True, "WPO"),
        ("ld_alpha", 0.5, "discounted"),
        ("rpo_alpha", 1.0, "likelihood is added"),
        ("f_divergence_type", "js_divergence", "another divergence"),
    ],
)
def test_a_flag_that_makes_another_method_is_refused_and_not_dropped(flag, value, says):
    with pytest.raises(OptionError, match=says) as caught:
        dpo(**{flag: value})
    assert f"Remove {flag}" in caught.value.mend


def test_the_same_flags_at_their_neutral_values_pass():
    got = dpo(sync_ref_model=False, use_weighting=False, ld_alpha=1.0, rpo_alpha=None,
              f_divergence_type="reverse_kl")  # fmt: skip
    assert got.method == "dpo"
    assert all(n.differs is None for n in got.notes if n.flag in ("ld_alpha", "rpo_alpha"))


# Other trainers.


def test_simpo_of_the_cpo_trainer_keeps_its_margin_and_its_likelihood_term():
    got = import_config({"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0})
    assert got.method == "simpo"
    hyper = got.options["hyper"]
    assert hyper["beta"] * hyper["gamma_beta_ratio"] == pytest.approx(1.0)
    assert hyper["sft_weight"] == 1.0
    assert note(got, "cpo_alpha").default
    assert import_config(
        {"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.0}
    ).options["hyper"]["sft_weight"] == 0.0  # fmt: skip


def test_plain_cpo_is_refused_with_the_way_to_simpo():
    with pytest.raises(OptionError, match="contrastive preference optimization") as caught:
        import_config({"cpo_alpha": 1.0, "beta": 0.1})
    assert "simpo" in caught.value.mend


def test_orpo_takes_beta_as_the_weight_of_the_odds():
    got = import_config({"beta": 0.25}, trainer="orpo")
    assert (got.method, got.options["hyper"]) == ("orpo", {"lam": 0.25})
    assert "prompt's tokens" in note(got, "beta").differs


def test_kto_keeps_both_weights():
    got = import_config({"desirable_weight": 1.33, "beta": "0.05"})
    assert got.method == "kto"
    assert got.options["hyper"] == {"beta": 0.05, "lam_D": 1.33, "lam_U": 1.0}


def test_sft_says_what_packing_and_turns_mean():
    got = import_config({"packing": True, "max_seq_length": 512, "assistant_only_loss": True})
    assert got.method == "sft"
    assert got.options["hyper"] == {"reduction": "token"}
    assert got.options["max_length"] == 512
    assert got.options["assistant"] == "all"
    assert got.options["lr"] == 2e-5
    assert "not packed" in note(got, "packing").differs


def test_grpo_flags_become_its_hyper_parameters():
    got = grpo(num_generations=4, epsilon=0.1, epsilon_high=0.28, loss_type="dr_grpo",
               scale_rewards=False, max_completion_length=64, num_iterations=2, beta=0.01,
               mask_truncated_completions=True, temperature=0.7, reward_funcs=["my.rewards.short"],
               per_device_train_batch_size=8, use_vllm=True, vllm_mode="server")  # fmt: skip
    assert got.options["hyper"] == {
        "G": 4, "beta": 0.01, "eps_low": 0.1, "eps_high": 0.28, "aggregation": "dr_grpo",
        "level": "token", "scale": "none", "L_max": 64, "inner_epochs": 2, "drop_truncated": True,
        "kl_correction": True,
    }  # fmt: skip
    assert got.options["judge"] == "my/rewards.py:short"
    assert got.options["batch"] == 8
    assert "temperature 1" in note(got, "temperature").differs
    assert "own sampler" in note(got, "use_vllm").differs


def test_grpo_without_a_word_is_what_trl_defaults_to():
    got = grpo()
    assert got.options["hyper"]["aggregation"] == "dapo"
    assert got.options["hyper"]["beta"] == 0.0
    assert all(n.default for n in got.notes)


def test_cispo_bounds_the_ratio_itself():
    got = grpo(loss_type="cispo", epsilon_high=5.0)
    assert got.options["hyper"]["surrogate"] == "cispo"
    assert got.options["hyper"]["eps_max"] == 5.0
    assert "eps_low" not in got.options["hyper"]


def test_rewards_scaled_by_the_batch_are_refused():
    with pytest.raises(OptionError, match="scale_rewards=batch has no counterpart"):
        grpo(scale_rewards="batch")


# The run.


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
    with pytest.raises(OptionError, match="several of TRL's trainers: dpo, kto, orpo, cpo, grpo"):
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
LOSS = {"dpo": "robust", "kto": "kto", "cpo": "simpo", "sft": "nll", "grpo": "grpo"}


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
