"""The policy that a run begins with, as its configuration asks for it."""

from __future__ import annotations

import torch

from polyalign.errors import ModelError, OptionError
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.models import resolve
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.runs.config import TrainConfig

LORA_ABOVE = 100_000_000
"""Models with more parameters than this are trained with adapters unless ``full`` is said."""


def start_policy(config: TrainConfig) -> LanguagePolicy:
    """The model of a configuration, with a new adapter or all weights to be trained.

    Raises :class:`OptionError` for an unknown device, :class:`ModelError` for a model that cannot
    be had or not be trained as asked.
    """
    try:
        torch.device(config.device or "cpu")
    except RuntimeError:
        raise OptionError(
            f"There is no device '{config.device}'.",
            "Use cpu, cuda, cuda:1 or mps; see: polyalign doctor",
        ) from None
    folder = resolve(config.model, trust_remote_code=config.trust_remote_code)
    adapted = (folder / "adapter_config.json").exists()
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) // 4
    full = config.full if config.full is not None else not adapted and size <= LORA_ABOVE
    lora = None
    if not full and not adapted:
        named = config.lora.targets
        targets = named if isinstance(named, str) else tuple(named)
        lora = LoraSpec(config.lora.r, config.lora.alpha, targets)
    if full and adapted:
        raise ModelError(
            f"{config.model} is an adapter, so not all weights can be trained.",
            "Merge it first: polyalign model merge, or leave full out.",
        )
    return LanguagePolicy.from_pretrained(
        folder,
        lora=lora,
        dtype=config.dtype,
        device=config.device,
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
        assistant=config.assistant,
        seed=config.seed,
        trust_remote_code=config.trust_remote_code,
    )


def parameters(policy: LanguagePolicy) -> int:
    """Parameters of the model itself, adapters not counted."""
    return sum(p.numel() for name, p in policy.model.named_parameters() if "lora_" not in name)
