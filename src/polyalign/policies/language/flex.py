"""Attention over a packed row by FlexAttention, for GPUs.

Its kernel exists on GPUs only. Masks, values and gradients are tested on the CPU by PyTorch's own
formula of it; the kernel itself has not been run here.

Axes: H query heads, J key heads, S places of the row, D features of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyalign.policies.language.attention import Packed, places

_compiled: dict[str, Callable[..., Any]] = {}


def by_blocks(
    row: Packed,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One kernel over the row with a mask of blocks, for GPUs (compiled there at first use)."""
    from torch.nn.attention.flex_attention import flex_attention

    if query.is_cuda:
        if "flex" not in _compiled:
            _compiled["flex"] = torch.compile(flex_attention, dynamic=True)
        compute = _compiled["flex"]
    else:
        compute = flex_attention
    modify = None
    if softcap is not None:
        cap = softcap

        def modify(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return torch.tanh(score / cap) * cap

    out = compute(
        query, key, value, score_mod=modify, block_mask=_mask(row, window, query.device),
        scale=scaling, enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    found: Tensor = out.transpose(1, 2)
    return found


BLOCK = 128
"""Places of a block of the mask, as the kernel has them."""
PAIRS = 512
"""Pairs of blocks looked at in one go: their places are all compared."""


def _mask(row: Packed, window: int | None, device: torch.device) -> Any:
    """The mask of a row for FlexAttention, made once a row and window.

    Only pairs of blocks that have a group in common are looked at, so that nothing of the size of
    the whole row squared is ever made.
    """
    from torch.nn.attention.flex_attention import BlockMask

    key = ("flex", window, device)
    if key in row.made:
        return row.made[key]
    blocks, positions = zip(*(places(g) for g in row.groups), strict=True)
    group = torch.repeat_interleave(
        torch.arange(len(blocks)), torch.tensor([len(block) for block in blocks])
    ).to(device)
    block, position = torch.cat(blocks).to(device), torch.cat(positions).to(device)
    size = len(position)

    def sees(b: Any, h: Any, i: Tensor, j: Tensor) -> Tensor:
        beside = (block[i] == block[j]) | (block[j] == 0)
        seen = (i >= j) & (group[i] == group[j]) & beside
        # Nothing that changes from row to row may be a constant here: it would be compiled again.
        return seen if window is None else seen & (position[i] - position[j] < window)

    some, all_seen = _blocks(group, sees)
    counts = [x.sum(-1, dtype=torch.int32)[None, None] for x in (some & ~all_seen, all_seen)]
    order = [
        x.int().argsort(dim=-1, descending=True, stable=True).int()[None, None]
        for x in (some & ~all_seen, all_seen)
    ]
    row.made[key] = BlockMask.from_kv_blocks(
        counts[0], order[0], counts[1], order[1],
        BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(size, size),
    )  # fmt: skip
    return row.made[key]


def _blocks(group: Tensor, sees: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Whether any, and whether every place of a block of queries sees one of a block of keys."""
    size = len(group)
    count = -(-size // BLOCK)
    begin = torch.arange(count, device=group.device) * BLOCK
    first, last = group[begin], group[(begin + BLOCK - 1).clamp(max=size - 1)]
    meet = (first.unsqueeze(1) <= last) & (begin.unsqueeze(1) >= begin)
    some, all_seen = torch.zeros_like(meet), torch.zeros_like(meet)
    inside = torch.arange(BLOCK, device=group.device)
    for pairs in meet.nonzero().split(PAIRS):
        i = (pairs[:, 0, None] * BLOCK + inside).unsqueeze(2)
        j = (pairs[:, 1, None] * BLOCK + inside).unsqueeze(1)
        real = (i < size) & (j < size)
        seen = sees(None, None, i.clamp(max=size - 1), j.clamp(max=size - 1)) & real
        some[pairs[:, 0], pairs[:, 1]] = seen.flatten(1).any(1)
        all_seen[pairs[:, 0], pairs[:, 1]] = seen.flatten(1).all(1)
    return some, all_seen
