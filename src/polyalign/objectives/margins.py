"""Margins that a pairwise difference has to exceed, one number a unit (or one for all)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.rewards import sequential_kl
from polyalign.types import Needs, Scores, needs


class Margin(Protocol):
    """A target for the scaled difference of rewards, from both sides of a pair."""

    @property
    def needs(self) -> Needs: ...

    def __call__(self, chosen: Scores, rejected: Scores) -> Tensor | float: ...


@dataclass(frozen=True)
class Constant:
    """The same margin for every pair."""

    value: float = 0.0

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, chosen: Scores, rejected: Scores) -> float:
        return self.value


@dataclass(frozen=True)
class Field:
    """``scale`` times a number that each unit brings; as a margin or as a weight."""

    name: str
    scale: float = 1.0

    @property
    def needs(self) -> Needs:
        return needs(fields=[self.name])

    def __call__(self, chosen: Scores, rejected: Scores) -> Tensor:
        return self.scale * chosen.fields[self.name].to(chosen.logp.dtype)


@dataclass(frozen=True)
class LengthGap:
    """``scale * (|chosen| - |rejected|)`` in steps: above 0, longer answers have to win by more."""

    scale: float

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, chosen: Scores, rejected: Scores) -> Tensor:
        return self.scale * (chosen.lengths - rejected.lengths)


@dataclass(frozen=True)
class ChosenShortfall:
    """``scale * max(0, log ref(chosen) - log pi(chosen))``: what the chosen answer has lost.

    At the kink (policy = reference) it has no gradient.
    Source: Pal et al. 2024, arXiv 2402.13228, equation 3.
    """

    scale: float

    @property
    def needs(self) -> Needs:
        return needs(references=["ref"])

    def __call__(self, chosen: Scores, rejected: Scores) -> Tensor:
        return self.scale * F.relu(-chosen.sum(chosen.log_ratio()))


@dataclass(frozen=True)
class SoftReferenceGap:
    """``scale * log(1 + exp(K))``, K the reference's own gap of mean log-probabilities.

    About ``scale * K`` where the reference already prefers the chosen answer, about 0 where it does
    not. Source: Jang et al. 2024, arXiv 2409.17545.
    """

    scale: float

    @property
    def needs(self) -> Needs:
        return needs(references=["ref"])

    def __call__(self, chosen: Scores, rejected: Scores) -> Tensor:
        gap = chosen.mean(chosen.refs["ref"]) - rejected.mean(rejected.refs["ref"])
        return self.scale * F.softplus(gap)


@dataclass(frozen=True)
class SequentialKl:
    """``scale * (D(rejected) - D(chosen))`` with the sequential forward KL to the reference.

    ``D(y) = sum_t KL(ref(.|x, y_<t) || pi(.|x, y_<t))`` over the whole law at each step.
    ``push_chosen``: whether gradient raises ``D(chosen)`` (TDPO1) or not (TDPO2).
    Source: Zeng et al. 2024, arXiv 2404.11999, equations 13 to 17.
    """

    scale: float
    push_chosen: bool = False

    @property
    def needs(self) -> Needs:
        return needs(references=["ref"], signals=["kl(ref|policy)"])

    def __call__(self, chosen: Scores, rejected: Scores) -> Tensor:
        kl_chosen = sequential_kl(chosen)
        if not self.push_chosen:
            kl_chosen = kl_chosen.detach()
        return self.scale * (sequential_kl(rejected) - kl_chosen)
