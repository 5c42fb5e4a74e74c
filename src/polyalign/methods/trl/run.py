"""What TRL's training, model and script arguments are as options of ``polyalign train``."""

from __future__ import annotations

import math
from typing import Any

from polyalign.errors import OptionError, nearest
from polyalign.methods.trl.translation import Translation, spell

_DEFAULT_RATES = {"sft": 2e-5, "bco": 5e-7, "tpo": 5e-7}
_LOGGERS = ("tensorboard", "wandb", "mlflow", "trackio")

_SCHEDULES = {
    "linear": ("linear", None),
    "cosine": ("cosine", None),
    "constant": ("constant", None),
    "constant_with_warmup": ("constant", None),
    "inverse_sqrt": ("inverse_sqrt", None),
    "cosine_with_restarts": ("cosine", "it falls once, without restarts (TRL's default too)."),
    "polynomial": ("linear", "the power is 1 (TRL's default too), and it ends at 0."),
    "cosine_with_min_lr": ("cosine", "it falls to zero, not to a least rate."),
    "cosine_warmup_with_min_lr": ("cosine", "it falls to zero, not to a least rate."),
    "warmup_stable_decay": ("constant", "the rate does not decay at the end."),
    "reduce_lr_on_plateau": ("constant", "the rate does not react to the evaluation."),
    "greedy": ("constant", "the rate does not react to the loss."),
}

_OPTIMIZERS = {"adamw": "adamw", "sgd": "sgd", "rmsprop": "rmsprop"}


def options(t: Translation) -> None:
    """Every option of the run; each given flag is noted."""
    _data(t)
    _model(t)
    _adapter(t)
    _steps(t)
    _rate(t)
    _optimizer(t)
    _precision(t)
    _lengths(t)
    _evaluation(t)
    _saving(t)
    _logging(t)


def _data(t: Translation) -> None:
    sources = []
    if not t.off("datasets"):
        entries = t.flags["datasets"]
        if not isinstance(entries, (list, tuple)) or not all(isinstance(e, dict) for e in entries):
            raise OptionError(
                f"datasets={entries!r} is not a list of entries with a path.",
                "Write it as TRL does: datasets: [{path: NAME}].",
            )
        for entry in entries:
            files = entry.get("data_files")
            sources += [files] if isinstance(files, str) else list(files or [entry.get("path")])
        rest = sorted({key for entry in entries for key in entry} - {"path", "data_files"})
        t.option(
            "datasets",
            "data",
            [str(source) for source in sources],
            f"not read: {', '.join(rest)}; the whole training part is taken." if rest else None,
        )
        t.unused("dataset_name", "TRL ignores it beside datasets.")
    elif "datasets" in t.flags:
        t.note("datasets")
    if not sources and "dataset_name" in t.flags:
        name = t.text("dataset_name")
        if name is None:
            t.note("dataset_name")
        else:
            t.option("dataset_name", "data", [name])
    t.unused(
        "dataset_config",
        "a configuration of a hub set cannot be named; save it with datasets and give the folder.",
    )
    if "dataset_train_split" in t.flags:
        usual = t.text("dataset_train_split") in (None, "train")
        t.note(
            "dataset_train_split",
            None,
            None if usual else "the part called train is read; save another one as a file.",
        )
    t.unused("test_split_size", "hold examples out with: polyalign data split FILE (by prompt).")
    if "output_dir" in t.flags:
        t.option("output_dir", "output", t.text("output_dir"))


def _model(t: Translation) -> None:
    if "model_name_or_path" in t.flags:
        t.option("model_name_or_path", "model", t.text("model_name_or_path"))
    if "model_revision" in t.flags:
        usual = t.text("model_revision") in (None, "main")
        t.note(
            "model_revision",
            None,
            None if usual else "the newest revision is taken; download another one as a folder.",
        )
    if "trust_remote_code" in t.flags:
        t.option("trust_remote_code", "trust_remote_code", t.boolean("trust_remote_code"))
    for flag, bits in (("load_in_8bit", "8bit"), ("load_in_4bit", "4bit")):
        if flag in t.flags and t.boolean(flag):
            t.option(flag, "quantize", bits)
        elif flag in t.flags:
            t.note(flag)
    if "disable_dropout" in t.flags:
        off = t.boolean("disable_dropout", True)
        t.note(
            "disable_dropout",
            "dropout of the base model is always off",
            None if off else "it is off here although the flag keeps it on.",
        )


