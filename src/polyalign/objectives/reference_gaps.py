"""Margins that other policies set: what they say of a pair, and several margins together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polyalign.objectives.margins import Margin
from polyalign.types import Needs, Scores, needs


@dataclass(frozen=True)
class ReferenceGap:
    """``sum_k c_k (log pi_k(chosen) - log pi_k(rejected))`` over named references, sums over steps.

    With ``c = (beta, -beta)`` over a policy and what it was aligned from, that policy's implicit
    reward of the chosen answer minus the rejected one's.
    """

    coefficients: tuple[tuple[str, float], ...]

    @property
    def needs(self) -> Needs:
        return needs(references=[name for name, _ in self.coefficients])

    def __call__(self, chosen: Scores, rejected: Scores) -> Tensor:
        total = chosen.sum().detach() * 0.0
        for name, coefficient in self.coefficients:
            gap = chosen.sum(chosen.refs[name]) - rejected.sum(rejected.refs[name])
            total = total + coefficient * gap
        return total


@dataclass(frozen=True)
class Sum:
    """Several margins added."""

    parts: tuple[Margin, ...]

    @property
    def needs(self) -> Needs:
        total = Needs()
        for part in self.parts:
            total = total | part.needs
        return total

    def __call__(self, chosen: Scores, rejected: Scores) -> Tensor | float:
        total: Tensor | float = 0.0
        for part in self.parts:
            total = total + part(chosen, rejected)
        return total
