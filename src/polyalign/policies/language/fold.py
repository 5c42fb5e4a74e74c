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


def _layers(model: nn.Module) -> list[Any]:
    """The layers that compute a plain low-rank adapter now."""
    try:
        from peft.tuners.lora.layer import Linear
    except ImportError:
        return []
    found = []
    module: Any
    for module in model.modules():
        if type(module) is not Linear or module.disable_adapters or module.merged:
            continue
        weight = getattr(module.get_base_layer(), "weight", None)
        plain = not (getattr(module, "use_dora", None) and any(module.use_dora.values()))
        plain = plain and not any(getattr(module, "lora_bias", {}).values())
        plain = plain and not getattr(module, "lora_variant", None)
        if plain and weight is not None and weight.dtype in (torch.float32, torch.float64):
            found.append(module)
    return found
