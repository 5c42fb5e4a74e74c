"""Adapted linear layers, gated layers and norms, each as one step of the graph.

They compute what the model's modules compute, keep less for the backward pass and read memory
fewer times: an adapted layer keeps its input and the ``R`` numbers of its adapter, a gated layer
makes the product with its gate again, a norm keeps its input and one number a place. A layer
behind a norm keeps what the norm keeps and makes its own input of it again. Modules keep their
parameters and names; only their evaluation is replaced, where a module is known exactly.

Axes: M places, I inputs, O outputs, R rank of an adapter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from polyalign.policies.language.quantised import Packed, QuantisedLinear

Weights = tuple[Tensor | Packed, Tensor | None, Tensor | None, Tensor | None]
"""Weight [O, I] and bias [O] of a linear layer, A [R, I] and B [O, R] of its adapter."""


def _wide_weight(weight: Any, like: Tensor) -> Any:
    return weight.wide(like.dtype) if isinstance(weight, Packed) else weight


def _save(ctx: Any, *values: Any) -> None:
    """Keep tensors for the backward pass; packed weights stay packed."""
    ctx.packed = {i: value for i, value in enumerate(values) if isinstance(value, Packed)}
    ctx.save_for_backward(*(None if i in ctx.packed else x for i, x in enumerate(values)))


def _saved(ctx: Any) -> list[Any]:
    return [ctx.packed.get(i, value) for i, value in enumerate(ctx.saved_tensors)]


def _forward(x: Tensor, weights: Sequence[Any], scale: float) -> tuple[Tensor, Tensor | None]:
    """``x W^T + b + scale (x A^T) B^T`` of x [M, I], and x A^T."""
    weight, bias, a, b = weights
    out = F.linear(x, _wide_weight(weight, x), bias)
    if a is None:
        return out, None
    inside = x @ a.to(x.dtype).t()
    return out.addmm_(inside, b.to(x.dtype).t(), alpha=scale), inside


def _backward(
    up: Tensor,
    x: Tensor,
    inside: Tensor | None,
    weights: Sequence[Any],
    scale: float,
    wanted: Sequence[bool],
    below: Tensor | bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of x and of the four weights (those wanted) from that of the output, ``up`` [M, O].

    ``below`` says whether x takes one; a tensor is what this layer's is added to.
    """
    weight, _, a, b = weights
    found: list[Tensor | None] = [None] * 4
    if wanted[0]:
        found[0] = up.t() @ x
    if wanted[1]:
        found[1] = up.sum(0)
    through = None
    if a is not None:
        through = (up @ b.to(up.dtype)).mul_(scale)
        if wanted[2]:
            found[2] = (through.t() @ x).to(a.dtype)
        if wanted[3]:
            assert inside is not None
            found[3] = (inside.t() @ up).mul_(scale).t().contiguous().to(b.dtype)
    if below is False:
        return None, found
    weight = _wide_weight(weight, up)
    of_x = below.addmm_(up, weight) if isinstance(below, Tensor) else up @ weight
    return (of_x if through is None else of_x.addmm_(through, a.to(up.dtype))), found


_MADE_OF = "polyalign_made_of"
"""Where a norm's output carries what it was made of: the norm's input, inverse size and factor."""

Source = tuple[Tensor, Tensor | None, Tensor | None]


def _source(x: Tensor) -> Source:
    """What an input [..., I] is made again of: a norm's input and numbers, or itself."""
    found: Source = getattr(x, _MADE_OF, (x, None, None))
    return found


def _again(x: Tensor, inverse: Tensor | None, factor: Tensor | None) -> Tensor:
    """The input [M, I], of its source."""
    if inverse is not None and factor is not None:
        x = _normed(x, inverse, factor)
    return x.reshape(-1, x.shape[-1])


def _shaped(out: Tensor, x: Tensor) -> Tensor:
    """The output [M, O] in the shape of x, not a view of it: some models add to it in place."""
    found: Tensor = torch.ops.aten._unsafe_view(out, [*x.shape[:-1], out.shape[-1]])
    return found


