"""Batch-coupled alignment: one empirical law should dominate another, at every quantile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from polyalign.objectives.links import Link, Logistic
from polyalign.types import Loss, Needs, Scores, State, Term, needs


@dataclass(frozen=True)
class PowerHinge:
    """``max(0, margin - z)^power``, convex for power >= 1."""

    margin: float = 0.0
    power: float = 1.0

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, z: Tensor, scores: Scores) -> Tensor:
        violation = torch.relu(self.margin - z)
        return violation if self.power == 1.0 else violation.pow(self.power)


@dataclass(frozen=True)
class Transport:
    """Cost of the violations of first-order dominance: 1-D optimal transport in the batch.

    paired: ``P = lp_w - lp_l`` should dominate ``Q = rf_w - rf_l``; unpaired: ``U = h_w`` should
    dominate ``V = h_l``, ``h = log pi - log ref``. ``L = integral over q of cost(beta * (quantile
    of the first - quantile of the second))``; with equally many equal weights that is the mean
    over ranks i of ``cost(beta (P_(i) - Q_(i)))``. Sets of unequal size (members that are missing)
    and unequal weights go through the same quantile functions. Sorting is a permutation, constant
    for the gradient. The metric ``dominance`` is the share of quantiles at which the first is
    above the second. Source: Melnyk et al. 2024, arXiv 2406.05882, equations 5 to 8.
    """

    beta: float = 0.01
    form: Literal["paired", "unpaired"] = "paired"
    cost: Link = field(default_factory=Logistic)

    @property
    def needs(self) -> Needs:
        return needs("chosen", "rejected", references=["ref"], couples="batch") | self.cost.needs

    def __call__(self, scores: Scores, state: State) -> Loss:
        chosen, rejected = scores["chosen"], scores["rejected"]
        h_w, h_l = chosen.sum(chosen.log_ratio()), rejected.sum(rejected.log_ratio())
        if self.form == "paired":
            upper, lower = chosen.sum() - rejected.sum(), _reference_gap(chosen, rejected)
        else:
            upper, lower = h_w, h_l
        a, b = chosen.per_row(h_w).weight, rejected.per_row(h_l).weight
        both = ((a > 0) & (b > 0)).to(h_w.dtype)
        if self.form == "paired":
            a = b = a * both
        i, j, share = quantile_coupling(upper.detach(), a, lower.detach(), b)
        cost = self.cost(self.beta * (upper[i] - lower[j]), scores)
        # A winner's value is the mean cost over its own quantiles: so the weights are the units'
        # and say nothing about the order.
        mass = torch.zeros_like(upper).index_add(0, i, share)
        value = torch.zeros_like(upper).index_add(0, i, share * cost)
        value = value / torch.where(mass > 0, mass, 1.0)
        r_w, r_l = self.beta * h_w.detach(), self.beta * h_l.detach()
        return Loss(
            (Term(value, a),),
            {
                "rewards/chosen": chosen.per_row(r_w),
                "rewards/rejected": rejected.per_row(r_l),
                "rewards/margins": scores.per_unit(r_w - r_l, weight=both),
                "rewards/accuracies": scores.per_unit((r_w > r_l).to(r_w.dtype), weight=both),
                "logps/chosen": chosen.per_row(chosen.sum().detach()),
                "logps/rejected": rejected.per_row(rejected.sum().detach()),
                "dominance": Term((upper[i] > lower[j]).to(r_w.dtype).detach(), share),
            },
        )


def _reference_gap(chosen: Scores, rejected: Scores) -> Tensor:
    return chosen.sum(chosen.refs["ref"]) - rejected.sum(rejected.refs["ref"])


def quantile_coupling(u: Tensor, a: Tensor, v: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sorted coupling of two weighted samples: indices into ``u`` and ``v`` and shares of mass.

    ``u`` [M] with weights ``a`` >= 0, ``v`` [N] with weights ``b`` >= 0; returns ``i``, ``j`` and
    ``share`` of one length, shares summing to 1: on each interval of the common grid of quantiles,
    u's quantile function is ``u[i]`` and v's is ``v[j]``. For every convex cost of ``u - v`` this
    is the cheapest coupling. Ties keep their order.
    """
    order_u, order_v = torch.argsort(u, stable=True), torch.argsort(v, stable=True)
    order_u, order_v = order_u[a[order_u] > 0], order_v[b[order_v] > 0]
    if len(order_u) == 0 or len(order_v) == 0:
        none = torch.zeros(0, dtype=torch.long, device=u.device)
        return none, none, torch.zeros(0, dtype=u.dtype, device=u.device)
    if len(order_u) == len(order_v) and bool((_steps(a[order_u]) == _steps(b[order_v])).all()):
        return (
            order_u,
            order_v,
            _steps(a[order_u]).diff(prepend=a.new_zeros(1).double()).to(u.dtype),
        )
    ends_u, ends_v = _steps(a[order_u]), _steps(b[order_v])
    ends = torch.unique(torch.cat([ends_u, ends_v]))
    share = ends.diff(prepend=ends.new_zeros(1))
    middle = ends - share / 2
    i = torch.searchsorted(ends_u, middle).clamp(max=len(order_u) - 1)
    j = torch.searchsorted(ends_v, middle).clamp(max=len(order_v) - 1)
    return order_u[i], order_v[j], share.to(u.dtype)


def _steps(weight: Tensor) -> Tensor:
    """Right ends of the quantile intervals of sorted weights; the last is exactly 1."""
    ends = weight.double().cumsum(0)
    return ends / ends[-1]
