"""The pointwise family: one answer, good or bad, against a zero point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.pairwise import pair_metrics
from polyalign.types import Loss, Needs, Scores, State, Term, needs


@dataclass(frozen=True)
class Prospect:
    """Kahneman-Tversky value of an answer around the policy's own divergence.

    ``h = log pi(y|x) - log ref(y|x)``; ``z0 = max(0, mean h(mismatched))`` over the whole optimizer
    step, without gradient. Desirable: ``lam_D (1 - sigmoid(beta (h - z0)))``; undesirable:
    ``lam_U (1 - sigmoid(beta (z0 - h)))``; the mean is over both classes together. beta acts only
    inside the sigmoid. ``zero_point`` "none" sets z0 = 0, the reference's own likelihood. Source:
    Ethayarajh et al. 2024, arXiv 2402.01306, equation 8.

    Metrics: ``rewards/chosen`` and ``rewards/rejected`` are means of ``beta h`` over desirable and
    undesirable examples; ``rewards/accuracies`` counts examples strictly on their side of z0.
    """

    beta: float = 0.1
    lam_D: float = 1.0
    lam_U: float = 1.0
    zero_point: Literal["kl", "none"] = "kl"

    @property
    def needs(self) -> Needs:
        own = needs("own", references=["ref"], fields=["label"])
        if self.zero_point == "none":
            return own
        return own | needs(statistics=["mismatched"], couples="statistics")

    def start(self) -> Mapping[str, Tensor]:
        return {"z0": torch.zeros(())}

    def before(self, scores: Scores, state: State) -> Mapping[str, Tensor]:
        if self.zero_point == "none":
            return state
        other = scores["mismatched"]
        weight = other.weight.to(other.logp.dtype)
        h = other.sum(other.log_ratio())
        total = weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
        return {"z0": ((h * weight).sum() / total).clamp(min=0.0).detach()}

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = scores["own"]
        good = _good(own)
        z0 = state["z0"].to(own.logp)
        sign = 2.0 * good - 1.0
        lam = self.lam_D * good + self.lam_U * (1.0 - good)
        h = own.sum(own.log_ratio())
        z = self.beta * sign * (h - z0)
        # 1 - sigmoid(z) loses its digits for large z; sigmoid(-z) does not.
        value = lam * torch.sigmoid(-z)
        metrics = thumb_metrics(scores, own, self.beta * h, z)
        if self.zero_point == "kl":
            metrics["kl"] = scores.per_unit(z0.expand_as(value))
        return Loss((scores.per_unit(value),), metrics)


@dataclass(frozen=True)
class ShiftedBinary:
    """Binary cross-entropy of an answer's implicit reward around the rewards' running mean.

    ``rho = beta h``, ``h = log pi(y|x) - log ref(y|x)``. Desirable: ``-log sigmoid(rho - delta)``;
    undesirable: ``-w log sigmoid(delta - rho)``; the mean is over both classes together. ``delta``
    is constant for the gradient, a mean over all examples of all steps so far, this one included:
    with ``shift`` "classes" half the mean over desirable ones and half that over undesirable ones,
    with "pooled" the mean over all alike. With ``matching`` the field ``p_desirable`` says how
    probably a prompt is one of the desirable examples', and
    ``w = clip(p / (1 - p + 1e-8), w_min, w_max)``; else w = 1. Source: Jung et al. 2024,
    arXiv 2404.04656.

    Metrics as for the other thumbs, with ``shift`` for delta; ``rewards/accuracies`` counts
    examples strictly on their side of it.
    """

    beta: float = 0.01
    shift: Literal["classes", "pooled"] = "classes"
    matching: bool = False
    w_min: float = 0.5
    w_max: float = 10.0

    @property
    def needs(self) -> Needs:
        own = needs("own", references=["ref"], fields=["label"], couples="statistics")
        if not self.matching:
            return own
        return own | needs(fields=["p_desirable"], bounds=[("p_desirable", 0.0, 1.0)])

    def start(self) -> Mapping[str, Tensor]:
        """Sums of h and of weights, over undesirable and desirable examples."""
        zeros = torch.zeros(2, dtype=torch.float64)
        return {"sum": zeros, "count": zeros}

    def before(self, scores: Scores, state: State) -> Mapping[str, Tensor]:
        own = scores["own"]
        good = _good(own)
        weight = torch.stack([1.0 - good, good]) * own.weight.to(own.logp.dtype)
        h = own.sum(own.log_ratio())
        # Kept as sums of h: beta may move along a schedule.
        return {
            "sum": state["sum"] + (weight * h).sum(-1).detach().double().cpu(),
            "count": state["count"] + weight.sum(-1).double().cpu(),
        }

    def delta(self, state: State) -> Tensor:
        """The shift, in units of the reward; 0 before any example."""
        total, count = state["sum"], state["count"]
        if self.shift == "pooled":
            return self.beta * total.sum() / count.sum().clamp(min=torch.finfo(count.dtype).tiny)
        there = count > 0
        mean = torch.where(there, total / torch.where(there, count, 1.0), 0.0)
        return self.beta * mean.sum() / there.sum().clamp(min=1)

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = scores["own"]
        good = _good(own)
        delta = self.delta(state).to(own.logp)
        rho = self.beta * own.sum(own.log_ratio())
        z = (2.0 * good - 1.0) * (rho - delta)
        value = F.softplus(-z)
        metrics = thumb_metrics(scores, own, rho, z)
        metrics["shift"] = scores.per_unit(delta.expand_as(value))
        if self.matching:
            p = own.fields["p_desirable"].to(own.logp.dtype)
            ratio = (p / (1.0 - p + 1e-8)).clamp(self.w_min, self.w_max)
            value = value * torch.where(good > 0, 1.0, ratio)
            metrics["matching"] = scores.per_unit(ratio, weight=1.0 - good)
        return Loss((scores.per_unit(value),), metrics)


@dataclass(frozen=True)
class ShiftedPair:
    """The same loss of a pair: ``-log sigmoid(rho_w - delta) - log sigmoid(delta - rho_l)``.

    ``delta`` is the mean implicit reward of all answers of all steps so far, this one included,
    constant for the gradient. Whatever it is, the loss bounds DPO's from above. Source: Jung et al.
    2024, arXiv 2404.04656.
    """

    beta: float = 0.01

    @property
    def needs(self) -> Needs:
        return needs("chosen", "rejected", references=["ref"], couples="statistics")

    def start(self) -> Mapping[str, Tensor]:
        """Sums of h and of weights over both answers."""
        zero = torch.zeros((), dtype=torch.float64)
        return {"sum": zero, "count": zero}

    def before(self, scores: Scores, state: State) -> Mapping[str, Tensor]:
        total, count = state["sum"], state["count"]
        for side in (scores["chosen"], scores["rejected"]):
            weight = side.weight.to(side.logp.dtype)
            h = side.sum(side.log_ratio())
            total = total + (weight * h).sum().detach().double().cpu()
            count = count + weight.sum().double().cpu()
        return {"sum": total, "count": count}

    def __call__(self, scores: Scores, state: State) -> Loss:
        chosen, rejected = scores["chosen"], scores["rejected"]
        tiny = torch.finfo(state["count"].dtype).tiny
        delta = (self.beta * state["sum"] / state["count"].clamp(min=tiny)).to(chosen.logp)
        rho_w = self.beta * chosen.sum(chosen.log_ratio())
        rho_l = self.beta * rejected.sum(rejected.log_ratio())
        value = F.softplus(delta - rho_w) + F.softplus(rho_l - delta)
        metrics = pair_metrics(scores, rho_w.detach(), rho_l.detach())
        metrics["shift"] = scores.per_unit(delta.expand_as(value))
        return Loss((scores.per_unit(value),), metrics)


def _good(own: Scores) -> Tensor:
    """1 for a desirable answer, 0 for an undesirable one, [U]."""
    return (own.fields["label"] > 0.5).to(own.logp.dtype)


def thumb_metrics(scores: Scores, own: Scores, reward: Tensor, z: Tensor) -> dict[str, Term]:
    """TRL's metrics of thumbs: rewards [U] by class, and whether z [U] is on its side."""
    good, reward, logp = _good(own), reward.detach(), own.sum().detach()
    return {
        "rewards/chosen": scores.per_unit(reward, weight=good),
        "rewards/rejected": scores.per_unit(reward, weight=1.0 - good),
        "rewards/accuracies": scores.per_unit((z.detach() > 0).to(reward.dtype)),
        "logps/chosen": scores.per_unit(logp, weight=good),
        "logps/rejected": scores.per_unit(logp, weight=1.0 - good),
    }
