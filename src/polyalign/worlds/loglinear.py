"""The log-linear world: responses fit instructions through r(x, y) = phi(x)' W psi(y).

Axes: X instructions, Y responses, D instruction features, E response features. Both sorts of
feature are centred, so that r has neither a part of x alone nor of y alone: what is left is
exactly the interaction that input-output preferences (iopo) see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polyalign.feedback.records import Quadruple
from polyalign.worlds.discrete import Discrete, bradley_terry


def interaction(table: Tensor) -> Tensor:
    """A table [X, Y] less its row and column means: what double differences can see."""
    table = table - table.mean(0, keepdim=True)
    return table - table.mean(1, keepdim=True)


@dataclass(frozen=True)
class LogLinear(Discrete):
    """X instructions and Y responses with features ``phi`` [X, D] and ``psi`` [Y, E]."""

    phi: Tensor
    psi: Tensor
    gold: Tensor

    @staticmethod
    def make(
        instructions: int = 8,
        responses: int = 20,
        *,
        features: tuple[int, int] = (4, 5),
        seed: int = 0,
        spread: float = 1.0,
        noise: float = 0.0,
    ) -> LogLinear:
        """Random centred features, gold W ~ N(0, spread^2 / sqrt(D E)), a uniform reference."""
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        phi = normal(instructions, features[0])
        psi = normal(responses, features[1])
        phi, psi = phi - phi.mean(0), psi - psi.mean(0)
        gold = spread * normal(*features) / (features[0] * features[1]) ** 0.25
        reward = phi @ gold @ psi.T
        start = torch.zeros_like(reward).log_softmax(-1)
        return LogLinear(
            start,
            reward,
            bradley_terry(reward),
            start.exp(),
            tuple(range(responses)),
            noise,
            phi,
            psi,
            gold,
        )

    def quadruples(
        self,
        n: int | None = None,
        seed: int = 0,
        *,
        responses: Tensor | None = None,
    ) -> list[Quadruple]:
        """Two instructions, two responses, matched with probability sig of the double difference.

        z = r(x1,y1) + r(x2,y2) - r(x1,y2) - r(x2,y1). The population (n None) has both matchings
        of every couple of instructions and couple of ``responses`` (indices, default all), weights
        summing to 1; otherwise ``n`` are drawn.
        """
        r = self.reward
        allowed = torch.arange(r.shape[1]) if responses is None else responses

        def gap(x1: Tensor, x2: Tensor, y1: Tensor, y2: Tensor) -> Tensor:
            z = r[x1, y1] + r[x2, y2] - r[x1, y2] - r[x2, y1]
            p = torch.sigmoid(z)
            return (1 - self.noise) * p + self.noise * (1 - p)

        if n is None:
            xs = torch.combinations(torch.arange(self.prompts))
            ys = torch.combinations(allowed)
            x1, x2 = xs.repeat_interleave(len(ys), 0).T
            y1, y2 = ys.repeat(len(xs), 1).T
            right = gap(x1, x2, y1, y2)
            both = [
                (x1, x2, y1, y2, right / len(right)),
                (x1, x2, y2, y1, (1 - right) / len(right)),
            ]
        else:
            draw = torch.Generator().manual_seed(seed)
            x1, x2 = _two(self.prompts, n, draw)
            i, j = _two(len(allowed), n, draw)
            y1, y2 = allowed[i], allowed[j]
            right = torch.rand(n, generator=draw, dtype=torch.float64) < gap(x1, x2, y1, y2)
            first, second = torch.where(right, y1, y2), torch.where(right, y2, y1)
            both = [(x1, x2, first, second, torch.ones(n, dtype=torch.float64))]
        return [
            Quadruple(
                key=f"{side}.{k}:{a},{b}/{c},{d}",
                prompts=(a, b),
                completions=(c, d),
                weight=w,
            )
            for side, columns in enumerate(both)
            for k, (a, b, c, d, w) in enumerate(zip(*(t.tolist() for t in columns), strict=True))
        ]

    def log_ratio_interaction(self, law: Tensor) -> Tensor:
        """What quadruples identify of a policy's log-law: the interaction of log pi/ref, [X, Y]."""
        return interaction(law - self.start)

    def iopo(self, beta: float) -> Tensor:
        """The population optimum's interaction of log pi/ref: that of r/beta, [X, Y]."""
        return interaction(self.reward / beta)

    def accuracies(self, law: Tensor, responses: Tensor) -> tuple[float, float]:
        """Response and instruction preference accuracy over couples of ``responses``.

        The shares of (x, y, y') in which log pi/ref ranks y, y' for x as the gold reward does, and
        of (y, x, x') in which it ranks the instructions for a response so.
        """
        gold, fitted = self.reward[:, responses], (law - self.start)[:, responses]
        return _agreement(gold, fitted), _agreement(gold.T, fitted.T)


def _agreement(gold: Tensor, fitted: Tensor) -> float:
    """Share of couples in a row that both tables [R, C] order alike."""
    first, second = torch.combinations(torch.arange(gold.shape[1])).T
    a = gold[:, first] - gold[:, second]
    b = fitted[:, first] - fitted[:, second]
    return float((a.sign() == b.sign()).double().mean())


def _two(size: int, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two different numbers below ``size``, ``n`` times."""
    first = torch.randint(size, (n,), generator=draw)
    second = torch.randint(size - 1, (n,), generator=draw)
    return first, second + (second >= first)
