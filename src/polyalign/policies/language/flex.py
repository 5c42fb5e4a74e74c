"""Attention over a packed row by FlexAttention, for GPUs.

Its training kernel exists on GPUs only and has not been run here. Masks, values and gradients are
tested on the CPU by PyTorch's own formula of it, and what is compiled by the kernel for CPUs, which
computes values only.

Axes: H query heads, J key heads, S places of the row, D features of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyalign.policies.language.attention import Packed, places

KINDS = 64
"""Kernels that may be compiled in one process: by window, cap, dtype, heads, with gradients or not,
for one block or several. PyTorch's own 8 are few for two models, and beyond them it would go on
uncompiled, with a matrix of all places.
"""


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
    modify = None
    if softcap is not None:
        cap = torch.tensor(softcap, device=query.device)  # a number would be compiled in, or fail

        def modify(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return torch.tanh(score / cap) * cap

    out = kernel(query.is_cuda)(
        query, key, value, score_mod=modify, block_mask=_mask(row, window, query.device),
        scale=scaling, enable_gqa=query.shape[1] != key.shape[1], kernel_options=ONE_KERNEL,
    )  # fmt: skip
    found: Tensor = out.transpose(1, 2)
    return found


ONE_KERNEL = {"FORCE_USE_FLEX_ATTENTION": True}
"""Short rows by the same kernel as long ones, so that a row's numbers do not depend on its pass."""


@functools.cache
def kernel(compiled: bool) -> Callable[..., Any]:
    """FlexAttention, compiled or by its formula."""
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    if not compiled:
        return flex_attention
    config.recompile_limit = max(config.recompile_limit, KINDS)
    return torch.compile(flex_attention, dynamic=True)


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
    # Nothing that changes from row to row or layer to layer may be a number here, only a tensor:
    # the kernel would be compiled again.
    reach = None if window is None else torch.tensor(window, device=device)

    def sees(b: Any, h: Any, i: Tensor, j: Tensor) -> Tensor:
        beside = (block[i] == block[j]) | (block[j] == 0)
        seen = (i >= j) & (group[i] == group[j]) & beside
        return seen if reach is None else seen & (position[i] - position[j] < reach)

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
