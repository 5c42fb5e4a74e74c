"""The one normaliser as a pure function: what the engine does over an optimizer step."""

from __future__ import annotations

import torch
from torch import Tensor

from polyalign.types import Loss, Term


def mean(term: Term) -> Tensor:
    """``scale * sum(value * weight) / sum(weight)`` of one Term; 0 where nothing has weight.

    Values without weight do not count, whatever they are.
    """
    weight = term.weight.to(term.value.dtype)
    value = torch.where(weight > 0, term.value, 0.0)
    total = weight.sum()
    return term.scale * (value * weight).sum() / torch.where(total > 0, total, 1.0)


def reduce(loss: Loss) -> Tensor:
    """The scalar that a Loss over a whole optimizer step is: the sum of its Terms' means."""
    return torch.stack([mean(term) for term in loss.terms]).sum()
