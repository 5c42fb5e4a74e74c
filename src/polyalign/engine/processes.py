"""What several processes must agree on; with one process everything here is the identity.

Processes are started by ``torchrun`` (or anything else that sets RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT); every process holds the whole policy (or a part of it, see
:mod:`sharding`) and a share of each step's units.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from polyalign.errors import Elsewhere, PolyalignError, RunError


@contextmanager
def joined() -> Iterator[None]:
    """Within, the processes that a launcher started are one group; alone, nothing happens.

    On GPUs each process takes the one of its LOCAL_RANK. Raises :class:`RunError` when the
    launcher's variables do not make a group.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    gpu = torch.cuda.is_available()
    if gpu:
        place, here = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if place >= here:
            raise RunError(
                f"Process {place} of this machine has no GPU: {here} can be seen.",
                f"Start {here} processes here (--nproc-per-node {here}), or see more with "
                "CUDA_VISIBLE_DEVICES.",
            )
        torch.cuda.set_device(place)
    ready()
    try:
        # Numbers about a step are summed on the CPU, gradients where they lie.
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"The {os.environ['WORLD_SIZE']} processes cannot meet ({str(error).splitlines()[0]}).",
            "Start them with: torchrun --nproc-per-node N -m polyalign train …",
        ) from None
    try:
        yield
    finally:
        dist.destroy_process_group()


def ready() -> None:
    """Import what would else hold the group for ever; call before a group is made.

    Default arguments there keep the group of the moment of their import, and a group kept past
    its end has threads that abort the interpreter as it ends. Imported before, they keep none.
    """
    import torch.distributed.fsdp
    import torch.distributed.nn  # noqa: F401


_alone = False


def count() -> int:
    """How many processes train together; 1 within what :func:`first` lets one of them make."""
    together = not _alone and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if together else 1


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
        if hasattr(parameter, "device_mesh"):
            continue  # sharded: summed as it was made
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


def first(make: Callable[[], Any]) -> Any:
    """What ``make`` gives in process 0, for every process; the others wait for it.

    While it is made nothing is asked of the others, so what is made may itself call this. A
    :class:`PolyalignError` there is raised there, and :class:`Elsewhere` in the others.
    """
    made: list[Any] = [None]
    with agreed():
        if rank() == 0:
            with _by_itself():
                made = [make()]
    if count() > 1:
        dist.broadcast_object_list(made, src=0)
    return made[0]


@contextmanager
def _by_itself() -> Iterator[None]:
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextmanager
def agreed() -> Iterator[None]:
    """Leave together: where one process raises a :class:`PolyalignError`, none goes on.

    The first that failed raises its error, the others :class:`Elsewhere`. Within, nothing may be
    asked of other processes after something that can fail.
    """
    mistake: PolyalignError | None = None
    try:
        yield
    except PolyalignError as error:
        if count() == 1:
            raise
        mistake = error
    failed = [place for place, bad in enumerate(gather(mistake is not None)) if bad]
    if not failed:
        return
    if mistake is not None and rank() == failed[0]:
        raise mistake
    raise Elsewhere(f"Process {failed[0]} of this run could not go on.", "See what it says.")


def mine(items: list[Any]) -> list[Any]:
    """This process's share of a step's units: every count()-th, so that shares differ by at most
    one.
    """
    return items[rank() :: count()]
