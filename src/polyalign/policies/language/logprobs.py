"""Log-probabilities of chosen tokens from hidden states, without ever holding all logits.

The output head runs over chunks of steps. Each quantity of a step (its log-probability, its
entropy, ...) is a function of that step's state alone, so with a constant head its gradient
[M, H] is made in the forward pass, chunk by chunk, and the backward pass only scales it. With a
head that trains, chunks are computed again in the backward pass.

Axes: M steps, H features of a state, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from polyalign.policies.language.signals import quantities

CHUNK = 1 << 23
"""Logits held at once."""

FEWEST = 64
"""Steps in a chunk at least: with fewer, reading the head costs more than multiplying by it."""


@dataclass(frozen=True)
class Head:
    """From states to logits: ``softcap * tanh(scale * (W h + b) / softcap)``.

    ``weight`` None means that the states are the logits already.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def wide(self) -> Head:
        """In float32 at least: sums over a vocabulary need it, and so do a weight's gradients."""
        if self.weight is None:
            return self
        bias = None if self.bias is None else _wide(self.bias)
        return Head(_wide(self.weight), bias, self.scale, self.softcap)

    @property
    def trains(self) -> bool:
        parts = (self.weight, self.bias)
        return torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parts)

    def __call__(self, states: Tensor) -> Tensor:
        """Logits [M, V] of states [M, H]."""
        logits = states if self.weight is None else F.linear(states, self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def token_quantities(
    states: Tensor,
    head: Head,
    targets: Tensor,
    want: frozenset[str] = frozenset(),
    reference: tuple[Tensor, Head] | None = None,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """``logp`` [M] of ``targets`` and the signals in ``want``, from states [M, H].

    Everything is computed in float32 or better.
    ``reference`` holds the states [M, H'] and head of the other law; no gradient goes there.
    ``chunk`` is the number of steps whose logits are held at once.
    """
    names = ("logp", *sorted(want))
    wide = head.wide()
    other = None if reference is None else (reference[0].detach(), reference[1].wide())
    width = states.shape[-1] if wide.weight is None else wide.weight.shape[0]
    chunk = chunk or max(FEWEST, CHUNK // max(width, 1))

    def compute(part: Tensor, at: slice) -> Mapping[str, Tensor]:
        if not want and not torch.is_grad_enabled() and wide.weight is not None:
            return {"logp": _taken(wide(_wide(part)), targets[at])[0]}
        against = None
        if other is not None:
            with torch.no_grad():
                against = other[1](_wide(other[0][at]))
        return quantities(wide(_wide(part)), targets[at], want, against)

    if torch.is_grad_enabled() and (states.requires_grad or wide.trains):
        if wide.trains or wide.weight is None:
            parts = [
                checkpoint(_listed, compute, names, states[at], at, use_reentrant=False)
                for at in _slices(len(states), chunk)
            ]
            rows = [torch.cat(column) for column in zip(*parts)] if parts else []
        elif names == ("logp",) and wide.bias is None and wide.softcap is None:
            rows = [_LogProbability.apply(states, wide.weight, wide.scale, targets, chunk)]
        else:
            rows = list(_Scaled.apply(states, compute, names, chunk))
    else:
        with torch.no_grad():
            parts = [_listed(compute, names, states[at], at) for at in _slices(len(states), chunk)]
        rows = [torch.cat(column) for column in zip(*parts)] if parts else []
    if not rows:
        nothing = _wide(states.new_zeros(0))
        return dict.fromkeys(names, nothing)
    return dict(zip(names, rows))


def _listed(
    compute: Callable[[Tensor, slice], Mapping[str, Tensor]],
    names: tuple[str, ...],
    part: Tensor,
    at: slice,
) -> tuple[Tensor, ...]:
    found = compute(part, at)
    return tuple(found[name] for name in names)


def _slices(n: int, chunk: int) -> Iterator[slice]:
    return (slice(i, min(i + chunk, n)) for i in range(0, n, chunk))


def _taken(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability [M] of ``targets``, with the operations of :func:`quantities`.

    One buffer throughout: the logits [M, V] become exp(logits - largest), whose sum [M, 1] is the
    second value. Policy and reference differ by nothing where their weights are the same.
    """
    largest = logits.max(-1, keepdim=True).values
    chosen = logits.gather(-1, targets.unsqueeze(-1)) - largest
    total = logits.sub_(largest).exp_().sum(-1, keepdim=True)
    return (chosen - total.log()).squeeze(-1), total


class _LogProbability(torch.autograd.Function):
    """log softmax(scale * h W^T)[target]; its gradient in h is scale * (W[target] - p W)."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, scale: float, targets: Tensor, chunk: int
    ) -> Tensor:
        logp = torch.empty(len(states), dtype=weight.dtype, device=states.device)
        slope = torch.empty(states.shape, dtype=weight.dtype, device=states.device)
        for at in _slices(len(states), chunk):
            logits = F.linear(states[at].to(weight.dtype), weight)
            if scale != 1.0:
                logits.mul_(scale)
            logp[at], total = _taken(logits, targets[at])
            slope[at] = weight[targets[at]] - logits.div_(total) @ weight
        ctx.save_for_backward(slope if scale == 1.0 else slope * scale)
        ctx.dtype = states.dtype
        return logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (slope,) = ctx.saved_tensors
        return (grads[0].unsqueeze(-1) * slope).to(ctx.dtype), None, None, None, None


class _Scaled(torch.autograd.Function):
    """Any quantities of single steps, with their gradients in the states made on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        compute: Callable[[Tensor, slice], Mapping[str, Tensor]],
        names: tuple[str, ...],
        chunk: int,
    ) -> tuple[Tensor, ...]:
        values: list[list[Tensor]] = [[] for _ in names]
        slopes: list[list[Tensor]] = [[] for _ in names]
        for at in _slices(len(states), chunk):
            with torch.enable_grad():
                leaf = _wide(states[at].detach()).requires_grad_()
                found = compute(leaf, at)
            for k, name in enumerate(names):
                keep = k < len(names) - 1
                value = found[name]
                one = torch.ones_like(value)
                (slope,) = torch.autograd.grad(value, leaf, one, retain_graph=keep)
                values[k].append(value.detach())
                slopes[k].append(slope)
        if not values[0]:
            nothing = _wide(states.new_zeros(0))
            ctx.save_for_backward()
            ctx.like = states
            return tuple(nothing.clone() for _ in names)
        ctx.save_for_backward(*(torch.cat(parts) for parts in slopes))
        ctx.like = states[:0]
        return tuple(torch.cat(parts) for parts in values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        slopes = ctx.saved_tensors
        if not slopes:
            return torch.zeros_like(ctx.like), None, None, None
        total = sum(grad.unsqueeze(-1) * slope for grad, slope in zip(grads, slopes))
        return total.to(ctx.like.dtype), None, None, None
