"""Shapes: increasing functions of a log-probability or log-ratio that become a reward.

DPO's reward is the log-ratio itself. Another divergence from the reference, or another weight of
improbable answers, bends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.numbers import LOG_2
from polyalign.objectives.rewards import Reward
from polyalign.types import Needs, Scores


class Shape(Protocol):
    """An increasing function, elementwise."""

    def __call__(self, h: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class AlphaPower:
    """``(1 - exp(-alpha h)) / alpha``, and ``h`` itself at alpha = 0; slope ``exp(-alpha h)``.

    As f'(u) at ``u = exp(h)`` it is the alpha-divergence of a policy from its reference: alpha 0
    is the reverse KL, alpha 1 the forward KL (up to the constant 1). The exponent is cut at 60.
    """

    alpha: float

    def __call__(self, h: Tensor) -> Tensor:
        if abs(self.alpha) < 1e-12:
            return h
        return -torch.expm1((-self.alpha * h).clamp(max=60.0)) / self.alpha


@dataclass(frozen=True)
class JensenShannon:
    """``log(2 u / (1 + u)) = log 2 + log sigmoid(h)`` at ``u = exp(h)``; slope ``sigmoid(-h)``."""

    def __call__(self, h: Tensor) -> Tensor:
        return LOG_2 + F.logsigmoid(h)


@dataclass(frozen=True)
class Shaped:
    """A reward bent by a shape."""

    reward: Reward
    shape: Shape

    @property
    def needs(self) -> Needs:
        return self.reward.needs

    def __call__(self, own: Scores, other: Scores) -> Tensor:
        return self.shape(self.reward(own, other))
