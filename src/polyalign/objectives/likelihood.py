"""Negative log-likelihood: an objective by itself (SFT) and the anchor of many others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyalign.types import Loss, Needs, Scores, State, Term, needs

Reduction = Literal["token", "sequence", "sum"]


@dataclass(frozen=True)
class Nll:
    """``weight`` times the negative log-likelihood of a role.

    ``by`` "token": a mean over all steps of the optimizer step; "sequence": a mean over units of
    each one's mean over steps; "sum": a mean over units of sums.
    """

    weight: float = 1.0
    role: str = "chosen"
    by: Reduction = "token"

    @property
    def needs(self) -> Needs:
        return needs(self.role)

    def __call__(self, scores: Scores, name: str = "nll") -> Term:
        own = scores[self.role]
        match self.by:
            case "token":
                return own.per_step(-own.logp, scale=self.weight, name=name)
            case "sequence":
                return own.per_row(-own.mean(), scale=self.weight, name=name)
            case "sum":
                return own.per_row(-own.sum(), scale=self.weight, name=name)


def imitation(weight: float, role: str = "chosen", by: Reduction = "token") -> tuple[Nll, ...]:
    """A role's likelihood as the anchors of a loss; none at weight 0, so that nothing is scored."""
    return (Nll(weight, role, by),) if weight > 0 else ()


@dataclass(frozen=True)
class Likelihood:
    """``L = -log pi(target)``, reduced by token, sequence or sum.

    token: ``-sum_{i,t} l_it / sum_i n_i``; sequence: ``-mean_i (sum_t l_it / n_i)``;
    sum: ``-mean_i sum_t l_it``. The optimum is the data's own distribution.
    """

    reduction: Reduction = "token"
    role: str = "target"

    @property
    def needs(self) -> Needs:
        return needs(self.role)

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = scores[self.role]
        return Loss(
            (Nll(1.0, self.role, self.reduction)(scores, name="loss"),),
            {
                "nll": own.per_step(-own.logp.detach()),
                f"logps/{self.role}": own.per_row(own.sum().detach()),
            },
        )
