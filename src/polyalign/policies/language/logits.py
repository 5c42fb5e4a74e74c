"""The output head: from hidden states to logits.

Axes: M steps, H features of a state, V tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Head:
    """From states to logits: ``softcap * tanh(scale * (W h + b) / softcap)``.

    ``weight`` None means that the states are the logits already. ``narrow`` is the dtype whose
    numbers are multiplied, where a device sums their products in float32 (:func:`narrow_products`).
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    narrow: torch.dtype | None = None

    def wide(self) -> Head:
        """For many calls: its weights as products take them."""
        if self.weight is None:
            return self
        bias = None if self.bias is None else widened(self.bias)
        return replace(self, weight=self.weight.to(self.dtype), bias=bias)

    @property
    def dtype(self) -> torch.dtype:
        """What is multiplied; products are float32 at least."""
        held = torch.float32 if self.weight is None else self.weight.dtype
        return self.narrow or torch.promote_types(held, torch.float32)

    def copy(self) -> Head:
        """The same with numbers of its own."""
        weight, bias = (None if p is None else p.detach().clone() for p in (self.weight, self.bias))
        return replace(self, weight=weight, bias=bias)

    @property
    def trains(self) -> bool:
        parts = (self.weight, self.bias)
        return torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parts)

    def __call__(self, states: Tensor) -> Tensor:
        """Logits [M, V] of states [M, H]."""
        return self.shape(self.product(states))

    def product(self, states: Tensor, tokens: slice = slice(None)) -> Tensor:
        """``W h + b`` of some tokens, in float32 at least."""
        if self.weight is None:
            return widened(states)
        bias = None if self.bias is None else self.bias[tokens]
        return linear(states.to(self.dtype), self.weight[tokens], bias)

    def shape(self, logits: Tensor) -> Tensor:
        """What becomes of the products: scaled and capped."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def shape_(self, logits: Tensor) -> Tensor:
        """The same in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative of :meth:`shape`, at what it gave."""
        if self.softcap is None:
            return self.scale
        return (logits / self.softcap).square_().neg_().add_(1.0).mul_(self.scale)


def widened(x: Tensor) -> Tensor:
    """In float32 at least, which sums over a vocabulary need."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@functools.cache
def narrow_products(device: torch.device, dtype: torch.dtype) -> torch.dtype | None:
    """The dtype if a device multiplies its numbers and sums in float32, much faster than float32.

    The products are the same to rounding, as products of narrow numbers are exact in float32.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    few = torch.zeros(16, 16, dtype=dtype, device=device)
    try:
        torch.mm(few, few, out_dtype=torch.float32)
    except (RuntimeError, TypeError):  # a device or a PyTorch that cannot
        return None
    return dtype


def _is_narrow(x: Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b`` in the dtype of x, of narrow x in float32."""
    weight = weight.to(x.dtype)
    if not _is_narrow(x):
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    out = torch.mm(x.reshape(-1, x.shape[-1]), weight.t(), out_dtype=torch.float32)
    return (out if bias is None else out.add_(bias)).reshape(*x.shape[:-1], -1)


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a b``, where b says in which dtype is multiplied."""
    if _is_narrow(b):
        out.add_(torch.mm(a.to(b.dtype), b, out_dtype=out.dtype))
    else:
        out.addmm_(a, b)