def _adapter(t: Translation) -> None:
    names = [n for n in t.flags if n.startswith("lora_") and n != "lora_task_type"]
    names += [n for n in ("use_rslora", "use_dora") if n in t.flags]
    adapter = t.boolean("use_peft")
    t.option("use_peft", "full", not adapter)
    if not adapter:
        for name in names:
            t.unused(name, "TRL ignores it without use_peft, and so do we.")
        return
    rank = t.count("lora_r", 16) or 16
    t.option("lora_r", "lora.r", rank)
    alpha = t.number("lora_alpha", 32) or 32.0
    if t.boolean("use_rslora"):
        t.note(
            "use_rslora", "lora.alpha", "the same scale, written as lora.alpha: alpha * sqrt(r)."
        )
        alpha *= math.sqrt(rank)
    elif "use_rslora" in t.flags:
        t.note("use_rslora")
    t.option("lora_alpha", "lora.alpha", alpha)
    dropped = t.number("lora_dropout", 0.05)
    t.note("lora_dropout", None, "adapters have no dropout here." if dropped else None)
    targets = t.texts("lora_target_modules")
    if not targets or targets == ["None"]:
        t.note(
            "lora_target_modules",
            "lora.targets=all-linear",
            "peft then takes its own choice for the architecture (for Llama q_proj and v_proj); "
            "here all linear layers. To have the same, name them in lora.targets.",
        )
    else:
        value = "all-linear" if targets == ["all-linear"] else targets
        t.option("lora_target_modules", "lora.targets", value)
    t.unused("lora_modules_to_save", "only the adapters are trained.")
    t.unused("lora_target_parameters", "adapters are put on layers, not on single parameters.")
    t.unused("use_dora", "the adapter is plain LoRA, without DoRA's magnitudes.")


def _steps(t: Translation) -> None:
    size = t.spelling("per_device_train_batch_size", "per_gpu_train_batch_size")
    each = t.count(size, 8) or 8
    accumulated = t.count("gradient_accumulation_steps", 1) or 1
    unit = "completions" if t.trainer == "grpo" else "examples"
    t.option(
        size,
        "batch",
        each * accumulated,
        f"batch counts the {unit} of one optimizer step: {each} x {accumulated} accumulated; "
        "multiply it by the number of devices that TRL ran on.",
    )
    if "gradient_accumulation_steps" in t.flags:
        t.note(
            "gradient_accumulation_steps",
            f"batch={each * accumulated}",
            "micro-batches are cut by tokens (micro) and never change the loss.",
        )
    limit = t.number("max_steps", -1)
    if limit is not None and limit > 0:
        t.option("max_steps", "max_steps", int(limit))
        # Each pass has at least one step, so that many passes never end the run before max_steps.
        t.options["epochs"] = float(limit)
        t.note(
            "num_train_epochs",
            f"epochs={spell(float(limit))}",
            "max_steps decides alone in TRL, so epochs is set where it never ends the run first.",
        )
        return
    if "max_steps" in t.flags:
        t.note("max_steps")
    t.option("num_train_epochs", "epochs", t.number("num_train_epochs", 3.0))


