"""Base weights in 4 or 8 bits, in the formats of `bitsandbytes`, widened where they are used.

A layer keeps its weights as the library packed them. They are made wide for one product at a time
and again for the backward pass, so that a step holds one wide layer at most. In 8 bits the library
multiplies rounded inputs and picks columns by whatever else is in the batch; here inputs stay as
they are, so that a row's numbers do not depend on its neighbours.

Axes: M places, I inputs, O outputs.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from polyalign.errors import ModelError
from polyalign.policies.language.folders import adapter_base, is_adapter, read_json

Bits = Literal["4bit", "8bit"]

LIBRARIES = {
    "bitsandbytes": ("bitsandbytes", "polyalign[quantized]"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "awq": ("gptqmodel", "gptqmodel"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "hqq": ("hqq", "hqq"),
    "torchao": ("torchao", "torchao"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "aqlm": ("aqlm", "aqlm"),
    "eetq": ("eetq", "eetq"),
}
"""What reads a quantised folder, by its `quant_method`: a module, and what brings it."""


def method_of(folder: Path) -> str | None:
    """The method by which a model folder's weights were quantised, None where they are whole."""
    if is_adapter(folder):
        return None
    config = read_json(folder / "config.json")
    found = (config.get("text_config") or {}).get("quantization_config")
    found = config.get("quantization_config", found)
    if not isinstance(found, dict):
        return None
    named = found.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in found else "unknown")
    return str(named)


def check(folder: Path, bits: Bits | None, dtype: str | None = None) -> None:
    """Raise :class:`ModelError` where weights cannot be read, or quantised to ``bits``, here."""
    method = method_of(folder)
    if bits is not None and method is not None:
        raise ModelError(
            f"The weights in {folder} are quantised already ({method}), and quantize={bits} was "
            "asked for.",
            "Leave quantize out.",
        )
    if bits is not None:
        if dtype == "float64":
            raise ModelError(
                f"quantize={bits} cannot compute in float64.", "Use dtype=float32 or bfloat16."
            )
        _library("bitsandbytes", f"quantize={bits}")
    elif method is not None:
        _library(method, f"The model in {folder}")


def _library(method: str, what: str) -> None:
    module, package = LIBRARIES.get(method, (None, None))
    if module is not None and importlib.util.find_spec(module.partition(".")[0]) is None:
        raise ModelError(
            f"{what} needs the package {module}, which is not installed.",
            f"pip install '{package}'",
        )


def noted(folder: Path) -> Bits | None:
    """The bits of the base that an adapter in ``folder`` was trained on, None for whole weights."""
    from polyalign.policies.language.folders import NOTE

    file = folder / NOTE
    found = read_json(file).get("quantize") if is_adapter(folder) and file.is_file() else None
    return found if found in ("4bit", "8bit") else None


def base_is_quantised(folder: Path) -> bool:
    """Whether a model folder, or the base of an adapter folder, holds quantised weights."""
    from polyalign.policies.language.models import resolve

    base = resolve(adapter_base(folder)) if is_adapter(folder) else folder
    return method_of(base) is not None


def options(bits: Bits, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """How `transformers` loads a model with its linear layers packed into ``bits``."""
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": config, "device_map": {"": device}}


class Packed:
    """The weight [O, I] of a layer in few bits."""

    def __init__(self, weight: Tensor, scale: Tensor | None) -> None:
        self.weight, self.scale = weight, scale

    def wide(self, dtype: torch.dtype) -> Tensor:
        """The weight as numbers, [O, I]."""
        if self.scale is not None:
            narrow = torch.promote_types(dtype, torch.float32)
            return self.weight.to(narrow).mul_(self.scale.unsqueeze(1) / 127).to(dtype)
        from bitsandbytes.functional import dequantize_4bit

        weight: Any = self.weight
        found: Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return found.to(dtype)


class _Product(torch.autograd.Function):
    """``x W^T`` with a packed, constant W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        return F.linear(x, packed.wide(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] @ ctx.packed.wide(grads[0].dtype), None


class QuantisedLinear(nn.Linear):
    """A linear layer whose weight is packed; ``weight`` is the library's own parameter."""

    scale: Tensor | None

    def __init__(self, layer: Any) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = layer.weight
        self.bias = layer.bias
        eight = layer.weight.dtype == torch.int8
        self.register_buffer("scale", layer.weight.SCB.float() if eight else None, persistent=False)
        if eight:
            self.weight = nn.Parameter(layer.weight.data, requires_grad=False)

    @property
    def bits(self) -> int:
        return 4 if self.scale is None else 8

    @property
    def packed(self) -> Packed:
        """The weight as it is now."""
        return Packed(self.weight, self.scale)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = _Product.apply(input, self.packed)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def adopt(model: Any) -> Any:
    """Let the layers that `bitsandbytes` packed be computed here; the model is plain otherwise."""
    from bitsandbytes import nn as library

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (library.Linear4bit, library.Linear8bitLt)):
                setattr(parent, name, QuantisedLinear(child))
    # What is said of the model's origin would keep peft and save_pretrained from treating it so.
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized"):
        if hasattr(model, name):
            setattr(model, name, False)
    model.hf_quantizer = model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def widen(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Plain layers with the numbers of the packed ones in their place (the same model, changed)."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, QuantisedLinear):
                setattr(parent, name, _linear(child.packed.wide(dtype), child.bias))
    return model


def as_configured(model: Any) -> Any:
    """A widened model with the kinds of layers that its configuration names: GPT-2's hold their
    weights transposed, and were turned when they were packed.
    """
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        named = type(model)(model.config).named_modules()
    turned = {name for name, module in named if isinstance(module, Conv1D)}
    for path, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and f"{path}.{name}" in turned:
                layer = Conv1D(child.out_features, child.in_features)
                layer.weight = nn.Parameter(child.weight.detach().t().contiguous())
                layer.bias = child.bias
                setattr(parent, name, layer)
    return model


def _linear(weight: Tensor, bias: Any) -> nn.Linear:
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
    return made


def packed_numbers(model: nn.Module) -> int:
    """How many of the model's numbers are packed."""
    layers = (m for m in model.modules() if isinstance(m, QuantisedLinear))
    return sum(layer.in_features * layer.out_features for layer in layers)


def numbers(model: nn.Module) -> int:
    """The model's numbers, each packed one counted as one; adapters are not counted."""
    packed = {id(m.weight): m for m in model.modules() if isinstance(m, QuantisedLinear)}
    own = (p for name, p in model.named_parameters() if "lora_" not in name)
    return sum(
        packed[id(p)].in_features * packed[id(p)].out_features if id(p) in packed else p.numel()
        for p in own
    )


def told(model: nn.Module) -> str | None:
    """A sentence on how the base is held, None where its weights are whole."""
    count, layers = packed_numbers(model), foreign(model)
    if count:
        bits = {m.bits for m in model.modules() if isinstance(m, QuantisedLinear)}
        return (
            f"The base is held in {'/'.join(map(str, sorted(bits)))} bits "
            f"({count / 1e6:,.1f} of {numbers(model) / 1e6:,.1f} million weights); each layer is "
            "made wide while it is used."
        )
    if layers:
        return (
            f"The base is quantised; its {len(layers)} layers and their adapters are computed by "
            f"their own library ({type(layers[0]).__name__})."
        )
    return None


def foreign(model: nn.Module) -> list[nn.Module]:
    """The layers with packed weights that another library computes."""
    return [m for m in model.modules() if hasattr(m, "qweight") or hasattr(m, "weight_packed")]
