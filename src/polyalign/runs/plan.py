"""The plan of a run: every choice that the numbers depend on, written down before training."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polyalign.errors import OptionError, RunError
from polyalign.feedback.records import Demonstration, Record
from polyalign.loops.length import steps_of
from polyalign.loops.session import Settings
from polyalign.protocols import Sampling
from polyalign.recipe import Declaration, Method
from polyalign.runs.config import TrainConfig, first, rates
from polyalign.runs.memory import Budget

BOUND = (
    "method", "hyper", "seed", "records", "data", "model", "batch", "micro", "epochs", "max_steps",
    "lr", "module_lr", "optimizer", "schedule", "warmup", "full", "lora", "quantize", "dtype",
    "reference_states", "device", "threads", "max_length", "torch", "processes", "fsdp",
)  # fmt: skip
"""What must be the same for a resumed run to be bit for bit the uninterrupted one."""


@dataclass(frozen=True)
class Survey:
    """What the data are once they are encoded for this policy."""

    records: int
    tokens: int
    context_tokens: int
    longest: int
    truncated: int
    dropped: int
    largest: int = 0
    """Tokens of the largest example, each of its contexts counted once."""


@dataclass(frozen=True)
class Facts:
    """What the plan must know of the loaded model and data."""

    parameters: int
    trainable: int
    hidden: int
    layers: int
    model: str
    data: str
    full: bool
    dtype: str
    device: str
    survey: Survey
    notes: Sequence[str] = field(default_factory=tuple)
    quantize: str | None = None


def settings_of(
    config: TrainConfig, declaration: Declaration, facts: Facts, micro: int
) -> Settings:
    """The loops' settings: what the user said, else the paper's (if asked), else our rule."""
    paper: Mapping[str, Any] = {}
    if config.paper_defaults:
        if not declaration.paper:
            raise OptionError(
                f"The paper of {declaration.id} gives no learning rate, batch or epochs that we "
                "know of.",
                "Leave --paper-defaults out, or set lr, batch and epochs.",
            )
        paper = declaration.paper
    supervised = declaration.feedback is Demonstration
    rule = rates(facts.parameters, facts.full, supervised)
    return Settings(
        seed=config.seed,
        epochs=config.epochs or paper.get("epochs", 1),
        max_steps=config.max_steps,
        batch=config.batch or paper.get("batch", 16),
        budget=micro,
        lr=config.lr or paper.get("lr", rule),
        module_lr=config.module_lr,
        optimizer=config.optimizer,
        betas=config.betas,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        warmup=config.warmup,
        clip=config.clip,
        reference_states=config.reference_states,
        references_first=first(config, facts.full),
        eval_every=config.eval_every,
        sampling=Sampling(config.temperature, config.top_p, config.top_k, config.max_new_tokens),
    )


def make_plan(
    config: TrainConfig,
    declaration: Declaration,
    method: Method,
    settings: Settings,
    facts: Facts,
    budget: Budget,
    processes: int,
    records: Sequence[Record],
) -> dict[str, Any]:
    """The plan as plain data; keys in :data:`BOUND` are compared on resume, the rest is to read."""
    import torch
    import transformers

    survey = facts.survey
    left = [(stage, *stage.streams["data"].left(records)) for stage in method.stages]

    def steps(settings: Settings) -> list[int]:
        return [
            steps_of(stage, max(1, math.ceil(survey.records * each - 1e-9)), settings)
            for stage, each, _ in left
        ]

    stages = steps(settings)
    passes = settings.epochs * sum(stage.share * share for stage, _, share in left)
    tokens = int((survey.tokens + survey.context_tokens) * passes)
    if settings.max_steps is not None:
        tokens = int(tokens * sum(stages) / max(sum(steps(replace(settings, max_steps=None))), 1))
    references = sorted(
        {n for stage in method.stages for u in stage.updates for n in u.objective.needs.references}
    )
    forward = 2 * facts.parameters
    work = forward * (3 if facts.full else 2) + (forward if references else 0)
    return {
        "method": declaration.id,
        "title": declaration.title,
        "arxiv": declaration.arxiv,
        "hyper": {name: _plain(value) for name, value in method.hyper.items()},
        "model": facts.model,
        "data": facts.data,
        "records": survey.records,
        "dropped": survey.dropped,
        "truncated": survey.truncated,
        "longest": survey.longest,
        "tokens": tokens,
        "stages": len(stages),
        "steps": sum(stages),
        "epochs": settings.epochs,
        "max_steps": settings.max_steps,
        "batch": settings.batch,
        "micro": settings.budget,
        "lr": settings.lr,
        "module_lr": settings.module_lr,
        "optimizer": settings.optimizer,
        "schedule": settings.schedule,
        "warmup": settings.warmup,
        "seed": settings.seed,
        "full": facts.full,
        "lora": None if facts.full else config.lora.model_dump(),
        "quantize": facts.quantize,
        "reference_states": config.reference_states,
        "precompute_references": first(config, facts.full),
        "dtype": facts.dtype,
        "device": facts.device,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "fsdp": config.fsdp,
        "max_length": config.max_length,
        "parameters": facts.parameters,
        "trainable": facts.trainable,
        "references": references,
        "checkpointing": budget.checkpointing,
        "memory_bytes": budget.bytes,
        "memory_limit": budget.limit,
        "seconds": round(tokens * work / _speed(facts.device), 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "notes": [*facts.notes, *([budget.note] if budget.note else [])],
    }


def _speed(device: str) -> float:
    """Floating-point operations a second that training reaches here: half a short product's rate.

    Used for the estimate that people read, never for a choice.
    """
    import time

    import torch

    size = 1024 if device == "cpu" else 4096
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    a = torch.ones(size, size, dtype=dtype, device=device)
    a @ a
    began = time.perf_counter()
    for _ in range(4):
        a @ a
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return 4 * 2 * size**3 / max(time.perf_counter() - began, 1e-6) / 2


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise :class:`RunError` with one sentence when a resumed run would not be the same run."""
    for name in BOUND:
        if old.get(name) != new.get(name):
            raise RunError(
                f"This run was planned with {name}={old.get(name)!r}, and now it would be "
                f"{new.get(name)!r}.",
                "Restore that, or add --replan to go on without being bit for bit the same run.",
            )


def fingerprint(folder: Path) -> str:
    """A hash that tells model folders apart: the config, and each weight file's size and ends."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
        digest.update(str(size).encode())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, type(None), list)) else str(value)
