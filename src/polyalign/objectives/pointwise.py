"""The pointwise family: one answer, good or bad, against a zero point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from polyalign.types import Loss, Needs, Scores, State, needs


@dataclass(frozen=True)
class Prospect:
    """Kahneman-Tversky value of an answer around the policy's own divergence.

    ``h = log pi(y|x) - log ref(y|x)``; ``z0 = max(0, mean h(mismatched))`` over the whole optimizer
    step, without gradient. Desirable: ``lam_D (1 - sigmoid(beta (h - z0)))``; undesirable:
    ``lam_U (1 - sigmoid(beta (z0 - h)))``; the mean is over both classes together. beta acts only
    inside the sigmoid. Source: Ethayarajh et al. 2024, arXiv 2402.01306, equation 8.

    Metrics: ``rewards/chosen`` and ``rewards/rejected`` are means of ``beta h`` over desirable and
    undesirable examples; ``rewards/accuracies`` counts examples strictly on their side of z0.
    """

    beta: float = 0.1
    lam_D: float = 1.0
    lam_U: float = 1.0

    @property
    def needs(self) -> Needs:
        return needs(
            "own",
            references=["ref"],
            fields=["label"],
            statistics=["mismatched"],
            couples="statistics",
        )

    def start(self) -> Mapping[str, Tensor]:
        return {"z0": torch.zeros(())}

    def before(self, scores: Scores, state: State) -> Mapping[str, Tensor]:
        other = scores["mismatched"]
        weight = other.weight.to(other.logp.dtype)
        h = other.sum(other.log_ratio())
        total = weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
        return {"z0": ((h * weight).sum() / total).clamp(min=0.0).detach()}

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = scores["own"]
        one = (own.fields["label"] > 0.5).to(own.logp.dtype)
        z0 = state["z0"].to(own.logp)
        sign = 2.0 * one - 1.0
        lam = self.lam_D * one + self.lam_U * (1.0 - one)
        h = own.sum(own.log_ratio())
        z = self.beta * sign * (h - z0)
        # 1 - sigmoid(z) loses its digits for large z; sigmoid(-z) does not.
        value = lam * torch.sigmoid(-z)
        reward, logp = self.beta * h.detach(), own.sum().detach()
        return Loss(
            (scores.per_unit(value),),
            {
                "rewards/chosen": scores.per_unit(reward, weight=one),
                "rewards/rejected": scores.per_unit(reward, weight=1.0 - one),
                "rewards/accuracies": scores.per_unit((z.detach() > 0).to(own.logp.dtype)),
                "logps/chosen": scores.per_unit(logp, weight=one),
                "logps/rejected": scores.per_unit(logp, weight=1.0 - one),
                "kl": scores.per_unit(z0.expand_as(reward)),
            },
        )
