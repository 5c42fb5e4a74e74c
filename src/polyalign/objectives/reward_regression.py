"""Regression of single judged answers: reward, value and log-ratio must agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyalign.types import Loss, Needs, Scores, State, needs

Values = Literal["token", "prompt"]


def _squares(own: Scores, value: Tensor, log_ratio: Tensor, tau: float, values: Values) -> Tensor:
    """``1/2 e^2`` of each row, a mean over the places of its values; ``log_ratio`` is summed.

    ``e_t = r - V_t - tau log(pi(y|x) / ref(y|x))`` at every own step t, or at the first alone,
    where the state is the prompt.
    """
    there = own.mask
    if values == "prompt":
        there = there & (there.long().cumsum(-1) == 1)
    reward = own.fields["reward"].to(own.logp.dtype)
    residual = (reward - tau * log_ratio).unsqueeze(-1) - torch.where(there, value, 0.0)
    squares = torch.where(there, residual.square(), 0.0).sum(-1)
    return 0.5 * squares / there.sum(-1).clamp(min=1).to(squares.dtype)


@dataclass(frozen=True)
class DroValue:
    """``1/2 (r - V(x) - tau sg[log pi(y|x) - log ref(y|x)])^2``; trains the module ``value``.

    With ``values`` "token" there is a value at each step of the answer and a residual at each, and
    their squares are averaged; with "prompt" only the prompt has one. Source: Richemond et al.
    2024, arXiv 2405.19107.
    """

    tau: float = 1.0
    values: Values = "token"

    @property
    def needs(self) -> Needs:
        return needs("own", references=["ref"], signals=["value"], fields=["reward"])

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = scores["own"]
        signal = own.signals["value"].to(own.logp.dtype)
        log_ratio = own.sum(own.log_ratio()).detach()
        value = _squares(own, signal, log_ratio, self.tau, self.values)
        return Loss(
            (own.per_row(value, name="value"),),
            {
                "loss/value": own.per_row(value.detach()),
                "value": own.per_row(own.mean(signal).detach()),
            },
        )


@dataclass(frozen=True)
class DroPolicy:
    """``1/(2 tau) (r - sg[V(x)] - tau (log pi(y|x) - log ref(y|x)))^2``; trains the policy.

    The division by tau makes the gradient that of ``-(r - V) log pi + tau/2 (log-ratio)^2``.
    ``values`` as for the value's own loss. Source: Richemond et al. 2024, arXiv 2405.19107,
    equation 8.
    """

    tau: float = 1.0
    values: Values = "token"

    @property
    def needs(self) -> Needs:
        return needs("own", references=["ref"], signals=["value"], fields=["reward"])

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = scores["own"]
        log_ratio = own.sum(own.log_ratio())
        signal = own.signals["value"].detach().to(own.logp.dtype)
        value = _squares(own, signal, log_ratio, self.tau, self.values) / self.tau
        return Loss(
            (own.per_row(value, name="policy"),),
            {
                "reward": own.per_row(own.fields["reward"].to(own.logp.dtype)),
                "rewards/implicit": own.per_row(self.tau * log_ratio.detach()),
                "logps/own": own.per_row(own.sum().detach()),
            },
        )
