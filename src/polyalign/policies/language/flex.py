"""Attention over a packed row by FlexAttention, for GPUs.

Its backward pass exists on GPUs only. Values are tested on the CPU; speed and gradients on a GPU
have not been run here.

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


def _mask(row: Packed, window: int | None, device: torch.device) -> Any:
    """The mask of a row for FlexAttention, made once a row and window."""
    from torch.nn.attention.flex_attention import create_block_mask

    key = ("flex", window, device)
    if key not in row.made:
        blocks, positions = zip(*(places(g) for g in row.groups), strict=True)
        group = torch.repeat_interleave(
            torch.arange(len(blocks)), torch.tensor([len(block) for block in blocks])
        ).to(device)
        block, position = torch.cat(blocks).to(device), torch.cat(positions).to(device)

        def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            near = position[i] - position[j] < (window or len(position) + 1)
            beside = (block[i] == block[j]) | (block[j] == 0)
            return (i >= j) & (group[i] == group[j]) & beside & near

        size = len(position)
        row.made[key] = create_block_mask(sees, None, None, size, size, device=str(device))
    return row.made[key]
