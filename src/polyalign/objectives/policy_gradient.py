"""Clipped policy gradients with a credited advantage: the GRPO family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from polyalign.objectives.numbers import bounded_exp, k3
from polyalign.types import Loss, Needs, Scores, State, Term, needs

Aggregation = Literal["rows", "steps", "budget"]


@dataclass(frozen=True)
class PolicyGradient:
    """``l_t = -min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) + beta k3_t``, aggregated.

    ``rho = exp(logp - old)``: of each token; of the sequence (``exp`` of the mean over its steps,
    one number a row); or "sequence-token" (the sequence's value with each token's gradient).
    ``delta`` bounds rho in the unclipped branch. ``surrogate`` "cispo":
    ``-sg[min(rho, eps_max)] A logp``, from which no token is ever dropped. ``k3`` estimates
    KL(policy || ref); with ``kl_correction`` it is multiplied by the token's rho, so that value and
    gradient stay unbiased off the sampling policy.

    Aggregation over rows i of T_i steps: "rows" ``mean_i (1/T_i) sum_t`` (GRPO, GSPO); "steps"
    ``sum_{i,t} / sum_i T_i`` (DAPO); "budget" ``mean_i sum_t / budget`` (Dr. GRPO).
    ``drop_truncated`` masks rows whose field ``finished`` is 0 (DAPO's overlong filtering); they
    still count as rows.

    The field ``advantage`` is [U] or, by step, [U, T]. Sources: arXiv 2402.03300 (GRPO),
    2503.20783 (Dr. GRPO), 2503.14476 (DAPO), 2507.18071 (GSPO), 2506.13585 (CISPO),
    2505.07291 (delta).
    """

    beta: float = 0.04
    eps_low: float = 0.2
    eps_high: float = 0.2
    level: Literal["token", "sequence", "sequence-token"] = "token"
    aggregation: Aggregation = "rows"
    surrogate: Literal["clip", "cispo"] = "clip"
    budget: int = 256
    delta: float | None = None
    eps_max: float = 5.0
    kl_correction: bool = False
    drop_truncated: bool = False

    @property
    def needs(self) -> Needs:
        return needs(
            "own",
            references=["ref"] if self.beta > 0 else [],
            fields=["advantage"] + (["finished"] if self.drop_truncated else []),
            old=True,
        )

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = scores["own"]
        if self.drop_truncated:
            kept = own.fields["finished"] > 0
            own = replace(own, mask=own.mask & kept.unsqueeze(-1))
        advantage = _by_step(own.fields["advantage"], own.logp)
        assert own.old is not None
        difference = torch.where(own.mask, own.logp - own.old, 0.0)
        rho = self._ratio(own, difference)
        value = self._surrogate(own.logp, rho, advantage)
        metrics = self._clipped(own, rho.detach(), advantage)
        if self.beta > 0:
            kl = torch.where(own.mask, k3(torch.where(own.mask, -own.log_ratio(), 0.0)), 0.0)
            if self.kl_correction:
                kl = kl * bounded_exp(difference)
            value = value + self.beta * kl
            metrics["kl"] = own.per_step(kl.detach())
        return Loss((self._aggregate(own, value),), metrics)

    def _ratio(self, own: Scores, difference: Tensor) -> Tensor:
        """Importance ratios [U, T]."""
        if self.level == "token":
            return bounded_exp(difference)
        sequence = bounded_exp(own.mean(difference)).unsqueeze(-1).expand_as(difference)
        if self.level == "sequence":
            return sequence
        return sequence.detach() * torch.exp(difference - difference.detach())

    def _surrogate(self, logp: Tensor, rho: Tensor, advantage: Tensor) -> Tensor:
        if self.surrogate == "cispo":
            return -rho.detach().clamp(max=self.eps_max) * advantage * logp
        clipped = rho.clamp(1.0 - self.eps_low, 1.0 + self.eps_high)
        free = rho if self.delta is None else rho.clamp(max=self.delta)
        return -torch.minimum(free * advantage, clipped * advantage)

    def _aggregate(self, own: Scores, value: Tensor) -> Term:
        match self.aggregation:
            case "rows":
                return own.per_row(own.mean(value))
            case "steps":
                return own.per_step(value)
            case "budget":
                return own.per_row(own.sum(value) / self.budget)

    def _clipped(self, own: Scores, rho: Tensor, advantage: Tensor) -> dict[str, Term]:
        """Shares of steps whose gradient the surrogate cuts, by side."""
        if self.surrogate == "cispo":
            return {"clip_ratio/high": own.per_step((rho > self.eps_max).to(rho.dtype))}
        low = (rho < 1.0 - self.eps_low) & (advantage < 0)
        high = (rho > 1.0 + self.eps_high) & (advantage > 0)
        if self.delta is not None:
            high = high | ((rho > self.delta) & (advantage < 0))
        return {
            "clip_ratio/low": own.per_step(low.to(rho.dtype)),
            "clip_ratio/high": own.per_step(high.to(rho.dtype)),
            "clip_ratio/region": own.per_step((low | high).to(rho.dtype)),
        }


def _by_step(advantage: Tensor, logp: Tensor) -> Tensor:
    """Advantages over steps: one a row is spread, one a step is cut to the batch's width."""
    advantage = advantage.to(logp.dtype)
    if advantage.dim() < logp.dim():
        return advantage.unsqueeze(-1).expand_as(logp)
    return advantage[..., : logp.shape[-1]]