class _Adapted(torch.autograd.Function):
    """A linear layer with its adapter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Source, scale: float, *weights: Any) -> Tensor:
        out, inside = _forward(x.reshape(-1, x.shape[-1]), weights, scale)
        _save(ctx, *source, inside, *weights)
        ctx.scale, ctx.shape = scale, x.shape
        return _shaped(out, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x, inverse, factor, inside, *weights = _saved(ctx)
        up = grads[0].reshape(-1, grads[0].shape[-1])
        below, _, _, *wanted = ctx.needs_input_grad
        x = _again(x, inverse, factor)
        of_x, found = _backward(up, x, inside, weights, ctx.scale, wanted, below)
        return None if of_x is None else of_x.view(ctx.shape), None, None, *found


class _Gated(torch.autograd.Function):
    """``down(silu(gate(x)) * up(x))`` of three linear layers, each with or without an adapter."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, source: Source, scales: tuple[float, ...], *weights: Any
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        gate, first = _forward(flat, weights[:4], scales[0])
        up, second = _forward(flat, weights[4:8], scales[1])
        out, third = _forward(F.silu(gate).mul_(up), weights[8:], scales[2])
        _save(ctx, *source, gate, up, first, second, third, *weights)
        ctx.scales, ctx.shape = scales, x.shape
        return _shaped(out, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x, inverse, factor, gate, up, first, second, third, *weights = _saved(ctx)
        below, _, _, *wanted = ctx.needs_input_grad
        x = _again(x, inverse, factor)
        of_out = grads[0].reshape(-1, grads[0].shape[-1])
        open_gate = F.silu(gate)
        of_inner, of_down = _backward(
            of_out, open_gate * up, third, weights[8:], ctx.scales[2], wanted[8:], True
        )
        assert of_inner is not None
        of_up = open_gate.mul_(of_inner)
        of_gate = torch.ops.aten.silu_backward(of_inner.mul_(up), gate)
        of_x, of_first = _backward(of_gate, x, first, weights[:4], ctx.scales[0], wanted[:4], below)
        of_x, of_second = _backward(
            of_up, x, second, weights[4:8], ctx.scales[1], wanted[4:8],
            False if of_x is None else of_x,
        )  # fmt: skip
        of_x = None if of_x is None else of_x.view(ctx.shape)
        return of_x, None, None, *of_first, *of_second, *of_down


def _normed(x: Tensor, inverse: Tensor, factor: Tensor) -> Tensor:
    return (x * inverse).mul_(factor)


class _Norm(torch.autograd.Function):
    """``x / sqrt(mean(x^2) + eps) * (offset + w)`` along the last axis, and that root's inverse."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float
    ) -> tuple[Tensor, Tensor]:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        ctx.mark_non_differentiable(inverse)
        ctx.offset = offset
        return _normed(x, inverse, weight + offset if offset else weight), inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, inverse = ctx.saved_tensors
        up = grads[0]
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (up * x).mul_(inverse).flatten(0, -2).sum(0)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None, None
        inner = up * (weight + ctx.offset if ctx.offset else weight)
        share = torch.linalg.vecdot(inner, x).unsqueeze(-1)
        share = share.mul_(inverse * inverse).div_(x.shape[-1])
        # inverse * (inner - x * mean(inner x) * inverse^2)
        return inner.addcmul_(x, share, value=-1).mul_(inverse), of_weight, None, None


class Fused:
    """A module's evaluation: ours where it holds, else the module's own."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.own = module.forward
        self.on = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.on and len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            out = self.compute(args[0])
            if out is not None:
                return out
        return self.own(*args, **kwargs)

    def compute(self, x: Tensor) -> Tensor | None:
        """What the module gives for x; None where this does not know."""
        raise NotImplementedError


class _FusedLinear(Fused):
    def compute(self, x: Tensor) -> Tensor | None:
        found = _weights(self.module, x)
        if found is None or (found[0][2] is None and not hasattr(x, _MADE_OF)):
            return None
        return _apply(_Adapted, x, _source(x), found[1], *found[0])


class _FusedGated(Fused):
    def compute(self, x: Tensor) -> Tensor | None:
        m = self.module
        found = [_weights(layer, x) for layer in (m.gate_proj, m.up_proj, m.down_proj)]
        if any(one is None for one in found):
            return None
        scales = tuple(one[1] for one in found if one is not None)
        weights = (w for one in found if one is not None for w in one[0])
        return _apply(_Gated, x, _source(x), scales, *weights)


class _FusedNorm(Fused):
    def __init__(self, module: Any, eps: float, offset: float) -> None:
        super().__init__(module)
        self.eps, self.offset = eps, offset

    def compute(self, x: Tensor) -> Tensor | None:
        weight = self.module.weight
        fits = x.dtype == weight.dtype and x.shape[-1] == len(weight)
        if x.device.type != "cpu" or not fits or not _wide(x):
            return None
        out, inverse = _norm_of(x, weight, self.eps, self.offset)
        if out.requires_grad:
            factor = weight.detach() + self.offset if self.offset else weight.detach()
            setattr(out, _MADE_OF, (x.detach(), inverse, factor))
        return out


def _apply(function: Any, *args: Any) -> Tensor:
    out: Tensor = function.apply(*args)
    return out


def _norm_of(x: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    out, inverse = _Norm.apply(x, weight, eps, offset)
    return out, inverse


def _wide(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64)


def _weights(layer: Any, x: Tensor) -> tuple[Weights, float] | None:
    """A linear layer's weights as they act on x now; None where it is more than that."""
    from peft.tuners.lora.layer import Linear

    a = b = None
    scale = 1.0
    base = layer
    if type(layer) is Linear:
        base = layer.base_layer
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        if layer.merged or (not layer.disable_adapters and len(names) > 1):
            return None
        if names and not layer.disable_adapters:
            (name,) = names
            dropout = layer.lora_dropout[name]
            drops = not isinstance(dropout, nn.Identity) and dropout.training
            if drops or name in layer.lora_variant or layer.lora_bias[name]:
                return None
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            scale = float(layer.scaling[name])
    if _hooked(layer) or _hooked(base):
        return None
    transposed = type(base).__name__ == "Conv1D"
    packed = type(base) is QuantisedLinear
    known = type(base) is nn.Linear or transposed or packed
    if not known or torch.is_autocast_enabled(x.device.type):
        return None
    if packed:
        return (base.packed, base.bias, a, b), scale
    if base.weight.dtype != x.dtype:
        return None
    weight = base.weight.t() if transposed else base.weight
    return (weight, base.bias, a, b), scale


def _hooked(module: Any) -> bool:
    """Whether somebody listens to the module, which must then be called as one."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        or module._backward_pre_hooks
    )  # fmt: skip


def install(model: nn.Module) -> None:
    """Let the known modules of a model be evaluated by this room's functions."""
    from peft.tuners.lora.layer import Linear

    inner = {id(m.base_layer) for m in model.modules() if type(m) is Linear}
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), Fused):
            continue
        fused: Fused | None = None
        if type(module) is Linear or (type(module) is nn.Linear and id(module) not in inner):
            fused = _FusedLinear(module)
        elif _is_gated(module):
            fused = _FusedGated(module)
        elif type(module).__name__.endswith("RMSNorm"):
            fused = _norm(module)
        if fused is not None:
            module.forward = fused


