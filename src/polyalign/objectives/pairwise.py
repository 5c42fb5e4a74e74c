"""The pairwise family: reward x margin x link x weight, with likelihood anchors."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from polyalign.objectives.likelihood import Nll
from polyalign.objectives.links import Link, Logistic
from polyalign.objectives.margins import Constant, Margin
from polyalign.objectives.rewards import Reward
from polyalign.types import Loss, Needs, Scores, State, Term, needs


@dataclass(frozen=True)
class Pairwise:
    """``L = coefficient * mean(weight * link(z)) + anchors``, over pairs of chosen and rejected.

    ``z = scale * (reward(chosen) - reward(rejected)) - margin`` [U]. ``weight`` gives each pair a
    factor (a detached number of its scores, or a field). ``shown`` is the reward that metrics
    report when it is not the one that is optimised.

    Metrics: ``rewards/*`` are ``scale * reward``; ``rewards/accuracies`` counts pairs whose
    chosen reward is strictly larger, so a tie is a miss (policy = reference gives 0, as in TRL);
    ``logps/*`` are sums over steps; ``weights`` is the mean weight of a pair.
    """

    reward: Reward
    scale: float = 1.0
    margin: Margin = field(default_factory=Constant)
    link: Link = field(default_factory=Logistic)
    weight: Margin | None = None
    anchors: tuple[Nll, ...] = ()
    coefficient: float = 1.0
    shown: Reward | None = None

    @property
    def needs(self) -> Needs:
        total = (
            needs("chosen", "rejected") | self.reward.needs | self.margin.needs | self.link.needs
        )
        for part in (self.weight, self.shown, *self.anchors):
            if part is not None:
                total = total | part.needs
        return total

    def __call__(self, scores: Scores, state: State) -> Loss:
        chosen, rejected = scores["chosen"], scores["rejected"]
        difference = self.reward(chosen, rejected) - self.reward(rejected, chosen)
        z = self.scale * difference - self.margin(chosen, rejected)
        value = self.link(z, scores)
        anchors = tuple(anchor(scores) for anchor in self.anchors)
        shown = self.shown or self.reward
        metrics = pair_metrics(
            scores,
            self.scale * shown(chosen, rejected).detach(),
            self.scale * shown(rejected, chosen).detach(),
        )
        if self.weight is not None:
            weight = torch.as_tensor(self.weight(chosen, rejected)).to(value)
            value = value * weight
            metrics["weights"] = scores.per_unit(weight.detach().expand_as(value))
        for anchor in anchors:
            metrics["nll_loss"] = Term(anchor.value.detach(), anchor.weight)
        return Loss((scores.per_unit(value, scale=self.coefficient), *anchors), metrics)


def pair_metrics(scores: Scores, chosen: Tensor, rejected: Tensor) -> dict[str, Term]:
    """TRL's metrics of a pair from the two sides' rewards [U]."""
    return {
        "rewards/chosen": scores.per_unit(chosen),
        "rewards/rejected": scores.per_unit(rejected),
        "rewards/margins": scores.per_unit(chosen - rejected),
        "rewards/accuracies": scores.per_unit((chosen > rejected).to(chosen.dtype)),
        "logps/chosen": scores.per_unit(scores["chosen"].sum().detach()),
        "logps/rejected": scores.per_unit(scores["rejected"].sum().detach()),
    }
