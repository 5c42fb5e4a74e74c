"""The listwise family: several answers to one prompt, against each other and their scores.

Axes: U units, K members of a list, T steps. Members that are missing have no part in anything, and
the order in which a list is given says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from polyalign.objectives.rewards import Reward, SumLogRatio
from polyalign.types import Loss, Needs, Scores, State, Term, needs


class ListLoss(Protocol):
    """A loss [U] of the rewards s [U, K]; ``own`` gives access to members, scores and fields."""

    @property
    def needs(self) -> Needs: ...

    def __call__(self, s: Tensor, own: Scores) -> Tensor: ...


@dataclass(frozen=True)
class PenalisedLogp:
    """``log pi(y|x) / |y|^power``, log-probability summed over steps; power 1 averages them."""

    power: float = 1.0

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, own: Scores, other: Scores) -> Tensor:
        return own.sum() / own.lengths**self.power


@dataclass(frozen=True)
class LogRatioTo:
    """``log pi(y|x) - q``, summed over steps, q a field of each member."""

    name: str

    @property
    def needs(self) -> Needs:
        return needs(fields=[self.name])

    def __call__(self, own: Scores, other: Scores) -> Tensor:
        return own.sum() - own.fields[self.name].to(own.logp.dtype)


@dataclass(frozen=True)
class BestNll:
    """``weight`` times the negative log-likelihood of the best-scored answer, one number a list.

    ``by`` "sum" or "mean" over its steps; several best ones are averaged. ``grows`` multiplies by
    ``(K - 1)^2`` of the list's own length K.
    """

    weight: float = 1.0
    by: Literal["sum", "mean"] = "sum"
    grows: bool = False

    def __call__(self, own: Scores) -> Tensor:
        nll = mean_of(-(own.sum() if self.by == "sum" else own.mean()), best(own))
        size = (members(own).sum(-1) - 1.0).square() if self.grows else 1.0
        return self.weight * size * nll


@dataclass(frozen=True)
class Listwise:
    """``L = mean over lists of (coefficient * loss(scale * reward) + anchor)``.

    ``reward`` is a functional of one answer's log-probabilities. The role is ``answers`` [U, K],
    the scores are the field ``reward`` [U, K]; equal scores are ties. ``labels`` "wins" puts in
    their place the share of the other members that each one beats, a tie counting half.

    Metrics: ``rewards/chosen`` and ``rewards/rejected`` are ``scale * reward`` of the best- and
    worst-scored answer (means over ties), ``rewards/accuracies`` is the share of the pairs of
    different score whose rewards are strictly in the scores' order; lists of equal scores do not
    count in margins and accuracies. ``logps/*`` are sums over steps.
    """

    loss: ListLoss
    reward: Reward = field(default_factory=SumLogRatio)
    scale: float = 1.0
    coefficient: float = 1.0
    anchor: BestNll | None = None
    labels: Literal["given", "wins"] = "given"

    @property
    def needs(self) -> Needs:
        total = needs("answers", fields=["reward"]) | self.reward.needs | self.loss.needs
        # Shares of wins lie within every bound.
        return replace(total, bounds=frozenset()) if self.labels == "wins" else total

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = scores["answers"]
        if self.labels == "wins":
            own = replace(own, fields={**own.fields, "reward": wins(own)})
        s = torch.where(valid(own), self.scale * self.reward(own, own), 0.0)
        terms = [scores.per_unit(self.loss(s, own), scale=self.coefficient)]
        metrics = list_metrics(scores, own, s.detach())
        if self.anchor is not None:
            nll = self.anchor(own)
            terms.append(scores.per_unit(nll, name="nll"))
            metrics["nll_loss"] = scores.per_unit(nll.detach())
        return Loss(tuple(terms), metrics)


def valid(own: Scores) -> Tensor:
    """Which members are there, [U, K]."""
    assert own.valid is not None
    return own.valid


def members(own: Scores) -> Tensor:
    """1 for the members that are there, in the dtype of logp, [U, K]."""
    return valid(own).to(own.logp.dtype)


def score_of(own: Scores) -> Tensor:
    """The members' scores [U, K]; what missing ones hold does not matter."""
    return torch.where(valid(own), own.fields["reward"].to(own.logp.dtype), 0.0)


def best(own: Scores, worst: bool = False) -> Tensor:
    """Which members have the largest (smallest) score of their list, [U, K]."""
    sign = -1.0 if worst else 1.0
    r = torch.where(valid(own), sign * score_of(own), -torch.inf)
    return valid(own) & (r == r.max(-1, keepdim=True).values)


def mean_of(x: Tensor, where: Tensor) -> Tensor:
    """Mean of x [U, K] over the members ``where``, [U]."""
    return torch.where(where, x, 0.0).sum(-1) / where.sum(-1).clamp(min=1).to(x.dtype)


def better(own: Scores) -> Tensor:
    """Which pairs (i, j) of a list have i of strictly larger score than j, [U, K, K]."""
    r, there = score_of(own), valid(own)
    both = there.unsqueeze(-1) & there.unsqueeze(-2)
    return both & (r.unsqueeze(-1) > r.unsqueeze(-2))


def wins(own: Scores) -> Tensor:
    """The share of the other members that each one's score beats, a tie counting half, [U, K]."""
    won = better(own).to(own.logp.dtype)
    others = (members(own).sum(-1, keepdim=True) - 1.0).clamp(min=1.0)
    share = 0.5 + 0.5 * (won.sum(-1) - won.sum(-2)) / others
    return torch.where(valid(own), share, 0.0)


def list_metrics(scores: Scores, own: Scores, s: Tensor) -> dict[str, Term]:
    """TRL's metrics of a pair, of the best and the worst of each list; s [U, K] are rewards."""
    top, low, pairs = best(own), best(own, worst=True), better(own)
    count = pairs.sum((-1, -2)).to(s.dtype)
    right = (pairs & (s.unsqueeze(-1) > s.unsqueeze(-2))).sum((-1, -2)).to(s.dtype)
    ordered = (count > 0).to(s.dtype)
    chosen, rejected, logp = mean_of(s, top), mean_of(s, low), own.sum().detach()
    return {
        "rewards/chosen": scores.per_unit(chosen),
        "rewards/rejected": scores.per_unit(rejected),
        "rewards/margins": scores.per_unit(chosen - rejected, weight=ordered),
        "rewards/accuracies": scores.per_unit(right / count.clamp(min=1.0), weight=ordered),
        "logps/chosen": scores.per_unit(mean_of(logp, top)),
        "logps/rejected": scores.per_unit(mean_of(logp, low)),
    }
