"""Rewards that treat the tokens of an answer unequally: some are left out, some count more.

Axes: U pairs, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

import torch
from torch import Tensor

from polyalign.types import Needs, Scores, needs


@dataclass(frozen=True)
class SampledLogRatio:
    """The log-ratio summed over as many steps as the shorter answer of the pair has.

    The steps are drawn uniformly without replacement (those with the smallest random numbers);
    an answer that is not longer keeps all. ``keep_last``: the last step (the end of the answer) is
    never left out. ``shared``: policy and reference are summed over the same steps; otherwise each
    draws its own. Source: Lu et al. 2024, arXiv 2406.10957.
    """

    keep_last: bool = False
    shared: bool = True
    reference: str = "ref"

    @property
    def needs(self) -> Needs:
        draws = ["subset"] if self.shared else ["subset", "subset/reference"]
        return needs(references=[self.reference], draws=draws)

    def __call__(self, own: Scores, other: Scores) -> Tensor:
        kept = self._subset(own, other, "subset")
        if self.shared:
            return own.sum(torch.where(kept, own.log_ratio(self.reference), 0.0))
        apart = self._subset(own, other, "subset/reference")
        reference = own.sum(torch.where(apart, own.refs[self.reference], 0.0))
        return own.sum(torch.where(kept, own.logp, 0.0)) - reference

    def _subset(self, own: Scores, other: Scores, draws: str) -> Tensor:
        """Which steps are kept [U, T]."""
        total = own.mask.sum(-1, keepdim=True)
        count = torch.minimum(total, other.mask.sum(-1, keepdim=True))
        place = torch.where(own.mask, own.draws[draws], 2.0)
        if self.keep_last:
            last = own.mask & (own.mask.cumsum(-1) == total)
            place = torch.where(last, -1.0, place)
        rank = place.argsort(dim=-1, stable=True).argsort(dim=-1)
        return own.mask & (rank < count)


@dataclass(frozen=True)
class AveragedLogRatio:
    """The mean log-ratio of a step times the mean length of the pair's two answers.

    What :class:`SampledLogRatio` is on average, at another length. Source: arXiv 2406.10957.
    """

    reference: str = "ref"

    @property
    def needs(self) -> Needs:
        return needs(references=[self.reference])

    def __call__(self, own: Scores, other: Scores) -> Tensor:
        return own.mean(own.log_ratio(self.reference)) * (own.lengths + other.lengths) / 2


@dataclass(frozen=True)
class DifferenceWeightedLogRatio:
    """The log-ratio summed with more weight on steps in which the pair's two answers differ.

    ``lambda_t = 1 + m_t min(1 / pi(y_t), most)``, constant for the gradient; ``m_t`` is 1 on tokens
    that are inserted, replaced or deleted between the answers, and 0 on shared ones and, with
    ``skip_stop_words``, on function words. ``apart``: the reference's log-probabilities are
    weighted by the reference's own probabilities instead of the policy's.
    Source: Jiang et al. 2024, arXiv 2408.07471.
    """

    most: float
    skip_stop_words: bool = True
    apart: bool = False
    reference: str = "ref"

    @property
    def needs(self) -> Needs:
        signals = ["steps", "stop_word"] if self.skip_stop_words else ["steps"]
        return needs(references=[self.reference], signals=signals)

    def __call__(self, own: Scores, other: Scores) -> Tensor:
        differs = differing(own, other).to(own.logp.dtype)
        if self.skip_stop_words:
            differs = differs * (1.0 - own.signals["stop_word"].to(own.logp.dtype))
        reference = own.refs[self.reference]
        weight = self._weight(own.logp, differs)
        other_weight = self._weight(reference, differs) if self.apart else weight
        return own.sum(weight * own.logp - other_weight * reference)

    def _weight(self, logp: Tensor, differs: Tensor) -> Tensor:
        return 1.0 + differs * torch.exp(-logp.detach()).clamp(max=self.most)


def differing(own: Scores, other: Scores) -> Tensor:
    """Which of the own steps the other answer has not, by the longest common blocks; [U, T] bool.

    The two answers' roles are interchangeable: what one inserts, the other deletes.
    """
    steps, theirs = own.signals["steps"], other.signals["steps"]
    out = torch.zeros_like(own.mask)
    for u in range(len(own.mask)):
        mine = tuple(steps[u][own.mask[u]].tolist())
        out[u, own.mask[u]] = torch.tensor(
            _differing(mine, tuple(theirs[u][other.mask[u]].tolist())), device=out.device
        )
    return out


@lru_cache(maxsize=8192)
def _differing(mine: tuple[float, ...], theirs: tuple[float, ...]) -> tuple[bool, ...]:
    # Ties between blocks are broken by order, so the order must not depend on who asks.
    first, second = sorted((mine, theirs))
    blocks = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    shared = [False] * len(mine)
    for a, b, size in blocks:
        start = a if mine == first else b
        shared[start : start + size] = [True] * size
    return tuple(not known for known in shared)
