"""Pairs whose sides are anchored: each answer has a loss of its own, beside that of the gap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polyalign.objectives.likelihood import Nll
from polyalign.objectives.links import Link, Mixed
from polyalign.objectives.pairwise import pair_metrics
from polyalign.objectives.rewards import Reward
from polyalign.types import Loss, Needs, Scores, State, Term, needs


@dataclass(frozen=True)
class Miss:
    """``1 - sigmoid(z)``: bounded by 0 and 1, flat far from zero on both sides."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, z: Tensor, scores: Scores) -> Tensor:
        # 1 - sigmoid(z) loses its digits for large z; sigmoid(-z) does not.
        return torch.sigmoid(-z)


@dataclass(frozen=True)
class Toward:
    """``(z - target)^2``: the reward has a value to take."""

    target: float

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, z: Tensor, scores: Scores) -> Tensor:
        return (z - self.target).square()


def Down(link: Link, weight: float = 1.0) -> Mixed:
    """``weight * link(-z)``: what pushes a reward up, pushing it down."""
    return Mixed(0.0, weight, link)


@dataclass(frozen=True)
class Anchored:
    """``L = coefficient * mean(chosen(z_w) + rejected(z_l) + gap(z_w - z_l)) + anchors``.

    ``z = scale * reward`` of each answer; each of the three links may be absent. Unlike a loss of
    the gap alone, this one changes when both rewards move together.

    Metrics are those of a pairwise loss, with rewards ``scale * reward``.
    """

    reward: Reward
    scale: float = 1.0
    chosen: Link | None = None
    rejected: Link | None = None
    gap: Link | None = None
    anchors: tuple[Nll, ...] = ()
    coefficient: float = 1.0

    @property
    def needs(self) -> Needs:
        total = needs("chosen", "rejected") | self.reward.needs
        for part in (self.chosen, self.rejected, self.gap, *self.anchors):
            if part is not None:
                total = total | part.needs
        return total

    def __call__(self, scores: Scores, state: State) -> Loss:
        chosen, rejected = scores["chosen"], scores["rejected"]
        z_w = self.scale * self.reward(chosen, rejected)
        z_l = self.scale * self.reward(rejected, chosen)
        parts = ((self.chosen, z_w), (self.rejected, z_l), (self.gap, z_w - z_l))
        value = sum(
            (link(z, scores) for link, z in parts if link is not None), torch.zeros_like(z_w)
        )
        anchors = tuple(anchor(scores) for anchor in self.anchors)
        metrics = pair_metrics(scores, z_w.detach(), z_l.detach())
        for anchor in anchors:
            metrics["nll_loss"] = Term(anchor.value.detach(), anchor.weight)
        return Loss((scores.per_unit(value, scale=self.coefficient), *anchors), metrics)
