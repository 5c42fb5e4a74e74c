"""Log-probabilities of chosen tokens from hidden states, without ever holding all logits.

The output head runs over chunks of the vocabulary and of steps, whose size does not depend on the
vocabulary. A step's log-sum-exp grows chunk by chunk, and so does, with a constant head, its
gradient in the state: all of it is made in the forward pass. A head that trains is computed again,
chunk by chunk, in the backward pass. Signals of a whole law (entropy, divergences, ...) are made of
a few steps' logits at a time, again in both passes.

Axes: M steps, H features of a state, V tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from polyalign.policies.language.logits import Head, add_product, linear, widened
from polyalign.policies.language.signals import quantities

TOKENS = 1 << 12
"""Tokens of the vocabulary in a chunk."""

CHUNK = {"cpu": 1 << 21}
"""Logits of a chunk, by device: few stay in a processor's cache. Elsewhere 2^25."""

LAWS = 1 << 23
"""Logits held at once where whole laws are needed, of both laws together."""

LAWS_AT_ONCE = 1 << 20
"""Logits whose signals are made at once, each of which takes several buffers of that size."""


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
    ``chunk`` is the number of steps of a chunk.
    """
    if not want and head.weight is not None:
        grad = torch.is_grad_enabled() and states.requires_grad
        return {"logp": _logp(states, head, targets, chunk, grad and not head.trains)}
    names = ("logp", *sorted(want))
    other = None if reference is None else (reference[0].detach(), reference[1])
    laws = _Laws(head, targets, names, want, other, chunk)
    return dict(zip(names, _Signals.apply(states, head.weight, head.bias, laws), strict=True))


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def _chunks(states: Tensor, tokens: int, chunk: int | None) -> Iterator[tuple[slice, list[slice]]]:
    """Stretches of the vocabulary, and for each the stretches of steps."""
    size = chunk or CHUNK.get(states.device.type, 1 << 25) // TOKENS
    return ((c, list(_slices(len(states), size))) for c in _slices(tokens, TOKENS))


def buffers(device: str, tokens: int, laws: bool) -> int:
    """Bytes that the head holds at once beside its weights, over a vocabulary of ``tokens``.

    With ``laws``, signals of whole laws are made: about twelve buffers of a few steps' laws.
    """
    chunk = 2 * CHUNK.get(device.partition(":")[0], 1 << 25)
    return 4 * (chunk + (max(LAWS, 2 * tokens) + 12 * max(LAWS_AT_ONCE, tokens) if laws else 0))


class _Running:
    """The log-probability of targets [M], of logits that come in chunks of the vocabulary.

    Policy and reference go through the same sums, so they differ by nothing where their weights
    are the same.
    """

    def __init__(self, targets: Tensor, dtype: torch.dtype) -> None:
        shape, device = (len(targets), 1), targets.device
        self.targets = targets.unsqueeze(-1)
        # Finite, so that a first chunk of -inf alone gives no NaN.
        lowest = torch.finfo(dtype).min
        self.largest = torch.full(shape, lowest, dtype=dtype, device=device)
        self.total = torch.zeros(shape, dtype=dtype, device=device)
        self.chosen = torch.zeros(shape, dtype=dtype, device=device)

    def where(self, at: slice, tokens: slice) -> tuple[Tensor, Tensor]:
        """The targets of the steps ``at`` within a stretch of tokens, and which lie in it."""
        place = self.targets[at] - tokens.start
        inside = (place >= 0) & (place < tokens.stop - tokens.start)
        return torch.where(inside, place, 0), inside

    def add(self, logits: Tensor, at: slice, tokens: slice) -> Tensor:
        """Take logits, which become exp(logits - largest); gives the factor [., 1] by which sums
        of earlier chunks shrink.
        """
        place, inside = self.where(at, tokens)
        self.chosen[at] = torch.where(inside, logits.gather(-1, place), self.chosen[at])
        largest = torch.maximum(self.largest[at], logits.amax(-1, keepdim=True))
        shrink = (self.largest[at] - largest).exp_()
        mass = logits.sub_(largest).exp_().sum(-1, keepdim=True)
        self.total[at] = (self.total[at] * shrink).add_(mass)
        self.largest[at] = largest
        return shrink

    def logp(self) -> Tensor:
        return (self.chosen - self.largest - self.total.log()).squeeze(-1)


def _logp(states: Tensor, head: Head, targets: Tensor, chunk: int | None, slope: bool) -> Tensor:
    found: Tensor = _LogProbability.apply(
        states, head.weight, head.bias, head, targets, chunk, slope
    )
    return found


class _LogProbability(torch.autograd.Function):
    """log softmax(f(h W^T + b))[target]; its gradient in the product is f' (1[target] - p)."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        targets: Tensor,
        chunk: int | None,
        slope: bool,
    ) -> Tensor:
        ctx.dtype, ctx.head, ctx.chunk = states.dtype, head, chunk
        x = states.to(head.dtype)
        run = _Running(targets, widened(x[:0]).dtype)
        mean = torch.zeros_like(widened(x)) if slope else None
        for tokens, steps in _chunks(x, len(weight), chunk):
            w = weight[tokens].to(x.dtype)
            b = None if bias is None else bias[tokens]
            for at in steps:
                logits = head.shape_(linear(x[at], w, b))
                bend = head.slope(logits) if slope else 1.0
                shrink = run.add(logits, at, tokens)
                if mean is not None:
                    add_product(mean[at].mul_(shrink), logits.mul_(bend), w)
        if mean is not None:
            own = weight[targets].to(mean.dtype) * head.slope(run.chosen)
            ctx.save_for_backward(torch.sub(own, mean.div_(run.total), out=own))
        else:
            ctx.save_for_backward(states, weight, bias, targets, run.largest, run.total)
        ctx.slope = slope
        return run.logp()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        up = grads[0].unsqueeze(-1)
        if ctx.slope:
            return (up * ctx.saved_tensors[0]).to(ctx.dtype), *[None] * 6
        states, weight, bias, targets, largest, total = ctx.saved_tensors
        x = states.to(ctx.head.dtype)
        run = _Running(targets, up.dtype)
        of_x = torch.zeros_like(x, dtype=up.dtype) if ctx.needs_input_grad[0] else None
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias, dtype=up.dtype) if ctx.needs_input_grad[2] else None
        for tokens, steps in _chunks(x, len(weight), ctx.chunk):
            w = weight[tokens].to(x.dtype)
            b = None if bias is None else bias[tokens]
            of_w = torch.zeros_like(w, dtype=up.dtype) if of_weight is not None else None
            for at in steps:
                logits = ctx.head.shape_(linear(x[at], w, b))
                bend = ctx.head.slope(logits)
                place, inside = run.where(at, tokens)
                law = logits.sub_(largest[at]).exp_().div_(total[at])
                law.scatter_add_(1, place, -inside.to(law.dtype))
                of_logits = law.mul_(bend).mul_(-up[at])
                if of_x is not None:
                    add_product(of_x[at], of_logits, w)
                if of_w is not None:
                    add_product(of_w, of_logits.t(), x[at])
                if of_bias is not None:
                    of_bias[tokens] += of_logits.sum(0)
            if of_weight is not None and of_w is not None:
                of_weight[tokens] = of_w
        of_x = None if of_x is None else of_x.to(ctx.dtype)
        of_bias = None if of_bias is None else of_bias.to(bias.dtype)
        return of_x, of_weight, of_bias, None, None, None, None


