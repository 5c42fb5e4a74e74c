"""Soft-Bellman path consistency: policy and value agree along every trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyalign.objectives.numbers import suffix_sums
from polyalign.types import Loss, Needs, Scores, State, needs

Level = Literal["token", "step", "response"]


@dataclass(frozen=True)
class Path:
    """A trajectory cut into decisions; all are [..., T], packed to the left, ``there`` [..., T].

    ``log_ratio``: of each decision, with gradient; ``later``: of all after it, constant;
    ``value``: of the state in which it begins; ``count`` [...]: decisions of the row, at least 1.
    """

    log_ratio: Tensor
    later: Tensor
    value: Tensor
    there: Tensor
    count: Tensor


def cut_path(own: Scores, level: Level) -> Path:
    """Cut rows into decisions: every step, every segment of steps, or the whole response."""
    mask = own.mask
    place = torch.arange(mask.shape[-1], device=mask.device).expand(mask.shape)
    if level == "token":
        segment = place
    elif level == "response" or own.segment is None:
        segment = torch.zeros_like(place)
    else:
        segment = own.segment
    # A decision begins where the segment differs from the one of the previous own step.
    last = torch.where(mask, place, -1).cummax(-1).values
    before = torch.cat([torch.full_like(last[..., :1], -1), last[..., :-1]], -1)
    changed = segment != segment.gather(-1, before.clamp(min=0))
    begins = mask & ((before < 0) | changed)
    slot = (begins.long().cumsum(-1) - 1).clamp(min=0)

    def pack(x: Tensor, where: Tensor) -> Tensor:
        return torch.zeros_like(x).scatter_add(-1, slot, torch.where(where, x, 0.0))

    log_ratio = pack(own.log_ratio(), mask)
    constant = log_ratio.detach()
    count = begins.sum(-1)
    return Path(
        log_ratio,
        suffix_sums(constant) - constant,
        pack(own.signals["value"].to(own.logp.dtype), begins),
        place < count.unsqueeze(-1),
        count.clamp(min=1).to(own.logp.dtype),
    )


def _reward(own: Scores) -> Tensor:
    return own.fields["reward"].to(own.logp.dtype).unsqueeze(-1)


@dataclass(frozen=True)
class OreoValue:
    """``(1/T) sum_t (V(s_t) - R + beta sg[sum_{i>=t} lr_i])^2``, lr = log pi - log ref.

    Rewards come at the end only. Trains the module ``value``; the policy is constant. Source: Wang
    et al. 2024, arXiv 2412.16145, equation 7.
    """

    beta: float = 0.03
    level: Level = "token"

    @property
    def needs(self) -> Needs:
        return needs("own", references=["ref"], signals=["value"], fields=["reward"])

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = scores["own"]
        path = cut_path(own, self.level)
        residual = path.value - _reward(own) + self.beta * (path.log_ratio.detach() + path.later)
        squares = torch.where(path.there, residual.square(), 0.0)
        value = squares.sum(-1) / path.count
        shown = torch.where(path.there, path.value, 0.0).sum(-1) / path.count
        return Loss(
            (own.per_row(value, name="value"),),
            {"loss/value": own.per_row(value.detach()), "value": own.per_row(shown.detach())},
        )


@dataclass(frozen=True)
class OreoPolicy:
    """``(1/T) sum_t (sg[V(s_t)] - R + beta lr_t + sg[beta sum_{i>t} lr_i])^2 + alpha KL(pi ||
    ref)``.

    Only the decision's own log-ratio has a gradient: ``dL/dlogp_t = (2 beta / T) residual_t``. At
    level "step" the decision is a segment, at "response" the whole answer. The KL is exact over
    the law at each token, a mean over the answer's tokens, at every level. Source: Wang et al.
    2024, arXiv 2412.16145, equations 8 to 10.
    """

    beta: float = 0.03
    alpha: float = 0.01
    level: Level = "token"

    @property
    def needs(self) -> Needs:
        signals = ["value"] + (["kl(policy|ref)"] if self.alpha > 0 else [])
        return needs("own", references=["ref"], signals=signals, fields=["reward"])

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = scores["own"]
        path = cut_path(own, self.level)
        residual = path.value.detach() - _reward(own) + self.beta * (path.log_ratio + path.later)
        squares = torch.where(path.there, residual.square(), 0.0)
        terms = [own.per_row(squares.sum(-1) / path.count, name="policy")]
        metrics = {
            "reward": own.per_row(own.fields["reward"].to(own.logp.dtype)),
            "logps/own": own.per_row(own.sum().detach()),
        }
        if self.alpha > 0:
            kl = own.mean(own.signals["kl(policy|ref)"])
            terms.append(own.per_row(kl, scale=self.alpha, name="kl"))
            metrics["kl"] = own.per_row(kl.detach())
        return Loss(tuple(terms), metrics)
