"""An adapter folded into its base weights for as long as rows are sampled.

Decoding computes one step of each row at a time, so that the adapter's small products cost nearly
as much as the base's large ones. The base's own tensors are put aside and back, never computed
back: afterwards every weight is the same bit for bit.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from polyalign.errors import ModelError
from polyalign.policies.language.adapters import STEP


@contextlib.contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Within, low-rank adapters of full-precision linear layers are part of the weights.

    Layers of another kind or dtype (a narrow dtype would round the adapter away) compute their
    adapter as always.
    """
    shared = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    put_aside: list[tuple[Any, Tensor]] = []
    try:
        for layer in _layers(model):
            weight = layer.get_base_layer().weight
            if shared[id(weight)] > 1:
                continue
            whole = weight.detach().clone()
            for name in layer.active_adapters:
                if name in layer.lora_A:
                    whole += layer.get_delta_weight(name).detach()
            put_aside.append((layer, weight.data))
            weight.data = whole
            layer._disable_adapters = True
        yield
    finally:
        for layer, own in put_aside:
            layer.get_base_layer().weight.data = own
            layer._disable_adapters = False


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The model's own weights by the names of its folder, adapters that are on folded in.

    An adapted weight is folded in float32 or wider and given so. Raises :class:`ModelError` for an
    adapter that is no plain low-rank product, or a quantised base.
    """
    layers: dict[str, Any] = {
        f"{name}.base_layer.weight": x for name, x in model.named_modules() if _plain(x)
    }
    for name, parameter in model.named_parameters():
        if not parameter.dtype.is_floating_point:
            raise ModelError(f"{name} is quantised.", "Use a model of whole weights.")
        if "modules_to_save" in name:
            raise ModelError(
                f"The adapter has a copy of its own of {name.partition('.modules_to_save')[0]}.",
                "Merge it first: polyalign model merge",
            )
        if name in layers:
            whole = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
            for adapter in layers[name].active_adapters:
                if adapter in layers[name].lora_A:
                    whole = whole + layers[name].get_delta_weight(adapter).detach().to(whole.dtype)
            yield name.replace(".base_layer.", "."), whole
        elif "lora_" not in name:
            yield name.replace(".base_layer.", "."), parameter.detach()
        elif name.partition(".lora_")[0] + ".base_layer.weight" not in layers and _on(model, name):
            raise ModelError(
                f"The adapter on {name.partition('.lora_')[0]} cannot be folded into its weight.",
                "Use a plain low-rank adapter on whole weights.",
            )


def _on(model: nn.Module, name: str) -> bool:
    """Whether the adapter that a parameter belongs to is on."""
    return not getattr(model.get_submodule(name.partition(".lora_")[0]), "disable_adapters", False)


def _layers(model: nn.Module) -> list[Any]:
    """The layers that compute a plain low-rank adapter now, of weights that do not round it."""
    plain: list[Any] = [x for n, x in model.named_modules() if _plain(x) and not n.endswith(STEP)]
    wide = (torch.float32, torch.float64)
    return [x for x in plain if x.get_base_layer().weight.dtype in wide]


def _plain(module: Any) -> bool:
    """Whether a layer computes a plain low-rank adapter of a floating-point weight now."""
    try:
        from peft.tuners.lora.layer import Linear
    except ImportError:
        return False
    if type(module) is not Linear or module.disable_adapters or module.merged:
        return False
    weight = getattr(module.get_base_layer(), "weight", None)
    plain = not (getattr(module, "use_dora", None) and any(module.use_dora.values()))
    plain = plain and not any(getattr(module, "lora_bias", {}).values())
    plain = plain and not getattr(module, "lora_variant", None)
    return plain and weight is not None and weight.dtype.is_floating_point
