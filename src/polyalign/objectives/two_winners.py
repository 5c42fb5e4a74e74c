"""A pair whose chosen side is two answers: the policy's own best and another model's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from polyalign.objectives.links import Link, Logistic
from polyalign.objectives.pairwise import pair_metrics
from polyalign.objectives.rewards import Reward, SumLogRatio
from polyalign.types import Loss, Needs, Scores, State, needs


@dataclass(frozen=True)
class TwoWinners:
    """``L = link(scale * (share r_s + (1 - share) r_w - r_l))`` over units with three answers.

    ``r_s`` is the reward of the role ``source_chosen``, ``r_w`` of ``chosen``, ``r_l`` of
    ``rejected``. The rewards are mixed, inside the link; with ``mixes`` "losses" the two pairs'
    losses, ``share link(z_s) + (1 - share) link(z_w)``, which is never less for a convex link.
    Source: Yang et al. 2024, arXiv 2412.03187.

    Metrics: ``rewards/chosen`` is the mixed reward, ``rewards/source_chosen`` the source's.
    """

    share: float
    scale: float = 1.0
    reward: Reward = field(default_factory=SumLogRatio)
    link: Link = field(default_factory=Logistic)
    mixes: Literal["rewards", "losses"] = "rewards"

    @property
    def needs(self) -> Needs:
        roles = needs("source_chosen", "chosen", "rejected")
        return roles | self.reward.needs | self.link.needs

    def __call__(self, scores: Scores, state: State) -> Loss:
        source, chosen, rejected = (
            scores[role] for role in ("source_chosen", "chosen", "rejected")
        )
        r_s = self.scale * self.reward(source, rejected)
        r_w = self.scale * self.reward(chosen, rejected)
        r_l = self.scale * self.reward(rejected, chosen)
        mixed = self.share * r_s + (1.0 - self.share) * r_w
        if self.mixes == "rewards":
            value = self.link(mixed - r_l, scores)
        else:
            value = self.share * self.link(r_s - r_l, scores)
            value = value + (1.0 - self.share) * self.link(r_w - r_l, scores)
        metrics = pair_metrics(scores, mixed.detach(), r_l.detach())
        metrics["rewards/source_chosen"] = scores.per_unit(r_s.detach())
        metrics["logps/source_chosen"] = scores.per_unit(source.sum().detach())
        return Loss((scores.per_unit(value),), metrics)