def _rate(t: Translation) -> None:
    t.option("learning_rate", "lr", t.number("learning_rate", _DEFAULT_RATES.get(t.trainer, 1e-6)))
    name = t.text("lr_scheduler_type", "linear") or "linear"
    name = name.removeprefix("SchedulerType.").lower()
    if name not in _SCHEDULES:
        raise OptionError(
            f"lr_scheduler_type={name} is not one of transformers' schedules.",
            nearest(name, _SCHEDULES),
        )
    schedule, differs = _SCHEDULES[name]
    t.option("lr_scheduler_type", "schedule", schedule, differs)
    steps, ratio = t.number("warmup_steps", 0) or 0.0, t.number("warmup_ratio", 0) or 0.0
    if name == "constant":
        t.options["warmup"] = 0.0
        for flag in ("warmup_steps", "warmup_ratio"):
            t.unused(flag, "transformers ignores it with lr_scheduler_type=constant, and so do we.")
        return
    # transformers 5 reads warmup_steps below 1 as a share; steps go before the ratio.
    flag = "warmup_steps" if steps or "warmup_ratio" not in t.flags else "warmup_ratio"
    t.option(flag, "warmup", steps or ratio)
    for other in ("warmup_steps", "warmup_ratio"):
        if other != flag:
            t.unused(other, "warmup_steps goes before it, in transformers too.")


