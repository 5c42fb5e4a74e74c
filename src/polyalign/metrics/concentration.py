"""How much of a law lies on its likeliest choices, and how it is spread over them.

Axes: V choices, on the last axis.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from polyalign.errors import OptionError

TEN = 10
"""How many choices count as the likeliest where nobody says."""


class Concentration(NamedTuple):
    """Of the k likeliest choices of laws [..., V], each [...]: their probability, and in nats
    ``-sum p log p`` as they are (``entropy``) and renormalised to 1 (``spread``).
    """

    mass: Tensor
    entropy: Tensor
    spread: Tensor


def concentration(log_law: Tensor, k: int | None = None) -> Concentration:
    """Top-k mass ``M = sum p_(i)`` and entropies ``-sum p_(i) log p_(i)`` of log-laws [..., V].

    Probability that leaves the k likeliest lowers mass and raw entropy together while the
    renormalised entropy rises: a uniform law has k/V, (k/V) log V and log k. Without k: ten, or
    all where there are fewer. Raises :class:`OptionError` for k outside 1 … V.
    Source: Shi et al. 2024, arXiv 2410.11677.
    """
    choices = log_law.shape[-1]
    k = min(TEN, choices) if k is None else k
    if not 1 <= k <= choices:
        raise OptionError(
            f"The {k} likeliest of {choices} choices were asked for.", f"Use k from 1 to {choices}."
        )
    top = log_law.topk(k, dim=-1).values
    p = top.exp()
    mass = p.sum(-1)
    # p log p is 0 where p is; a law with impossible choices has -inf among its logarithms.
    entropy = -torch.where(p > 0, p * top, 0.0).sum(-1)
    return Concentration(mass, entropy, spread(mass, entropy))


def spread(mass: Tensor, entropy: Tensor) -> Tensor:
    """The renormalised entropy from mass M and raw entropy H: ``H / M + log M``, nats."""
    return entropy / mass + mass.log()
