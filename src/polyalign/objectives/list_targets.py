"""Losses of a list whose rewards should spell a law over its members.

Axes: U units, K members. ``p`` is the target's law over a list, ``q = softmax(s)`` the policy's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.listwise import members, score_of, valid
from polyalign.objectives.numbers import bounded_exp
from polyalign.types import Needs, Scores, needs


def law(x: Tensor, there: Tensor) -> Tensor:
    """Log of the softmax of x [U, K] over the members that are there; 0 at the others."""
    return torch.where(there, x.masked_fill(~there, -torch.inf).log_softmax(-1), 0.0)


class Target(Protocol):
    """The logarithm of a law over a list's members, [U, K], without gradient."""

    @property
    def needs(self) -> Needs: ...

    def __call__(self, own: Scores) -> Tensor: ...


@dataclass(frozen=True)
class Softmax:
    """``p = softmax(r / temperature)``; ``bonus`` is added to the first member's score."""

    temperature: float = 1.0
    bonus: float = 0.0

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, own: Scores) -> Tensor:
        r = score_of(own)
        if self.bonus:
            first = valid(own) & (valid(own).long().cumsum(-1) == 1)
            r = torch.where(first, r + self.bonus, r)
        return law(r / self.temperature, valid(own))


@dataclass(frozen=True)
class Shares:
    """``p = r / sum r`` of scores that are not negative; a list without any score asks nothing."""

    @property
    def needs(self) -> Needs:
        return needs(bounds=[("reward", 0.0, float("inf"))])

    def __call__(self, own: Scores) -> Tensor:
        r = score_of(own)
        total = r.sum(-1, keepdim=True)
        p = r / torch.where(total > 0, total, 1.0)
        return torch.where(valid(own), p.log(), 0.0)


@dataclass(frozen=True)
class Posterior:
    """``p = softmax(log ref + r / temperature - log q')``, q' the law that drew the members.

    ``proposal`` names the field with log q' of each member; None: the reference drew them. With
    samples of q' this is the self-normalised law of the answers given that they are good. Source:
    Pandey et al. 2024, arXiv 2402.02479.
    """

    temperature: float = 0.5
    proposal: str | None = None

    @property
    def needs(self) -> Needs:
        return needs(references=["ref"], fields=[self.proposal] if self.proposal else [])

    def __call__(self, own: Scores) -> Tensor:
        logits = score_of(own) / self.temperature
        if self.proposal is not None:
            drawn = own.fields[self.proposal].to(own.logp.dtype)
            logits = logits + own.sum(own.refs["ref"]) - drawn
        return law(logits, valid(own))


Direction = Literal["forward", "reverse", "unnormalised", "absolute"]


@dataclass(frozen=True)
class Match:
    """How far the policy's law over a list is from the target's.

    ``direction`` "forward": cross-entropy ``-sum_k p_k log q_k`` (KL(p || q) plus the target's
    entropy); "reverse": ``KL(q || p)``; "unnormalised": ``-sum_k p_k s_k``, whose gradient lacks
    the baseline that normalising q brings; "absolute": that ``+ (1/K) sum_k exp(s_k)``, whose
    baseline is the rewards' own mass, least at ``s_k = log(K p_k)``.
    """

    target: Target
    direction: Direction = "forward"

    @property
    def needs(self) -> Needs:
        return self.target.needs

    def __call__(self, s: Tensor, own: Scores) -> Tensor:
        there = valid(own)
        log_p, log_q = self.target(own), law(s, there)
        p = torch.where(there, log_p.exp(), 0.0)
        match self.direction:
            case "forward":
                return -(p * log_q).sum(-1)
            case "reverse":
                return torch.where(there, log_q.exp() * (log_q - log_p), 0.0).sum(-1)
            case "unnormalised":
                return -(p * s).sum(-1)
            case "absolute":
                mass = torch.where(there, bounded_exp(s), 0.0).sum(-1)
                return mass / members(own).sum(-1).clamp(min=1.0) - (p * s).sum(-1)


@dataclass(frozen=True)
class NoiseContrast:
    """``-sum_k p_k log sigmoid(s_k) - (1/K) sum_k log sigmoid(-s_k)``: each answer against noise.

    Unlike losses of differences it changes when all rewards move together; its optimum is
    ``s_k = log(K p_k)``. Source: Chen et al. 2024, arXiv 2402.05369.
    """

    target: Target

    @property
    def needs(self) -> Needs:
        return self.target.needs

    def __call__(self, s: Tensor, own: Scores) -> Tensor:
        p = torch.where(valid(own), self.target(own).exp(), 0.0)
        each = members(own) / members(own).sum(-1, keepdim=True).clamp(min=1.0)
        return (p * F.softplus(-s) + each * F.softplus(s)).sum(-1)


@dataclass(frozen=True)
class Regression:
    """Each reward against its own score: ``sum_k (r_k - s_k)^2``."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, s: Tensor, own: Scores) -> Tensor:
        return torch.where(valid(own), (score_of(own) - s).square(), 0.0).sum(-1)


@dataclass(frozen=True)
class Classification:
    """``-sum_k [r_k log sigmoid(s_k) + (1 - r_k) log sigmoid(-s_k)]``, scores in [0, 1]."""

    @property
    def needs(self) -> Needs:
        return needs(bounds=[("reward", 0.0, 1.0)])

    def __call__(self, s: Tensor, own: Scores) -> Tensor:
        r = score_of(own)
        value = r * F.softplus(-s) + (1.0 - r) * F.softplus(s)
        return torch.where(valid(own), value, 0.0).sum(-1)
