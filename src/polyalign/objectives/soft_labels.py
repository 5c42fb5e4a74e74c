"""Soft labels: how probably the chosen answer of a pair is the better one.

Axes: U pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.types import Needs, Scores, needs


class Label(Protocol):
    """A probability [U] that the chosen answer is better, from the units' numbers."""

    @property
    def needs(self) -> Needs: ...

    def __call__(self, scores: Scores) -> Tensor: ...


@dataclass(frozen=True)
class ScoreGap:
    """``sigmoid(gamma (s_w - s_l))`` of two scores that each pair brings.

    Source: Kim et al. 2024, arXiv 2410.03145.
    """

    gamma: float
    chosen: str = "score_chosen"
    rejected: str = "score_rejected"

    @property
    def needs(self) -> Needs:
        return needs(fields=[self.chosen, self.rejected])

    def __call__(self, scores: Scores) -> Tensor:
        return torch.sigmoid(
            self.gamma * (scores.fields[self.chosen] - scores.fields[self.rejected])
        )


@dataclass(frozen=True)
class Strength:
    """The probability itself, a number in [0, 1] that each pair brings."""

    field: str = "strength"

    @property
    def needs(self) -> Needs:
        return needs(fields=[self.field], bounds=[(self.field, 0.0, 1.0)])

    def __call__(self, scores: Scores) -> Tensor:
        return scores.fields[self.field]


@dataclass(frozen=True)
class SoftLogistic:
    """``-p log sigmoid(z) - (1 - p) log sigmoid(-z)``: least where ``z = log(p / (1 - p))``."""

    label: Label

    @property
    def needs(self) -> Needs:
        return self.label.needs

    def __call__(self, z: Tensor, scores: Scores) -> Tensor:
        p = self.label(scores).to(z.dtype)
        return p * F.softplus(-z) + (1.0 - p) * F.softplus(z)
