"""Weights of pairs: factors of a pair's loss that carry no gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyalign.types import Needs, Scores, needs

Alignment = Literal["sampled", "greedy", "none"]


@dataclass(frozen=True)
class LikelihoodWeight:
    """``min(most, exp(a(chosen) + a(rejected)))``: how likely the policy itself is to say the pair.

    ``a(y)`` is the mean over steps of ``log p(y_t)`` minus what is usual there: "sampled"
    ``log sum_v p(v)^2``, the log of the expected probability of a sampled step; "greedy"
    ``log max_v p(v)``; "none" nothing. [U], constant for the gradient, from the policy as it is.
    Source: Zhou et al. 2024, arXiv 2406.11827.
    """

    alignment: Alignment = "sampled"
    most: float = 1.0

    @property
    def needs(self) -> Needs:
        return needs(
            signals={"sampled": ["log_collision"], "greedy": ["max_prob"], "none": []}[
                self.alignment
            ]
        )

    @torch.no_grad()
    def __call__(self, chosen: Scores, rejected: Scores) -> Tensor:
        total = self._alignment(chosen) + self._alignment(rejected)
        return torch.exp(total.clamp(max=math.log(self.most)))

    def _alignment(self, own: Scores) -> Tensor:
        if self.alignment == "sampled":
            return own.mean(own.logp - own.signals["log_collision"])
        if self.alignment == "greedy":
            return own.mean(own.logp - own.signals["max_prob"].log())
        return own.mean()
