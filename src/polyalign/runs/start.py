"""The policy that a run begins with, as its configuration asks for it."""

from __future__ import annotations

import torch

from polyalign.errors import ModelError, OptionError
from polyalign.optimizers import eight
from polyalign.policies.language import quantised
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.models import resolve
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.policies.language.vllm_sampler import sampler_of
from polyalign.runs.config import TrainConfig

LORA_ABOVE = 100_000_000
"""Models with more parameters than this are trained with adapters unless ``full`` is said."""


def start_policy(config: TrainConfig) -> LanguagePolicy:
    """The model of a configuration, with a new adapter or all weights to be trained.

    Raises :class:`OptionError` for an unknown device or an optimizer that is not installed,
    :class:`ModelError` for a model that cannot be had or not be trained as asked; both before
    weights are read.
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
    if config.optimizer == eight.NAME:
        eight.check(config.dtype)
    held = config.quantize or quantised.noted(folder) or quantised.method_of(folder)
    quantised.check(folder, config.quantize, config.dtype)
    sampler = sampler_of(
        config.sampler,
        config.vllm_memory,
        quantize=held,
        trust_remote_code=config.trust_remote_code,
    )
    full = config.full
    if full is None:
        full = not adapted and not held and size <= LORA_ABOVE
    if full and held and not adapted:
        raise OptionError(
            f"full=True trains all weights, and weights in few bits ({held}) cannot be trained.",
            "Leave full out to train adapters, or leave quantize out."
            if config.quantize
            else "Leave full out to train adapters.",
        )
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
    policy = LanguagePolicy.from_pretrained(
        folder,
        lora=lora,
        dtype=config.dtype,
        device=config.device,
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
        assistant=config.assistant,
        seed=config.seed,
        quantize=config.quantize,
        fsdp=config.fsdp,
        trust_remote_code=config.trust_remote_code,
    )
    policy.sampler = sampler
    return policy


def parameters(policy: LanguagePolicy) -> int:
    """Parameters of the model itself, adapters not counted."""
    return quantised.numbers(policy.model)
