"""Losses of a list whose rewards should stand in the order of its scores.

Axes: U units, K members, of which i and j are two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from polyalign.objectives.links import Link, Logistic
from polyalign.objectives.listwise import better, score_of, valid
from polyalign.types import Needs, Scores


@dataclass(frozen=True)
class OrderedPairs:
    """``sum over r_i > r_j of w_ij link(s_i - s_j)``; equal scores make no pair.

    ``lambda_weights``: ``w_ij = |2^r_i - 2^r_j| |1/log(1 + t_i) - 1/log(1 + t_j)|``, t the rank of
    s in its list (1 is the largest), constant for the gradient; else w = 1. ``reduction`` "mean"
    divides by the number of pairs. Source of the weights: Liu et al. 2024, arXiv 2402.01878,
    equations 7 and 8.
    """

    link: Link = field(default_factory=Logistic)
    lambda_weights: bool = False
    reduction: Literal["sum", "mean"] = "sum"

    @property
    def needs(self) -> Needs:
        return self.link.needs

    def __call__(self, s: Tensor, own: Scores) -> Tensor:
        pairs = better(own)
        gap = torch.where(pairs, s.unsqueeze(-1) - s.unsqueeze(-2), 0.0)
        loss = self.link(gap, own)
        if self.lambda_weights:
            loss = loss * lambda_weights(s.detach(), own)
        total = torch.where(pairs, loss, 0.0).sum((-1, -2))
        if self.reduction == "sum":
            return total
        return total / pairs.sum((-1, -2)).clamp(min=1).to(s.dtype)


def lambda_weights(s: Tensor, own: Scores) -> Tensor:
    """``|2^r_i - 2^r_j|`` times how far apart the discounts of i's and j's places are, [U, K, K].

    What swapping the two would change of the discounted gain of the list in the order of s. Equal
    s (all of them, where the policy is its reference) have no order: the mean over their possible
    orders is taken.
    """
    gain = 2.0 ** score_of(own)
    there = valid(own)
    both = there.unsqueeze(-1) & there.unsqueeze(-2)
    above = (both & (s.unsqueeze(-2) > s.unsqueeze(-1))).sum(-1)
    tied = both & (s.unsqueeze(-2) == s.unsqueeze(-1))
    count = tied.sum(-1)
    mean, spread = _discounts(above, count, s)
    return _apart(gain) * torch.where(tied, spread.unsqueeze(-1), _apart(mean))


def _apart(x: Tensor) -> Tensor:
    """``|x_i - x_j|`` [U, K, K] of x [U, K]."""
    return (x.unsqueeze(-1) - x.unsqueeze(-2)).abs()


def _discounts(above: Tensor, count: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The discounts ``1 / log(1 + place)`` of the places above + 1 … above + count of a list.

    Their mean, and the mean distance of two different ones of them, [U, K] each.
    """
    size = like.shape[-1]
    place = torch.arange(1, size + 1, device=like.device, dtype=like.dtype)
    discount = 1.0 / torch.log1p(place)
    start = like.new_zeros(1)
    sums = torch.cat([start, discount.cumsum(0)])
    moments = torch.cat([start, (place * discount).cumsum(0)])
    end = (above + count).clamp(max=size)
    total, moment = sums[end] - sums[above], moments[end] - moments[above]
    m, a = count.to(like.dtype), above.to(like.dtype)
    # Discounts fall: of the p-th of m places, m - p lie below and p - 1 above.
    spread = 2.0 * ((m + 1.0 + 2.0 * a) * total - 2.0 * moment) / (m * (m - 1.0)).clamp(min=1.0)
    return total / m.clamp(min=1.0), spread


def _ties(own: Scores) -> tuple[Tensor, Tensor]:
    """How many members share i's score, itself included, and how many of them come before i."""
    r, there = score_of(own), valid(own)
    both = there.unsqueeze(-1) & there.unsqueeze(-2)
    tied = both & (r.unsqueeze(-1) == r.unsqueeze(-2))
    return tied.sum(-1), tied.tril(-1).sum(-1)


@dataclass(frozen=True)
class PlackettLuce:
    """``sum_k [log sum_{i >= k} exp(s_(i)) - s_(k)]``, members by falling score.

    The negative log-likelihood of drawing the list in its order, without replacement. Among equal
    scores, the j-th of m drawn faces all worse members and the share ``1 - j/m`` of the tied ones
    (Efron's rule), which says nothing about the order in which they are given.
    """

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, s: Tensor, own: Scores) -> Tensor:
        count, before = _ties(own)
        tied = score_of(own).unsqueeze(-1) == score_of(own).unsqueeze(-2)
        share = 1.0 - before.to(s.dtype) / count.clamp(min=1).to(s.dtype)
        weight = torch.where(tied, share.unsqueeze(-1), better(own).to(s.dtype))
        there = valid(own).unsqueeze(-1) & valid(own).unsqueeze(-2) & (weight > 0)
        # Rows of missing members face themselves alone, so that no logarithm is of zero.
        alone = torch.eye(s.shape[-1], dtype=torch.bool, device=s.device) & ~valid(own).unsqueeze(
            -1
        )
        logits = s.unsqueeze(-2) + torch.where(there, weight, 1.0).log()
        total = logits.masked_fill(~(there | alone), -torch.inf).logsumexp(-1)
        return torch.where(valid(own), total - s, 0.0).sum(-1)


@dataclass(frozen=True)
class TemperedPlackettLuce:
    """``sum_k [log(exp(T_kk s_k) + sum_{i > k} exp(T_ki s_i)) - T_kk s_k]``, by falling score.

    ``T_ki = r_k - r_i`` and ``T_kk = max_{i > k} T_ki``: worse answers push back the more, the
    worse they are. Equal scores have T = 0 among each other; the mean over their possible orders is
    taken, so that the order in which a list is given says nothing. Source: Song et al. 2023, arXiv
    2306.17492, where temperatures are 1/T.
    """

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, s: Tensor, own: Scores) -> Tensor:
        r, there = score_of(own), valid(own)
        count, _ = _ties(own)
        gap = r.unsqueeze(-1) - r.unsqueeze(-2)
        worst = torch.where(there, r, torch.inf).min(-1, keepdim=True).values
        mine = torch.where(there, r - worst, 0.0) * s
        others = (gap * s.unsqueeze(-2)).masked_fill(~better(own), -torch.inf)
        facing = torch.cat([mine.unsqueeze(-1), others], -1).logsumexp(-1)
        value = torch.zeros_like(s)
        for j in range(s.shape[-1]):
            # With j tied members still undrawn, each adds exp(0) to what k faces.
            more = torch.full_like(s, float(j)).log()
            share = (count > j).to(s.dtype) / count.clamp(min=1).to(s.dtype)
            value = value + share * (torch.logaddexp(facing, more) if j else facing)
        return torch.where(there, value - mine, 0.0).sum(-1)
