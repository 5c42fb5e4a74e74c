"""Tensors that lie in parts on several processes: gathered where files are written, cut where
they are read.

A sharded tensor is PyTorch's ``DTensor``, cut along its first axis. Between the edges nothing
needs to know: optimizers, norms and sums take such tensors as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyalign.engine import processes


def is_sharded(tensor: object) -> bool:
    """Whether a tensor lies in parts on several processes."""
    if processes.count() == 1 or type(tensor) in (Tensor, torch.nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part, sharing its memory; a tensor that is not sharded is its own part."""
    if not is_sharded(tensor):
        return tensor
    part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part


def gathered(tree: Any) -> Any:
    """The tree with each sharded tensor whole, on the CPU of process 0, and None elsewhere.

    One tensor after the other, so that no device holds more than one of them whole. All processes
    call it together, with trees of the same structure.
    """
    if processes.count() == 1:
        return tree
    if isinstance(tree, Tensor):
        if not is_sharded(tree):
            return tree
        whole = tree.detach().full_tensor()  # type: ignore[attr-defined]
        return whole.cpu() if processes.rank() == 0 else None
    if isinstance(tree, Mapping):
        return {key: gathered(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(gathered(value) for value in tree)
    return tree


def cut_as(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, where ``like`` is sharded; on its device.

    A tensor that is sharded already, or a ``like`` that is not, is only moved to the device.
    """
    if not is_sharded(like) or is_sharded(tensor) or tensor.shape != like.shape:
        return tensor.to(like.device)
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    size = -(-like.shape[0] // processes.count())
    part = tensor[processes.rank() * size : (processes.rank() + 1) * size]
    return DTensor.from_local(
        part.to(like.device, copy=True), like.device_mesh, like.placements,
        run_check=False, shape=like.shape, stride=like.stride(),
    )  # fmt: skip


def total_norm(norm: Tensor) -> float:
    """A norm that PyTorch took over sharded or whole tensors, as a number."""
    return float(norm.full_tensor() if is_sharded(norm) else norm)  # type: ignore[attr-defined]


def anywhere(found: bool) -> bool:
    """Whether any process found it."""
    return any(processes.gather(found))


def in_lockstep(policy: object) -> bool:
    """Whether all processes must ask this policy the same number of times, because each pass
    gathers its weights.
    """
    return bool(getattr(policy, "lockstep", False))


def missing(parts: Sequence[Any]) -> int:
    """How many passes this process must make beside its ``parts``, for another that has more."""
    return processes.largest(len(parts)) - len(parts)
