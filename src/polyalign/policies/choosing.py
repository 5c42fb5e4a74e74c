"""Choosing from laws that are written out: what is cut off, and which choice a number draws."""

from __future__ import annotations

import torch
from torch import Tensor

from polyalign.errors import OptionError
from polyalign.protocols import Sampling


def truncate(logits: Tensor, how: Sampling) -> Tensor:
    """The log-law [N, V] that really draws: temperature, then top-k, then top-p.

    Temperature 0 draws the most probable choice. Of equal choices the earlier ones are kept.
    """
    if how.temperature < 0 or not 0 < how.top_p <= 1 or how.top_k < 0:
        raise OptionError(
            f"Cannot sample with temperature={how.temperature}, top_p={how.top_p}, "
            f"top_k={how.top_k}.",
            "temperature >= 0, 0 < top_p <= 1, top_k >= 0 (0: no limit).",
        )
    if how.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    law = (logits / how.temperature).log_softmax(-1)
    ordered, index = torch.sort(law, dim=-1, descending=True, stable=True)
    p = ordered.exp()
    keep = p.cumsum(-1) - p < how.top_p
    keep[..., 0] = True
    if how.top_k:
        keep[..., how.top_k :] = False
    kept = torch.where(keep, ordered, -torch.inf).log_softmax(-1)
    return torch.empty_like(law).scatter(-1, index, kept)


def invert(p: Tensor, uniform: Tensor) -> Tensor:
    """The choice [N] at which the distribution function of p [N, V] passes ``uniform`` [N]."""
    total = p.cumsum(-1)
    choice = (total <= (uniform * total[:, -1]).unsqueeze(-1)).sum(-1)
    return choice.clamp(max=p.shape[-1] - 1)