def _optimizer(t: Translation) -> None:
    name = (t.text("optim", "adamw_torch") or "adamw_torch").removeprefix("OptimizerNames.").lower()
    if t.boolean("adafactor"):
        name = "adafactor"
    base = next((ours for theirs, ours in _OPTIMIZERS.items() if theirs in name), "adamw")
    if name.startswith(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit")):
        base = "adamw_8bit"
    plain = name in (
        "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw_torch_xla",
        "adamw_torch_npu_fused", "sgd", "rmsprop", "adamw_8bit", "adamw_bnb_8bit",
    )  # fmt: skip
    if "optim" in t.flags or name == "adafactor":
        t.option(
            "optim" if "optim" in t.flags else "adafactor",
            "optimizer",
            base,
            None if plain else f"there is no {name} here; {base} takes more memory or other steps.",
        )
    if "adafactor" in t.flags and ("optim" in t.flags or name != "adafactor"):
        t.note("adafactor")
    betas = [t.number("adam_beta1", 0.9) or 0.0, t.number("adam_beta2", 0.999) or 0.0]
    for flag in ("adam_beta1", "adam_beta2"):
        if flag in t.flags:
            t.option(flag, "betas", betas)
    if "adam_epsilon" in t.flags:
        usual = t.number("adam_epsilon") == 1e-8
        t.note("adam_epsilon", None, None if usual else "epsilon is 1e-8 here.")
    t.option("weight_decay", "weight_decay", t.number("weight_decay", 0.0))
    clip = t.number("max_grad_norm", 1.0)
    t.option("max_grad_norm", "clip", clip or None)
    if "seed" in t.flags:
        t.option("seed", "seed", t.count("seed"), "the order and the samples it gives are others.")
    t.unused("label_smoothing_factor", "labels are not smoothed towards the vocabulary.")


def _precision(t: Translation) -> None:
    held = t.spelling("dtype", "torch_dtype")
    weights = (t.text(held) or "").removeprefix("torch.")
    if "bf16" in t.flags and not t.off("bf16") and not t.boolean("fp16"):
        t.option(
            "bf16",
            "dtype",
            "bfloat16",
            "with adapters the frozen weights are held in bfloat16 too; what is trained stays in "
            "float32.",
        )
    elif "bf16" in t.flags:
        if t.flags["bf16"] is not None and not t.boolean("fp16") and weights in ("", "float32"):
            t.option("bf16", "dtype", "float32")
        else:
            t.note("bf16")
    t.unused("fp16", "float16 is not offered; the plan chooses bfloat16 or float32 by the machine.")
    if held not in t.flags:
        return
    if weights in ("bfloat16", "float32", "float64") and "dtype" not in t.options:
        t.option(
            held,
            "dtype",
            weights,
            "trained weights are held in float32 and computed in bfloat16."
            if weights == "bfloat16"
            else None,
        )
    else:
        same = weights in ("", "auto", t.options.get("dtype"))
        t.note(
            held,
            None,
            None if same else f"{t.options.get('dtype', 'the plan')} decides, not {weights}.",
        )


def _lengths(t: Translation) -> None:
    name = t.spelling("max_length", "max_seq_length")
    if name in t.flags:
        length = t.count(name)
        if length is None:
            t.note(name, None, "there is always a limit: max_length=1024 unless you set it.")
        else:
            t.option(name, "max_length", length)
    if "max_prompt_length" in t.flags:
        limit = t.count("max_prompt_length")
        if limit is None:
            t.note("max_prompt_length")
        else:
            t.option("max_prompt_length", "max_prompt_length", limit)
    if t.trainer != "grpo":
        t.unused("max_completion_length", "max_length bounds prompt and answer together.")
    if "truncation_mode" in t.flags:
        t.note(
            "truncation_mode",
            None,
            "a prompt that is too long loses its beginning, an answer its end.",
        )
    if "gradient_checkpointing" in t.flags or "activation_checkpointing" in t.flags:
        flag = t.spelling("gradient_checkpointing", "activation_checkpointing")
        t.option(flag, "checkpointing", t.boolean(flag))


def _evaluation(t: Translation) -> None:
    name = t.spelling("eval_strategy", "evaluation_strategy")
    strategy = _strategy(t, name)
    if strategy == "no":
        if name in t.flags:
            t.note(name)
        t.unused("eval_steps", "there is no evaluation without eval_strategy.")
        t.unused("dataset_test_split", "there is no evaluation without eval_strategy.")
    else:
        data = "give the held-out feedback as eval_data (polyalign data split makes it)."
        steps = t.number("eval_steps", t.number("logging_steps", 10)) or 0.0
        if strategy == "steps" and steps >= 1:
            t.option(name, "eval_every", int(steps), data)
            if "eval_steps" in t.flags:
                t.note("eval_steps", f"eval_every={int(steps)}")
        else:
            when = "once an epoch" if strategy == "epoch" else "by a share of the run"
            t.note(name, None, f"{when} cannot be said: give eval_every in steps; {data}")
            t.unused("eval_steps", "give eval_every in steps.")
        t.unused("dataset_test_split", data)
    t.unused(
        "load_best_model_at_end",
        "RUN/final is the last state; early_stopping=METRIC ends the run when it stops improving.",
    )
    t.unused("metric_for_best_model", "name it in early_stopping to end the run by it.")


def _strategy(t: Translation, flag: str) -> str:
    value: Any = t.flags.get(flag, "no")
    if value is False:  # YAML 1.1 reads a bare no as false
        return "no"
    name = str(value).removeprefix("IntervalStrategy.").removeprefix("SaveStrategy.").lower()
    if name not in ("no", "steps", "epoch", "best"):
        raise OptionError(
            f"{flag}={value!r} is no strategy.", nearest(name, ("no", "steps", "epoch"))
        )
    return name


def _saving(t: Translation) -> None:
    if "save_strategy" in t.flags:
        strategy = _strategy(t, "save_strategy")
    else:
        strategy = "steps"
    steps = t.number("save_steps", 500) or 0.0
    if strategy == "no":
        t.option("save_strategy", "save_every", 0, "the last state is saved all the same.")
        t.unused("save_steps", "nothing is saved in between.")
    elif strategy == "steps" and steps >= 1:
        if "save_strategy" in t.flags:
            t.note("save_strategy", f"save_every={int(steps)}")
        t.option("save_steps", "save_every", int(steps))
    else:
        if "save_strategy" in t.flags:
            t.note("save_strategy", None, "give save_every in steps (50 unless you set it).")
        t.unused("save_steps", "give save_every in steps (50 unless you set it).")
    if "save_total_limit" in t.flags:
        kept = t.count("save_total_limit")
        if kept is None:
            t.note("save_total_limit", None, "the last 2 checkpoints are kept, not all; see keep.")
        else:
            t.option("save_total_limit", "keep", max(kept, 1))


def _logging(t: Translation) -> None:
    if "report_to" not in t.flags:
        return
    asked = [] if t.off("report_to") else [n for n in t.texts("report_to") if n != "none"]
    loggers = [name for name in asked if name in _LOGGERS]
    others = [name for name in asked if name not in _LOGGERS]
    differs = (
        f"no logger for {', '.join(others)}; choose of {', '.join(_LOGGERS)}." if others else None
    )
    t.option("report_to", "loggers", loggers, differs)