@dataclass(frozen=True)
class _Laws:
    """Whole laws of some steps at a time, and what they say."""

    head: Head
    targets: Tensor
    names: tuple[str, ...]
    want: frozenset[str]
    reference: tuple[Tensor, Head] | None
    chunk: int | None

    def steps(self, states: Tensor) -> Iterator[slice]:
        """Stretches of steps whose laws are held."""
        size = self._width(states) * (1 if self.reference is None else 2)
        return _slices(len(states), self.chunk or max(LAWS // size, 1))

    def few(self, states: Tensor, at: slice) -> Iterator[slice]:
        """Stretches of the steps ``at`` whose signals are made at once."""
        return _slices(at.stop - at.start, max(LAWS_AT_ONCE // self._width(states), 1))

    def _width(self, states: Tensor) -> int:
        weight = self.head.weight
        return max(states.shape[-1] if weight is None else len(weight), 1)

    def other(self, at: slice) -> Tensor | None:
        """The other law's logits at steps."""
        if self.reference is None:
            return None
        states, head = self.reference
        products = _products(states[at], head)
        return products if head.weight is None else head.shape_(products)


class _Signals(torch.autograd.Function):
    """Any quantities of single steps; their laws are made again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor | None, bias: Tensor | None, laws: _Laws
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(states, weight, bias)
        ctx.laws = laws
        dtype = widened(states[:0]).dtype
        values = {name: torch.empty(len(states), dtype=dtype, device=states.device)
                  for name in laws.names}  # fmt: skip
        run = _Running(laws.targets, dtype)
        for at in laws.steps(states):
            logits = laws.head.shape(_products(states[at], laws.head))
            other = laws.other(at)
            for part in laws.few(states, at):
                here = slice(at.start + part.start, at.start + part.stop)
                against = None if other is None else other[part]
                found = quantities(logits[part], laws.targets[here], laws.want, against)
                for name in laws.names:
                    values[name][here] = found[name]
            for tokens in _slices(logits.shape[1], TOKENS):
                run.add(logits[:, tokens].clone(), at, tokens)
        values["logp"] = run.logp()
        return tuple(values[name] for name in laws.names)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        states, weight, bias = ctx.saved_tensors
        laws: _Laws = ctx.laws
        of_states = torch.empty_like(states)
        of_weight = of_bias = None
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight, dtype=widened(weight[:0]).dtype)
        if ctx.needs_input_grad[2]:
            of_bias = torch.zeros_like(bias, dtype=widened(bias[:0]).dtype)
        for at in laws.steps(states):
            x = states[at].to(laws.head.dtype) if weight is not None else widened(states[at])
            products, other = _products(x, laws.head), laws.other(at)
            of_products = torch.empty_like(products) if weight is None else products
            for part in laws.few(states, at):
                here = slice(at.start + part.start, at.start + part.stop)
                against = None if other is None else other[part]
                leaf = products[part].detach().requires_grad_()
                with torch.enable_grad():
                    found = quantities(
                        laws.head.shape(leaf), laws.targets[here], laws.want, against
                    )
                    total = sum((found[n] * up[here]).sum() for n, up in zip(laws.names, grads))
                (of_products[part],) = torch.autograd.grad(total, leaf)
            if weight is None:
                of_states[at] = of_products
                continue
            of_x = torch.zeros_like(x, dtype=products.dtype)
            for tokens in _slices(len(weight), TOKENS):
                of_logits = of_products[:, tokens]
                add_product(of_x, of_logits, weight[tokens].to(x.dtype))
                if of_weight is not None:
                    add_product(of_weight[tokens], of_logits.t(), x)
                if of_bias is not None:
                    of_bias[tokens] += of_logits.sum(0)
            of_states[at] = of_x
        return (
            of_states,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(bias.dtype),
            None,
        )


def _products(states: Tensor, head: Head) -> Tensor:
    """``W h + b`` [M, V] in float32 at least; weights of another dtype are cast chunk by chunk."""
    if head.weight is None:
        return widened(states)
    x = states.to(head.dtype)
    if head.weight.dtype == x.dtype:
        return head.product(x)
    out = x.new_empty(len(x), len(head.weight), dtype=widened(x[:0]).dtype)
    for tokens in _slices(len(head.weight), TOKENS):
        out[:, tokens] = head.product(x, tokens)
    return out
