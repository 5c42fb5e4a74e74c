"""Rewards: what a pairwise objective compares, one number a unit.

A reward sees its own side and the other side of the pair, both over steps ``[U, T]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from polyalign.objectives.numbers import log_odds
from polyalign.types import Needs, Scores, needs


class Reward(Protocol):
    """A functional of one side's log-probabilities, against the other side's."""

    @property
    def needs(self) -> Needs: ...

    def __call__(self, own: Scores, other: Scores) -> Tensor: ...


@dataclass(frozen=True)
class SumLogp:
    """``log pi(y|x)``, summed over steps."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, own: Scores, other: Scores) -> Tensor:
        return own.sum()


@dataclass(frozen=True)
class MeanLogp:
    """``log pi(y|x) / |y|``: the log-probability of an average step."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, own: Scores, other: Scores) -> Tensor:
        return own.mean()


@dataclass(frozen=True)
class SumLogRatio:
    """``log pi(y|x) - log ref(y|x)``, summed over steps: DPO's implicit reward over beta."""

    reference: str = "ref"

    @property
    def needs(self) -> Needs:
        return needs(references=[self.reference])

    def __call__(self, own: Scores, other: Scores) -> Tensor:
        return own.sum(own.log_ratio(self.reference))


@dataclass(frozen=True)
class UnevenLogRatio:
    """``alpha log pi(y|x) - log ref(y|x)``, summed: policy and reference count unequally.

    Source: Omura et al. 2024, arXiv 2411.07595.
    """

    alpha: float
    reference: str = "ref"

    @property
    def needs(self) -> Needs:
        return needs(references=[self.reference])

    def __call__(self, own: Scores, other: Scores) -> Tensor:
        return own.sum(self.alpha * own.logp - own.refs[self.reference])


@dataclass(frozen=True)
class MeanLogRatio:
    """``(log pi(y|x) - log ref(y|x)) / |y|``: the log-ratio of an average step."""

    reference: str = "ref"

    @property
    def needs(self) -> Needs:
        return needs(references=[self.reference])

    def __call__(self, own: Scores, other: Scores) -> Tensor:
        return own.mean(own.log_ratio(self.reference))


@dataclass(frozen=True)
class DiscountedLogRatio:
    """The summed log-ratio, with what lies beyond the shorter answer's length times ``beyond``.

    ``sum_{t <= n} h_t + beyond * sum_{t > n} h_t``, ``n = min(|y|, |y'|)`` steps of the pair: only
    the longer answer has a part beyond. Source: Liu et al. 2024, arXiv 2409.06411.
    """

    beyond: float
    reference: str = "ref"

    @property
    def needs(self) -> Needs:
        return needs(references=[self.reference])

    def __call__(self, own: Scores, other: Scores) -> Tensor:
        shared = torch.minimum(own.lengths, other.lengths).unsqueeze(-1)
        ratio = own.log_ratio(self.reference)
        past = own.mask.cumsum(-1) > shared
        return own.sum(torch.where(past, self.beyond * ratio, ratio))


@dataclass(frozen=True)
class LogOdds:
    """``log(p / (1 - p))`` of the geometric mean probability ``p = pi(y|x)^(1/|y|)`` of a step."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, own: Scores, other: Scores) -> Tensor:
        return log_odds(own.mean())


def sequential_kl(own: Scores) -> Tensor:
    """``D(y)``: KL(ref || policy) of the whole law, summed over the own steps, nats."""
    return own.sum(own.signals["kl(ref|policy)"])


@dataclass(frozen=True)
class SumLogRatioPlusKl:
    """``log pi(y|x) - log ref(y|x) + D(y)``: TDPO's implicit reward over beta."""

    @property
    def needs(self) -> Needs:
        return needs(references=["ref"], signals=["kl(ref|policy)"])

    def __call__(self, own: Scores, other: Scores) -> Tensor:
        return own.sum(own.log_ratio()) + sequential_kl(own)
