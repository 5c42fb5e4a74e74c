"""Low-rank adapters on one base, through `peft`: attach, copy, compare.

A constant reference has modules of its own around the same base weights. Nothing is switched
between its forward passes and the live policy's, so neither can disturb the other.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyalign.engine.sharding import cut_as, local
from polyalign.errors import ModelError, nearest

LIVE = "default"
"""The name of the adapter that trains; `peft` saves it at the root of a folder."""


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapters of rank ``r``, scaled by ``alpha / r``.

    ``targets``: "all-linear" (all but the output head), or the names of modules. There is no
    dropout: scores are deterministic in parameters and rows.
    """

    r: int = 16
    alpha: float = 32.0
    targets: str | tuple[str, ...] = "all-linear"


def attach(model: nn.Module, spec: LoraSpec, seed: int, base: str) -> Any:
    """The model with a new adapter that changes nothing yet, a function of ``seed``.

    Raises :class:`ModelError` when the targets are not in the model.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    targets = spec.targets if isinstance(spec.targets, str) else list(spec.targets)
    without = _other_layers(model)
    if isinstance(targets, list):
        _check_targets(model, targets, without)
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        target_modules=targets,
        exclude_modules=without or None,
        lora_dropout=0.0,
        task_type=TaskType.CAUSAL_LM,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # GPT-2's Conv1D layers hold their weights transposed; peft sets that itself and says so.
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(model, config, adapter_name=LIVE)
        except ValueError:
            linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if _is_linear(m)}
            wanted = ", ".join(targets) if isinstance(targets, list) else targets
            raise ModelError(
                f"The LoRA targets {wanted} are not modules of this model.", nearest(wanted, linear)
            ) from None
    config.base_model_name_or_path = base
    return wrapped


def attach_folder(model: nn.Module, folder: Path) -> Any:
    """The model with the adapter of a folder, ready to be trained on.

    Raises :class:`ModelError` when the adapter does not fit the model.
    """
    from peft import PeftModel

    try:
        wrapped = PeftModel.from_pretrained(
            model,
            str(folder),
            adapter_name=LIVE,
            is_trainable=True,
        )
    except (RuntimeError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise ModelError(
            f"The adapter in {folder} does not fit its base model ({first}).",
            "Check base_model_name_or_path in its adapter_config.json.",
        ) from None
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return wrapped


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _check_targets(model: nn.Module, targets: list[str], without: list[str]) -> None:
    """Raise :class:`ModelError` for a target that is in the model and takes no adapter there."""

    def ends(name: str, part: str) -> bool:
        return name == part or name.endswith(f".{part}")

    names = [name for name, _ in model.named_modules()]
    for target in targets:
        found = [name for name in names if ends(name, target)]
        if found and all(any(ends(name, part) for part in without) for name in found):
            raise ModelError(
                f"An adapter on {target} would not act in {type(model).__name__}, which reads that "
                "layer's weight itself or routes by it.",
                "Leave it out of the LoRA targets, or use all-linear.",
            )


STEP = ".dt_proj"
"""A layer of state spaces (Mamba, Falcon-Mamba, Jamba) whose weight the recurrence reads itself, so
that an adapter on it would change nothing."""

STATE_SPACES = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Families whose kernels read the weight of ``out_proj`` themselves; `peft` refuses it there."""


def _other_layers(model: nn.Module) -> list[str]:
    """Layers that are linear by their class alone: routers, layers in groups (Llama 4, PhiMoE).

    An adapter adds a product to what a layer gives, which is another thing there.
    """
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and type(module).__module__.startswith("transformers.models.")
        and not _is_product(module)
    ]
    found += [name for name, _ in model.named_modules() if name.endswith(STEP)]
    if getattr(getattr(model, "config", None), "model_type", None) in STATE_SPACES:
        found.append("out_proj")
    return found


@torch.no_grad()
def _is_product(layer: nn.Linear) -> bool:
    x = torch.linspace(-1.0, 1.0, layer.in_features).to(layer.weight).unsqueeze(0)
    try:
        found = layer(x)
    except (RuntimeError, ValueError, IndexError):
        return False
    wanted = nn.functional.linear(x, layer.weight, layer.bias)
    return isinstance(found, torch.Tensor) and torch.allclose(found, wanted, rtol=1e-2, atol=1e-2)


def enable(model: nn.Module, on: bool) -> None:
    """Let the model compute with its adapter or without, whatever requires gradients."""
    for module in model.modules():
        if hasattr(module, "_disable_adapters"):
            setattr(module, "_disable_adapters", not on)  # noqa: B010 (peft's flag, unknown to mypy)


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by names that do not depend on the adapter's name."""
    part = f".{LIVE}"
    return {
        name.replace(part, "", 1): parameter
        for name, parameter in model.named_parameters()
        if part + "." in name + "." and ("lora_" in name or "modules_to_save" in name)
    }


def changes_nothing(model: nn.Module) -> bool:
    """Whether the adapter is exactly the base: every product B A is zero because B is."""
    return all(
        ("lora_A" in name or "lora_embedding_A" in name)
        or ("lora_" in name and not bool(parameter.any()))
        for name, parameter in adapter_parameters(model).items()
    )


def twin(module: nn.Module, own: Iterable[nn.Parameter]) -> Any:
    """A copy with parameters of its own in place of ``own``, which shares all the others."""
    owned = {id(p) for p in own}
    shared: dict[int, Any] = {id(p): p for p in module.parameters() if id(p) not in owned}
    return copy.deepcopy(module, shared)


def set_parameters(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into parameters of the same names and shapes; sharded ones take their part.

    Raises :class:`ModelError` naming what is missing, unknown or of another shape.
    """
    for name, tensor in tensors.items():
        if name not in parameters:
            raise ModelError(f"There is no parameter '{name}'.", nearest(name, parameters))
        if parameters[name].shape != tensor.shape:
            raise ModelError(
                f"The parameter '{name}' has shape {tuple(parameters[name].shape)}, "
                f"not {tuple(tensor.shape)}.",
                "Use weights of the same model and the same adapter rank.",
            )
    missing = sorted(set(parameters) - set(tensors))
    if missing:
        raise ModelError(
            f"{len(missing)} parameters are missing (first: {missing[0]}).",
            "Give tensors for every name in trainable().",
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameter = parameters[name]
            local(parameter).copy_(local(cut_as(tensor, parameter)))
