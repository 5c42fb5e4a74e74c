"""The configuration of a training run: one schema for command line, YAML and Python."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from polyalign.errors import OptionError, nearest

if TYPE_CHECKING:
    from polyalign.recipe import Declaration


class Lora(BaseModel):
    """Low-rank adapters: rank, scale, which linear layers. Scores are deterministic: no dropout."""

    model_config = ConfigDict(extra="forbid")

    r: Annotated[int, Field(ge=1)] = Field(default=16, description="rank of the adapters")
    alpha: Annotated[float, Field(gt=0)] = Field(
        default=32.0, description="scale of the adapters (times 1/rank)"
    )
    targets: str | list[str] = Field(
        default="all-linear",
        description="layers that get adapters: all-linear, or names with commas",
    )


class TrainConfig(BaseModel):
    """Everything about a run but the method's own hyper-parameters (``hyper``).

    What is None is chosen by the plan, from the model's size and the machine, and written into
    ``config.yaml`` and ``plan.json``.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    method: str = Field(description="method id, alias, or FILE.py:function")
    hyper: dict[str, Any] = Field(default_factory=dict, description="the method's options")
    model: str = Field(description="model name, folder or hub id")
    data: list[str] = Field(description="feedback: files, folders or hub names")
    output: Path = Field(description="run folder")
    eval_data: list[str] = Field(default_factory=list, description="held-out feedback")
    columns: dict[str, str] = Field(default_factory=dict, description="our name: your column")
    limit: Annotated[int, Field(ge=1)] | None = Field(None, description="use the first N examples")
    rejects: Literal["drop", "stop"] = Field(
        "drop", description="malformed rows: drop and list them, or stop"
    )

    epochs: Annotated[float, Field(gt=0)] | None = Field(None, description="passes over the data")
    max_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="optimizer steps at most"
    )
    batch: Annotated[int, Field(ge=1)] | None = Field(
        None, description="units in one optimizer step"
    )
    micro: Annotated[int, Field(ge=1)] | None = Field(
        None, description="tokens in one micro-batch at most (memory; never changes the loss)"
    )
    lr: Annotated[float, Field(gt=0)] | None = Field(None, description="peak learning rate")
    module_lr: Annotated[float, Field(gt=0)] | None = Field(
        None, description="learning rate of value heads and other modules (default lr)"
    )
    optimizer: Literal["adamw", "adamw_8bit", "adam", "sgd", "rmsprop"] = Field(
        "adamw", description="optimizer; adamw_8bit keeps its averages in 8 bits (bitsandbytes)"
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="averages of Adam: first,second")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled weight decay")
    schedule: Literal["linear", "cosine", "constant", "inverse_sqrt"] = Field(
        "linear", description="how the learning rate falls after the warm-up"
    )
    warmup: Annotated[float, Field(ge=0)] = Field(0.1, description="share (below 1) or steps")
    clip: Annotated[float, Field(gt=0)] | None = Field(1.0, description="largest gradient norm")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="every random choice follows from it")
    paper_defaults: bool = Field(
        False, description="take learning rate, batch and epochs of the method's paper"
    )

    full: bool | None = Field(None, description="train all weights (default: LoRA above 100M)")
    lora: Lora = Field(default_factory=Lora)
    reference_states: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="keep the reference's states on disk, where its whole law is read every epoch",
    )
    precompute_references: bool | None = Field(
        None,
        description="score references before the first step and hold none in memory (default: "
        "where all weights train)",
    )
    quantize: Literal["4bit", "8bit"] | None = Field(
        None, description="hold the base of adapters in few bits (bitsandbytes)"
    )
    fsdp: bool = Field(
        False, description="lay weights, gradients and optimizer state in parts on all processes"
    )
    dtype: Literal["float32", "bfloat16", "float64"] | None = Field(
        None, description="of weights and activations (default: what the device does best)"
    )
    device: str | None = Field(None, description="cpu, cuda, mps (default: the best there is)")
    threads: Annotated[int, Field(ge=1)] | None = Field(None, description="CPU threads")
    memory: str | None = Field(
        None, description="the most that the run may hold, as 6GB (default: most of what is free)"
    )
    checkpointing: bool | None = Field(
        None, description="recompute activations (default: where an example would not fit)"
    )
    max_length: Annotated[int, Field(ge=2)] = Field(1024, description="tokens of prompt + answer")
    max_prompt_length: Annotated[int, Field(ge=1)] | None = Field(
        None, description="tokens of the prompt alone; its beginning is cut"
    )
    assistant: Literal["last", "all"] = Field(
        "last", description="which assistant turns are trained"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")

    eval_every: Annotated[int, Field(ge=0)] = Field(0, description="steps between evaluations")
    save_every: Annotated[int, Field(ge=0)] = Field(50, description="steps between checkpoints")
    keep: Annotated[int, Field(ge=1)] = Field(2, description="checkpoints kept")
    early_stopping: str | None = Field(
        None, description="stop when this metric no longer improves, e.g. eval_loss"
    )
    patience: Annotated[int, Field(ge=1)] = Field(3, description="evaluations without improvement")
    loggers: list[str] = Field(
        default_factory=list,
        description="also log to tensorboard, wandb, mlflow or trackio (metrics.jsonl always is)",
    )
    samples: Annotated[int, Field(ge=0)] = Field(4, description="prompts sampled before and after")
    judge: str | None = Field(
        None, description="verifier, FILE.py:function, or reward-model folder"
    )
    max_new_tokens: Annotated[int, Field(ge=1)] = Field(
        128, description="tokens of a sampled answer"
    )
    temperature: Annotated[float, Field(ge=0)] = Field(1.0, description="of sampled answers")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="nucleus of sampled answers"
    )
    top_k: Annotated[int, Field(ge=0)] = Field(
        0, description="most likely tokens sampled from; 0: all"
    )
    sampler: Literal["own", "vllm"] = Field(
        "own", description="what draws answers to learn from; vllm is an extra of its own"
    )
    vllm_memory: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="share of a GPU's memory that vLLM takes"
    )

    @field_validator("loggers")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        from polyalign.runs.loggers import SINKS

        for name in value:
            if name not in SINKS:
                raise OptionError(f"There is no logger '{name}'.", nearest(name, SINKS))
        return value

    @field_validator("memory")
    @classmethod
    def _amount(cls, value: str | None) -> str | None:
        from polyalign.runs.memory import parse

        if value is not None:
            parse(value)
        return value

    @field_validator("data", "eval_data", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        many = [value] if isinstance(value, (str, Path)) else value
        if not isinstance(many, (list, tuple)):
            return many
        return [str(one) if isinstance(one, Path) else one for one in many]


def configure(values: Mapping[str, Any], declaration: Declaration) -> TrainConfig:
    """Validate a configuration; the method's own options may stand beside the others.

    Raises :class:`OptionError` for an unknown option, naming the nearest valid one, for a wrong
    type and for what is missing.
    """
    given = {"method": declaration.id, **values}
    hyper = dict(given.pop("hyper", None) or {})
    fields = TrainConfig.model_fields
    for name in [name for name in given if name not in fields]:
        if name not in declaration.schema:
            raise OptionError(
                f"Neither '{declaration.id}' nor polyalign train has an option '{name}'.",
                _nearest(name, declaration.schema, fields),
            )
        hyper[name] = given.pop(name)
    declaration.validate(hyper)
    try:
        return TrainConfig.model_validate(given | {"method": given["method"], "hyper": hyper})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise OptionError(f"The option '{name}' is missing.", _how(name)) from None
        if first["type"] == "extra_forbidden":
            raise OptionError(
                f"There is no option '{name}'.", nearest(name, Lora.model_fields)
            ) from None
        message = first["msg"][0].lower() + first["msg"][1:]
        if first["type"] == "literal_error":
            mend = nearest(str(first["input"]), _choices(first["ctx"]["expected"]))
        else:
            inside = Lora.model_fields if first["loc"][0] == "lora" else fields
            about = inside.get(str(first["loc"][-1])) or fields[str(first["loc"][0])]
            mend = f"It means: {about.description}."
        raise OptionError(f"{name}={first['input']!r} is not allowed: {message}.", mend) from None


def _choices(expected: str) -> list[str]:
    """The names in pydantic's ``'a', 'b' or 'c'``."""
    return re.findall(r"'([^']*)'", expected)


def first(config: TrainConfig, full: bool) -> bool:
    """Whether references are scored before the first step, where a method lets them be: by itself
    where all weights train, so that no second model is held beside them.
    """
    said = config.precompute_references
    return full and not config.fsdp if said is None else said


ELSEWHERE = {
    "load_in_4bit": "quantize=4bit",
    "load_in_8bit": "quantize=8bit",
    "quantization_bit": "quantize=4bit or quantize=8bit",
    "quantization": "quantize=4bit or quantize=8bit",
    "optim": "optimizer",
    "precompute_ref_log_probs": "precompute_references",
}
"""What other libraries call it, and what it is called here."""


def _nearest(name: str, hyper: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    if name in ELSEWHERE:
        return f"Here it is {ELSEWHERE[name]}."
    close = difflib.get_close_matches(name, [*hyper, *fields], n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]}?"
    own = ", ".join(hyper) or "none"
    return f"The method's options: {own}. The run's: {', '.join(fields)}."


def _how(name: str) -> str:
    return {
        "model": "Add --model smollm2, a folder, or a hub id.",
        "data": "Add --data FILE; see: polyalign data check FILE",
        "output": "Add --output FOLDER.",
    }.get(name, "")


def rates(parameters: int, full: bool, supervised: bool) -> float:
    """The one rule for learning rates: by model size, and LoRA or full.

    At 135 million parameters 1e-5 for all weights and 1e-4 for adapters; it falls with the square
    root of the size (the fourth root for adapters). Imitation learns at twice that.
    """
    ratio = 135e6 / max(parameters, 1)
    rate = 1e-5 * min(ratio, 4.0) ** 0.5 if full else 1e-4 * min(ratio, 4.0) ** 0.25
    return float(f"{rate * (2 if supervised else 1):.2g}")
