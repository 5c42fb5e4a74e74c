"""AdamW with both averages in 8 bits, of `bitsandbytes`: 2 bytes a trained number instead of 8.

Blocks of 256 numbers share a scale; tensors of fewer than 4096 numbers keep theirs in float32.
Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861).
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from polyalign.errors import OptionError

NAME = "adamw_8bit"


def check(dtype: str | None = None) -> None:
    """Raise :class:`OptionError` where the library is not installed or cannot compute in
    ``dtype``; loads nothing.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise OptionError(
            f"optimizer={NAME} needs the package bitsandbytes, which is not installed.",
            "pip install 'polyalign[quantized]', or use optimizer=adamw.",
        )
    if dtype == "float64":
        raise OptionError(
            f"optimizer={NAME} cannot step in float64.", "Use optimizer=adamw, or dtype=float32."
        )


def make(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """The optimizer over parameter groups; raises :class:`OptionError` where it cannot be had."""
    wide = any(p.dtype == torch.float64 for group in groups for p in group["params"])
    check("float64" if wide else None)
    from bitsandbytes.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(groups, **options)
    return made
