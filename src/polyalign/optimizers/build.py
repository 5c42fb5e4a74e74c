"""Optimizers by name and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from polyalign.engine.sharding import cut_as
from polyalign.errors import OptionError, nearest
from polyalign.optimizers import eight

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    eight.NAME: eight.make,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}

SCHEDULES = ("linear", "cosine", "constant", "inverse_sqrt")


def build(
    name: str,
    parameters: Mapping[str, nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """An optimizer over named parameters; raises :class:`OptionError` for an unknown name.

    ``betas`` belongs to adam and adamw, in 8 bits too; weight decay spares vectors (norms, biases).
    """
    if name not in OPTIMIZERS:
        raise OptionError(f"There is no optimizer '{name}'.", nearest(name, OPTIMIZERS))
    decayed = [p for p in parameters.values() if p.dim() >= 2]
    plain = [p for p in parameters.values() if p.dim() < 2]
    groups: list[dict[str, Any]] = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((decayed, weight_decay), (plain, 0.0))
        if group
    ]
    options: dict[str, Any] = {"lr": lr}
    if name in ("adam", "adamw", eight.NAME):
        options["betas"] = betas
    return OPTIMIZERS[name](groups, **options)


def export_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Any]:
    """The optimizer's memory by parameter name, so that it survives a new process."""
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in parameters.items()
        if parameter in optimizer.state
    }


def import_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    state: Mapping[str, Any],
) -> None:
    """Put back what :func:`export_state` gave."""
    for name, memory in state.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            key: (value if key == "step" else cut_as(value, parameter)).clone()
            if isinstance(value, torch.Tensor)
            else value
            for key, value in memory.items()
        }


def factor(schedule: str, step: int, steps: int, warmup: float) -> float:
    """Learning-rate factor in (0, 1] of optimizer step ``step`` (from 0) of ``steps``.

    ``warmup`` below 1 is a share of ``steps``, otherwise a number of steps. The first step of a
    warm-up already moves.

    >>> [round(factor("linear", k, 4, 1), 2) for k in range(4)]
    [1.0, 1.0, 0.67, 0.33]
    """
    if schedule not in SCHEDULES:
        raise OptionError(f"There is no schedule '{schedule}'.", nearest(schedule, SCHEDULES))
    rise = warmup if warmup >= 1 else warmup * steps
    if step + 1 < rise:
        return (step + 1) / rise
    if schedule == "constant":
        return 1.0
    if schedule == "inverse_sqrt":
        return math.sqrt(max(rise, 1.0) / max(step + 1, rise, 1.0))
    done = (step - min(rise, step)) / max(steps - rise, 1.0)
    done = min(max(done, 0.0), 1.0)
    if schedule == "cosine":
        return max(0.5 * (1 + math.cos(math.pi * done)), 1e-3)
    return max(1.0 - done, 1e-3)
