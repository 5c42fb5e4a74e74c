"""Lists of answers for the numeric entry point: arrays [U, K, …] with missing members.

Axes: U units, K members, T steps, V choices. A member is missing where its sum is NaN or where the
mask says so; what else stands there does not matter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyalign.errors import NumericsError
from polyalign.methods.array_sides import Side, read_side
from polyalign.methods.arrays import Reader
from polyalign.types import Needs

LEADS = {"lp": 2, "logp": 3, "logits": 4}
"""The arrays that a list may be given by, with their numbers of axes, of [U, K, T, V]."""

OTHERS = {"rf": 2, "n": 2, "ref": 3, "tokens": 3, "ref_logits": 4}
"""What may stand beside them."""


def read_list(reader: Reader, needs: Needs, *, length: int = 1, even: bool = True) -> Side:
    """The role ``answers``: ``lp``, ``rf``, ``n`` [U, K] summed; ``logp``, ``ref`` [U, K, T] by
    step; or ``logits``, ``ref_logits`` [U, K, T, V] with ``tokens``. ``mask`` is [U, K] with sums
    and [U, K, T] else.

    Raises :class:`NumericsError` for arrays of other shapes and lists with fewer than two members.
    """
    given = {name: reader.arrays[name] for name in (LEADS | OTHERS) if name in reader.arrays}
    for name, value in given.items():
        _axes(name, value, (LEADS | OTHERS)[name])
    lead = next((name for name in LEADS if name in given), "lp")
    first = reader.want(lead, "the answers' log-probabilities [U, K]", "logp [U, K, T] by step")
    for name, value in given.items():
        axes = min(value.dim(), first.dim())
        if value.shape[:axes] != first.shape[:axes]:
            reader.shape(name, value, tuple(first.shape[:axes]))
    mask = reader.find("mask")
    if mask is not None:
        reader.shape("mask", mask, tuple(first.shape[:3]))
        if bool(((mask != 0) & (mask != 1)).any()):
            raise NumericsError("The array 'mask' holds more than 0 and 1.", "Give booleans.")
    there = torch.ones(first.shape[:2], dtype=torch.bool)
    steps = torch.ones(first.shape[:3], dtype=torch.bool) if mask is None else mask > 0
    if lead == "lp":
        there = steps & ~torch.isnan(first)
    elif mask is not None:
        there = steps.any(-1)
    few = there.sum(-1) < 2
    if bool(few.any()):
        raise NumericsError(
            f"Example {int(few.nonzero()[0, 0])} has fewer than two answers to compare.",
            "Give at least two for each prompt, or leave the example out.",
        )
    for name, value in given.items():
        reader.finite(name, value, there if value.dim() == 2 else steps)
    side = read_side(
        _members(reader, given, None if lead == "lp" else mask, there),
        "",
        needs,
        length=length,
        even=even,
    )
    place = torch.full(there.shape, -1)
    place[there] = torch.arange(int(there.sum()))
    side.place = place
    return side


def _axes(name: str, value: Tensor, axes: int) -> None:
    if value.dim() != axes or value.shape[0] == 0:
        raise NumericsError(
            f"The array '{name}' has shape {list(value.shape)}, and "
            f"[{', '.join('UKTV'[:axes])}] is needed.",
            "Give lists of one width, with NaN sums or a mask for missing members.",
        )


def _members(
    reader: Reader, given: dict[str, Tensor], mask: Tensor | None, there: Tensor
) -> Reader:
    """A reader of the members that are there as rows; gradients flow back to the lists."""
    flat = Reader(reader.method, {})
    for name, value in given.items():
        reader.asked.add(name)
        flat.arrays[name] = (reader.leaf(name) if name in LEADS else value)[there]
    if mask is not None:
        flat.arrays["mask"] = mask[there]
    return flat
