"""Reward-weighted imitation: likelihood of scored answers, the better ones counting more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyalign.objectives.likelihood import Reduction
from polyalign.types import Loss, Needs, Scores, State, needs


@dataclass(frozen=True)
class RewardWeighted:
    """``L = -mean(w log pi(y|x))`` with ``w = exp(R / temperature)`` of the answer's reward R.

    ``normalise`` "batch": w is divided by its mean over the optimizer step, so a constant added to
    all rewards changes nothing; "none": it is not. Then w is cut at ``most``. Weights are factors:
    what they sum to is not divided away. ``reduction`` as for a plain likelihood. The optimum is
    ``mu exp(R / temperature) / Z``, mu the law of the answers.
    Source: Hu et al. 2023, arXiv 2308.12050.

    Metrics: ``weights`` is the mean of w, ``rewards/mean`` of R.
    """

    temperature: float = 1.0
    normalise: Literal["batch", "none"] = "batch"
    most: float = 20.0
    reduction: Reduction = "token"
    role: str = "own"

    @property
    def needs(self) -> Needs:
        return needs(
            self.role,
            fields=["reward"],
            couples="batch" if self.normalise == "batch" else "unit",
        )

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = scores[self.role]
        reward = own.fields["reward"].to(own.logp.dtype)
        w = self.weights(reward, own.weight.to(own.logp.dtype))
        match self.reduction:
            case "token":
                term = own.per_step(-w.unsqueeze(-1) * own.logp)
            case "sequence":
                term = own.per_row(-w * own.mean())
            case "sum":
                term = own.per_row(-w * own.sum())
        return Loss(
            (term,),
            {
                "nll": own.per_step(-own.logp.detach()),
                "weights": own.per_row(w),
                "rewards/mean": own.per_row(reward),
                f"logps/{self.role}": own.per_row(own.sum().detach()),
            },
        )

    def weights(self, reward: Tensor, weight: Tensor) -> Tensor:
        """w [U] of rewards [U]; ``weight`` [U] are the units' own weights in the mean."""
        log_w = reward / self.temperature
        if self.normalise == "batch":
            counted = torch.where(weight > 0, log_w + weight.log(), -math.inf)
            total = weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
            log_w = log_w - (counted.logsumexp(0) - total.log())
        return torch.exp(log_w.clamp(max=math.log(self.most)))
