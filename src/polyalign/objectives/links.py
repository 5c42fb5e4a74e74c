"""Links: from a pair's margin z to its loss.

``Mixed(p, q, link)`` is ``p * link(z) + q * link(-z)``: label smoothing (p = 1 - eps, q = eps),
soft labels (fields), and the unbiased loss for flipped labels (q < 0) are three choices of p and q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.numbers import bounded_exp
from polyalign.types import Needs, Scores, needs


class Link(Protocol):
    """A loss of the margin z [U]; ``scores`` gives access to the units' fields."""

    @property
    def needs(self) -> Needs: ...

    def __call__(self, z: Tensor, scores: Scores) -> Tensor: ...


@dataclass(frozen=True)
class Logistic:
    """``-(1 - eps) log sigmoid(z) - eps log sigmoid(-z)`` with label smoothing eps in [0, 1/2)."""

    smoothing: float = 0.0

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, z: Tensor, scores: Scores) -> Tensor:
        if self.smoothing == 0.0:
            return F.softplus(-z)
        return (1.0 - self.smoothing) * F.softplus(-z) + self.smoothing * F.softplus(z)


@dataclass(frozen=True)
class Squared:
    """``z^2``: the margin itself is the target."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, z: Tensor, scores: Scores) -> Tensor:
        return z.square()


@dataclass(frozen=True)
class Hinge:
    """``max(0, at - z)``: nothing is asked of a pair beyond ``at``."""

    at: float = 1.0

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, z: Tensor, scores: Scores) -> Tensor:
        return F.relu(self.at - z)


@dataclass(frozen=True)
class LogRatioModulated:
    """``(1 - m) log(1 + exp(-z)) + m exp(-z)``, ``m = sigmoid(z / tau)``: logistic below zero,
    exponential above.

    Not convex: for small tau it rises around zero, between a local minimum and a local maximum.
    Source: Lu et al. 2024, arXiv 2406.08414 (LRML).
    """

    tau: float

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, z: Tensor, scores: Scores) -> Tensor:
        u = z / self.tau
        # One exponent: exp(-z) alone overflows where its weight m is zero.
        return (-u).sigmoid() * F.softplus(-z) + bounded_exp(F.logsigmoid(u) - z)


@dataclass(frozen=True)
class ReverseKl:
    """KL from the policy's preference ``[sigmoid(z), sigmoid(-z)]`` to the label ``[1-eps, eps]``.

    ``sigmoid(z) [log sigmoid(z) - log(1-eps)] + sigmoid(-z) [log sigmoid(-z) - log eps]``, with
    eps in (0, 1/2): 0 at ``z = log((1-eps)/eps)``, and flat far below it. Source: Ji et al. 2024,
    arXiv 2402.00856.
    """

    eps: float = 1e-3

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, z: Tensor, scores: Scores) -> Tensor:
        won = torch.sigmoid(z) * (F.logsigmoid(z) - math.log1p(-self.eps))
        return won + torch.sigmoid(-z) * (F.logsigmoid(-z) - math.log(self.eps))


@dataclass(frozen=True)
class Mixed:
    """``p * link(z) + q * link(-z)``; p and q are numbers or names of fields."""

    p: float | str
    q: float | str
    link: Link = field(default_factory=Logistic)

    @property
    def needs(self) -> Needs:
        return self.link.needs | needs(fields=[w for w in (self.p, self.q) if isinstance(w, str)])

    def __call__(self, z: Tensor, scores: Scores) -> Tensor:
        p = scores.fields[self.p] if isinstance(self.p, str) else self.p
        q = scores.fields[self.q] if isinstance(self.q, str) else self.q
        return p * self.link(z, scores) + q * self.link(-z, scores)


def Robust(flips: float, link: Link | None = None) -> Mixed:
    """The unbiased estimate of a clean loss when each label is flipped with probability ``flips``.

    ``[(1 - eps) link(z) - eps link(-z)] / (1 - 2 eps)``, eps in [0, 1/2). It can be negative and,
    on a single pair, unbounded below. Source: Chowdhury et al. 2024, arXiv 2403.00409, equation 11.
    """
    clean = 1.0 - 2.0 * flips
    return Mixed((1.0 - flips) / clean, -flips / clean, link or Logistic())
