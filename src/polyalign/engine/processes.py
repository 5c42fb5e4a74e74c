"""What several processes must agree on; with one process everything here is the identity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 being the one that writes files."""
    return dist.get_rank() if count() > 1 else 0


def total(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes."""
    if count() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def largest(value: int) -> int:
    """The largest ``value`` of any process."""
    return max(gather(value))


def add_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes; the normaliser is global already."""
    if count() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


def gather(value: Any) -> list[Any]:
    """``value`` of every process, in order of rank."""
    if count() == 1:
        return [value]
    everyone: list[Any] = [None] * count()
    dist.all_gather_object(everyone, value)
    return everyone


def mine(items: list[Any]) -> list[Any]:
    """This process's share of a step's units: every count()-th, so that shares differ by at most
    one.
    """
    return items[rank() :: count()]
