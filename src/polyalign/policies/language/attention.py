"""Attention over a packed row: several contexts side by side, each with its completions.

A packed row needs no mask. A group ``[context, completion 1, completion 2, ...]`` is cut into
pieces that kernels compute without one: the context with its first completion is causal, each
further completion is causal in itself, and all further completions see the whole context. A query
with two pieces has its two results merged by their log-sum-exp; backwards, each piece is given the
merged result and log-sum-exp, which is all that its gradient needs.

The function is registered with `transformers` and used only while a row is :func:`packed`; the
model's own attention stays for everything else.

Axes: H query heads, J key heads, S places of the row, D features of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

NAME = "polyalign_packed"
"""Under which the function is registered with `transformers`."""


@dataclass(frozen=True)
class Group:
    """A context of ``n`` places at ``start`` and the lengths of the completions behind it."""

    start: int
    n: int
    lengths: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + self.n + sum(self.lengths)

    @property
    def longest(self) -> int:
        """Places that the farthest-looking query sees."""
        return self.n + max(self.lengths, default=0)


@dataclass
class Packed:
    """The groups of one row, and what attention has made for them: masks, by window."""

    groups: tuple[Group, ...]
    made: dict[Any, Any] = field(default_factory=dict)
    windows: list[int | None] = field(default_factory=list)
    """The windows that layers named, in the order in which they were computed."""

    def pieces(self) -> tuple[list[tuple[int, int]], list[tuple[int, int, int, int]]]:
        """Causal stretches (from, to), and queries (from, to) that see all of keys (from, to)."""
        if "pieces" not in self.made:
            causal, across = [], []
            for g in self.groups:
                first = g.start + g.n + (g.lengths[0] if g.lengths else 0)
                causal.append((g.start, first))
                at = first
                for length in g.lengths[1:]:
                    causal.append((at, at + length))
                    at += length
                if at > first and g.n:
                    across.append((first, at, g.start, g.start + g.n))
            self.made["pieces"] = (causal, across)
        found: tuple[list[tuple[int, int]], list[tuple[int, int, int, int]]] = self.made["pieces"]
        return found

    def sees(self, window: int | None, device: torch.device) -> list[Tensor]:
        """For each group, which place attends to which; ``window`` bounds how far back."""
        key = (window, device)
        if key not in self.made:
            self.made[key] = [_sees(g, window, device) for g in self.groups]
        found: list[Tensor] = self.made[key]
        return found


def _sees(group: Group, window: int | None, device: torch.device) -> Tensor:
    block, position = places(group)
    block, position = block.to(device), position.to(device)
    order = torch.arange(len(block), device=device)
    sees = (order.unsqueeze(1) >= order) & ((block == block.unsqueeze(1)) | (block == 0))
    if window is not None:
        sees &= position.unsqueeze(1) - position < window
    return sees


def places(group: Group) -> tuple[Tensor, Tensor]:
    """For each place of a group its block (0: context, k: k-th completion) and its position."""
    sizes = torch.tensor([group.n, *group.lengths])
    block = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    position = [torch.arange(group.n), *(group.n + torch.arange(m) for m in group.lengths)]
    return block, torch.cat(position)


_row: ContextVar[Packed | None] = ContextVar("packed", default=None)


def current() -> Packed | None:
    """The row that is being computed, if any is packed."""
    return _row.get()


@contextlib.contextmanager
def packed(config: Any, row: Packed | None) -> Iterator[None]:
    """Within, models of this configuration attend as the packed row says."""
    if row is None:
        yield
        return
    _register()
    before, token = config._attn_implementation, _row.set(row)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _row.reset(token)


def _register() -> None:
    from transformers import AttentionInterface

    if NAME not in AttentionInterface._global_mapping:
        AttentionInterface.register(NAME, attend)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What `transformers` calls: query [1, H, S, D], key and value [1, J, S, D] to [1, S, H, D].

    Raises ValueError for what this attention does not compute; the model is then not packed.
    """
    row = _row.get()
    wrong = [name for name in ("s_aux", "sinks", "position_bias") if more.get(name) is not None]
    if row is None or wrong or dropout or more.get("is_causal") is False or query.shape[0] != 1:
        raise ValueError(f"packed rows do not know {', '.join(wrong) or 'this attention'}")
    row.windows.append(sliding_window)
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    longest = max(g.longest for g in row.groups)
    window = sliding_window if sliding_window is not None and sliding_window < longest else None
    if query.is_cuda:
        from polyalign.policies.language.flex import by_blocks

        return by_blocks(row, query, key, value, scaling, window, softcap), None
    if softcap is not None or window is not None or query.shape[-1] != value.shape[-1]:
        return _by_group(row, query, key, value, scaling, window, softcap), None
    return _Pieces.apply(query, key, value, row, scaling), None


