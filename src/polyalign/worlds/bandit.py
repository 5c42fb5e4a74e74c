"""The bandit: one decision a prompt, a softmax over a few dozen responses, everything exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyalign.worlds.discrete import Discrete, bradley_terry


@dataclass(frozen=True)
class Bandit(Discrete):
    """X prompts, Y responses (payloads 0 … Y-1), one step each."""

    @staticmethod
    def make(
        prompts: int = 2,
        responses: int = 8,
        *,
        seed: int = 0,
        reference: Literal["random", "uniform"] = "random",
        preferences: Literal["bradley-terry", "intransitive", "deterministic"] = "bradley-terry",
        coverage: Literal["reference", "uniform"] = "reference",
        noise: float = 0.0,
        spread: float = 1.0,
    ) -> Bandit:
        """A bandit with gold rewards ~ N(0, spread^2).

        ``preferences``: "bradley-terry" from the rewards; "deterministic", the higher reward
        always wins; "intransitive", a random skew-symmetric part is added to the reward
        difference, so that no reward explains it.
        """
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        reward = spread * normal(prompts, responses)
        free = normal(prompts, responses)
        start = (free if reference == "random" else torch.zeros_like(free)).log_softmax(-1)
        match preferences:
            case "bradley-terry":
                prefer = bradley_terry(reward)
            case "deterministic":
                gap = reward.unsqueeze(-1) - reward.unsqueeze(-2)
                prefer = 0.5 * (1 + gap.sign())
            case "intransitive":
                skew = normal(prompts, responses, responses)
                gap = reward.unsqueeze(-1) - reward.unsqueeze(-2)
                prefer = torch.sigmoid(gap + spread * (skew - skew.mT))
        mu = start.exp() if coverage == "reference" else torch.full_like(start, 1 / responses)
        return Bandit(start, reward, prefer, mu, tuple(range(responses)), noise)


def soft_greedy(q: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The maximum-entropy optimum in one state: log softmax(q/alpha) [..., A] and its value.

    The value is alpha logsumexp(q/alpha) [...]: what soft actor-critic's actor converges to.
    """
    return (q / alpha).log_softmax(-1), alpha * (q / alpha).logsumexp(-1)
