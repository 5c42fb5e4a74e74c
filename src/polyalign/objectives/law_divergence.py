"""Divergences of the policy's whole law from the reference's, as an explicit penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyalign.types import Loss, Needs, Objective, Scores, State, Term, needs

Name = Literal["kl", "forward-kl", "js", "hellinger", "renyi", "bhattacharyya", "wasserstein"]


@dataclass(frozen=True)
class LawDivergence:
    """``D(pi, ref)`` of the laws at each step, averaged over the steps of the given roles; [U].

    With p = pi and q = ref: kl ``sum p log(p/q)``; forward-kl ``sum q log(q/p)``; js
    ``KL(p||m)/2 + KL(q||m)/2``, m = (p+q)/2; hellinger ``sum (sqrt p - sqrt q)^2 / 2``; renyi
    ``log(sum p^a q^(1-a)) / (a - 1)`` of order a; bhattacharyya ``-log sum sqrt(p q)``;
    wasserstein ``sum |p - q| / 2``, the cost of transport at which any two choices are 1 apart.
    """

    name: Name = "kl"
    order: float = 0.9
    roles: tuple[str, ...] = ("chosen", "rejected")

    @property
    def needs(self) -> Needs:
        return needs(*self.roles, references=["ref"], signals=[self._signal])

    @property
    def _signal(self) -> str:
        match self.name:
            case "kl":
                return "kl(policy|ref)"
            case "forward-kl":
                return "kl(ref|policy)"
            case "wasserstein":
                return "tv(policy|ref)"
            case "js":
                return "js(policy|ref)"
            case "hellinger" | "bhattacharyya":
                return "log_overlap(policy|ref)@0.5"
            case "renyi":
                return f"log_overlap(policy|ref)@{self.order:g}"

    def __call__(self, scores: Scores) -> Tensor:
        sides = [scores[role] for role in self.roles]
        return torch.stack(
            [side.mean(self._of(side.signals[self._signal])) for side in sides]
        ).mean(0)

    def _of(self, signal: Tensor) -> Tensor:
        match self.name:
            case "hellinger":
                return -torch.expm1(signal)
            case "bhattacharyya":
                return -signal
            case "renyi":
                return signal / (self.order - 1.0)
            case _:
                return signal


@dataclass(frozen=True)
class Penalised:
    """An objective plus ``alpha`` times a divergence; its metric is ``divergence``."""

    objective: Objective
    divergence: LawDivergence
    alpha: float

    @property
    def needs(self) -> Needs:
        return self.objective.needs | self.divergence.needs

    def __call__(self, scores: Scores, state: State) -> Loss:
        base = self.objective(scores, state)
        value = self.divergence(scores)
        term: Term = scores.per_unit(value, scale=self.alpha, name="divergence")
        metrics = {**base.metrics, "divergence": scores.per_unit(value.detach())}
        return Loss((*base.terms, term), metrics)
