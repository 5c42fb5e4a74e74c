"""Likelihoods that know when to stop: imitation as a bounded function of the implicit reward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.numbers import bounded_exp
from polyalign.types import Loss, Needs, Scores, State, needs

Divergence = Literal["pearson", "tv", "hellinger", "reverse-kl", "js"]

LEAST = {"hellinger": -1.0, "js": -math.log(2.0)}
"""Where the rewards' domain ends, for the divergences that have such an end."""

EDGE = 0.9
"""Beyond this share of the way to the domain's end, the loss goes on along its tangent."""


@dataclass(frozen=True)
class DivergenceLikelihood:
    """``L = -mean phi(t)``, ``t = b (log pi(y|x) - log ref(y|x))``, over demonstrations.

    ``phi(t) = -f*(-t)`` with the convex conjugate of the f-divergence between demonstrations and
    policy: pearson ``t - t^2/4``, tv ``t``, hellinger ``t/(1+t)``, reverse-kl ``-exp(-(t+1))``,
    js ``log(2 - exp(-t))``. tv is plain maximum likelihood: there the reference is a constant and
    is not asked for. ``saturate``: pearson stays at 1 beyond t = 2, as the exact conjugate does,
    where the parabola turns back. Outside hellinger's (t > -1) and js's (t > -log 2) domain the
    loss goes on along its tangent. Source: Wang et al. 2025, arXiv 2507.00018.

    Metrics: ``rewards/target`` is the mean t, ``weights`` the mean of ``d phi/dt``, and
    ``outside`` the share of demonstrations beyond the domain's edge.
    """

    f: Divergence = "pearson"
    b: float = 0.1
    saturate: bool = False
    role: str = "target"

    @property
    def needs(self) -> Needs:
        return needs(self.role, references=[] if self.f == "tv" else ["ref"])

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = scores[self.role]
        t = self.b * own.sum(own.logp if self.f == "tv" else own.log_ratio())
        least = LEAST.get(self.f)
        inside = t if least is None else t.clamp(min=EDGE * least)
        slope = self.slope(inside.detach())
        value = self.phi(inside) + slope * (t - inside)
        metrics = {
            "rewards/target": own.per_row(t.detach()),
            "weights": own.per_row(slope),
            f"logps/{self.role}": own.per_row(own.sum().detach()),
        }
        if least is not None:
            metrics["outside"] = own.per_row((t.detach() < EDGE * least).to(t.dtype))
        return Loss((own.per_row(-value),), metrics)

    def phi(self, t: Tensor) -> Tensor:
        """The function of the implicit reward that is maximised."""
        match self.f:
            case "pearson":
                # With s = 2 - t the parabola is 1 - s^2/4, and saturation is s cut at 0.
                s = 2.0 - t
                return 1.0 - (F.relu(s) if self.saturate else s).square() / 4.0
            case "tv":
                return t
            case "hellinger":
                return t / (1.0 + t)
            case "reverse-kl":
                return -bounded_exp(-(t + 1.0))
            case "js":
                return torch.log(2.0 - torch.exp(-t))

    def slope(self, t: Tensor) -> Tensor:
        """``d phi / dt``: what a demonstration's gradient is weighted by, over b."""
        match self.f:
            case "pearson":
                s = 2.0 - t
                return (F.relu(s) if self.saturate else s) / 2.0
            case "tv":
                return torch.ones_like(t)
            case "hellinger":
                return 1.0 / (1.0 + t).square()
            case "reverse-kl":
                return bounded_exp(-(t + 1.0))
            case "js":
                return 1.0 / (2.0 * torch.exp(t) - 1.0)
