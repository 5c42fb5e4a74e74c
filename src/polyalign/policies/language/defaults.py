"""What a language policy takes where nobody says: its dtype, its template and its limits."""

from __future__ import annotations

from typing import Any

import torch

from polyalign.errors import OptionError, nearest
from polyalign.policies.language.template import Template


def template_of(model: Any, tokenizer: Any, **limits: Any) -> Template:
    """The tokenizer's template with the model's limits: its positions and its end tokens."""
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    bounds = [n for n in (limits.pop("max_length", None), positions) if n is not None]
    declared = getattr(model.generation_config, "eos_token_id", None)
    ends = [declared] if isinstance(declared, int) else list(declared or ())
    return Template(
        tokenizer, max_length=min(bounds, default=None), end_ids=frozenset(ends), **limits
    )


def dtype_of(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype of a name; without one that of the device. Raises :class:`OptionError`."""
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    valid = {"float32", "bfloat16", "float16", "float64"}
    if dtype not in valid:
        raise OptionError(f"There is no dtype '{dtype}'.", nearest(dtype, valid))
    found: torch.dtype = getattr(torch, dtype)
    return found