def _is_gated(module: nn.Module) -> bool:
    children = dict(module.named_children())
    return (
        type(module).__name__.endswith("MLP")
        and set(children) == {"gate_proj", "up_proj", "down_proj", "act_fn"}
        and type(children["act_fn"]).__name__ in ("SiLU", "SiLUActivation")
    )


def _norm(module: Any) -> _FusedNorm | None:
    """A root-mean-square norm with the epsilon and offset that reproduce the module."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not isinstance(eps, float) or not isinstance(weight, Tensor) or weight.dim() != 1:
        return None
    if weight.device.type != "cpu" or not _wide(weight):
        return None
    x = torch.linspace(-1.0, 2.0, 2 * len(weight), dtype=weight.dtype).reshape(2, -1)
    with torch.no_grad():
        for offset in (0.0, 1.0):
            found, _ = _norm_of(x, weight, eps, offset)
            if torch.allclose(found, module(x), rtol=1e-5, atol=1e-6):
                if not _weighs(module, x):
                    break
                return _FusedNorm(module, eps, offset)
    return None


def _weighs(module: nn.Module, x: Tensor) -> bool:
    """Whether a norm reads its weight, which some only have."""
    more = {"weight": torch.full_like(x[0], 3.0)}
    return not torch.equal(torch.func.functional_call(module, more, (x,)), module(x))


@contextlib.contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """Within, every module is evaluated by its own forward pass."""
    switch(model, False)
    try:
        yield
    finally:
        switch(model, True)


def switch(model: nn.Module, on: bool) -> None:
    """Evaluate a model's known modules here or by themselves."""
    for module in model.modules():
        found = module.__dict__.get("forward")
        if isinstance(found, Fused):
            found.on = on