def _by_group(
    row: Packed,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Group by group under a mask of the group's own."""
    times = query.shape[1] // key.shape[1]
    out = []
    for group, sees in zip(row.groups, row.sees(window, query.device), strict=True):
        at = slice(group.start, group.stop)
        q, k, v = query[:, :, at], key[:, :, at], value[:, :, at]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        if softcap is None:
            out.append(F.scaled_dot_product_attention(q, k, v, sees, scale=scaling))
            continue
        score = torch.tanh(q @ k.transpose(-1, -2) * (scaling / softcap)) * softcap
        score = score.masked_fill(~sees, -torch.inf)
        law = score.to(torch.promote_types(score.dtype, torch.float32)).softmax(-1)
        out.append(law.to(v.dtype) @ v)
    return torch.cat(out, 2).transpose(1, 2)


_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Pieces(torch.autograd.Function):
    """Causal pieces and pieces without any mask; key heads are never repeated in memory."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, row: Packed, scaling: float
    ) -> Tensor:
        # Key heads in the place of the batch, the query heads that share one beside it.
        q = query[0].unflatten(0, (key.shape[1], -1))
        k, v = _shared(key, q), _shared(value, q)
        out = q.new_empty(q.shape[2], *q.shape[:2], q.shape[3]).permute(1, 2, 0, 3)
        total = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        causal, across = row.pieces()
        for a, b in causal:
            at = slice(a, b)
            out[:, :, at], total[:, :, at] = _forward(
                q[:, :, at], k[:, :, at], v[:, :, at], 0.0, True, scale=scaling
            )
        for a, b, c, d in across:
            more, lse = _forward(
                q[:, :, a:b], k[:, :, c:d], v[:, :, c:d], 0.0, False, scale=scaling
            )
            own = total[:, :, a:b]
            share = torch.sigmoid(lse - own).unsqueeze(-1).to(more.dtype)
            out[:, :, a:b].lerp_(more, share)
            total[:, :, a:b] = torch.logaddexp(own, lse)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, out, total)
            ctx.row, ctx.scaling = row, scaling
        return out.permute(2, 0, 1, 3).flatten(1, 2).unsqueeze(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, out, total = ctx.saved_tensors
        q = query[0].unflatten(0, (key.shape[1], -1))
        k, v = _shared(key, q), _shared(value, q)
        up = grads[0][0].unflatten(1, q.shape[:2]).permute(1, 2, 0, 3)
        of_q = torch.empty_like(out)
        of_k, of_v = (torch.empty_like(x[0]) for x in (key, value))
        causal, across = ctx.row.pieces()

        def piece(a: int, b: int, c: int, d: int, masked: bool) -> Any:
            mine, seen = slice(a, b), slice(c, d)
            return _backward(
                up[:, :, mine], q[:, :, mine], k[:, :, seen], v[:, :, seen],
                out[:, :, mine], total[:, :, mine], 0.0, masked, scale=ctx.scaling,
            )  # fmt: skip

        for a, b in causal:
            at = slice(a, b)
            of_q[:, :, at], one, two = piece(a, b, a, b, True)
            of_k[:, at], of_v[:, at] = one.sum(1), two.sum(1)
        for a, b, c, d in across:
            more, one, two = piece(a, b, c, d, False)
            of_q[:, :, a:b] += more
            of_k[:, c:d] += one.sum(1)
            of_v[:, c:d] += two.sum(1)
        return of_q.flatten(0, 1).unsqueeze(0), of_k.unsqueeze(0), of_v.unsqueeze(0), None, None


def _shared(x: Tensor, q: Tensor) -> Tensor:
    """Key heads [1, J, S, D] seen by each of their query heads [J, H / J, S, D], not copied."""
    return x[0].unsqueeze(1).expand(-1, q.shape[1], -1, -1)
