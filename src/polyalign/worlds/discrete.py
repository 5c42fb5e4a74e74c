"""What all enumerable worlds share: X prompts, Y completions, exact sums in place of samples.

Axes: X prompts (contexts 0 … X-1), Y completions, listed once in ``completions``.
Tables of laws are natural log-probabilities, float64. Feedback is given either as its whole
population, every possible record weighted by its probability, so that a method's objective has
no sampling noise, or as ``n`` records sampled with a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyalign.errors import OptionError
from polyalign.feedback.records import Binary, Demonstration, Pair, Prompt, Scored
from polyalign.protocols import Policy, Verdict
from polyalign.types import Rows


def tilt(log_law: Tensor, advantage: Tensor) -> Tensor:
    """The log of law * exp(advantage) / Z over the last axis, shape of ``log_law``.

    >>> tilt(torch.zeros(2).log_softmax(-1), torch.tensor([0.0, 1.0])).exp().sum().item()
    1.0
    """
    return (log_law + advantage).log_softmax(-1)


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Half the L1 distance of two laws over the last axis, in [0, 1]."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats over the last axis; completions without mass in p count nothing."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def bradley_terry(reward: Tensor) -> Tensor:
    """P(y preferred to y') = sig(r(y) - r(y')), [..., Y, Y] from rewards [..., Y]."""
    return torch.sigmoid(reward.unsqueeze(-1) - reward.unsqueeze(-2))


class Point(NamedTuple):
    """A policy's place in the reward-KL plane: expected gold reward, KL to the start in nats."""

    reward: float
    kl: float


@dataclass(frozen=True)
class Discrete:
    """X prompts with the same Y completions, a reference, gold rewards and preferences over them.

    ``start`` [X, Y] is the reference's log-law, ``reward`` [X, Y] gold, ``prefer`` [X, Y, Y] the
    clean probability that the first is preferred to the second, ``coverage`` [X, Y] the law mu of
    the completions that feedback is about. ``noise`` is the share of labels flipped.
    """

    start: Tensor
    reward: Tensor
    prefer: Tensor
    coverage: Tensor
    completions: tuple[Any, ...]
    noise: float

    def __post_init__(self) -> None:
        if not 0 <= self.noise < 0.5:
            raise OptionError(f"A world's label noise is {self.noise}.", "It must lie in [0, 0.5).")

    @property
    def prompts(self) -> int:
        """X, the number of prompts."""
        return int(self.start.shape[0])

    @property
    def observed(self) -> Tensor:
        """Probability that the first is *labelled* preferred, flips included, [X, Y, Y]."""
        return (1 - self.noise) * self.prefer + self.noise * (1 - self.prefer)

    @property
    def lengths(self) -> Tensor:
        """Number of steps of each completion, [Y]."""
        sizes = [len(y) if isinstance(y, tuple) else 1 for y in self.completions]
        return torch.tensor(sizes, dtype=torch.float64)

    # Exact measures of a policy.

    def law(self, policy: Policy) -> Tensor:
        """The policy's log-probability of every completion of every prompt, [X, Y], no gradient."""
        rows = [policy.encode(x, y) for x in range(self.prompts) for y in self.completions]
        with torch.no_grad():
            logp = policy.score(Rows.collate(rows)).logp
        return logp.double().sum(-1).reshape(self.prompts, -1)

    def point(self, policy: Policy | Tensor) -> Point:
        """Expected gold reward and KL(policy || start), averaged over prompts."""
        law = policy if isinstance(policy, Tensor) else self.law(policy)
        reward = (law.exp() * self.reward).sum(-1).mean()
        return Point(float(reward), float(kl_divergence(law, self.start).mean()))

    def distance(self, policy: Policy | Tensor, optimum: Tensor) -> float:
        """Largest total variation over prompts between the policy and a log-law [X, Y]."""
        law = policy if isinstance(policy, Tensor) else self.law(policy)
        return float(total_variation(law, optimum).max())

    # Closed forms.

    def regularised(self, beta: float) -> Tensor:
        """What maximises E[r] - beta KL(pi || start): log of start * exp(r/beta) / Z, [X, Y].

        Also the population optimum of DPO under Bradley-Terry labels (arXiv 2305.18290, eq. 4).
        """
        return tilt(self.start, self.reward / beta)

    def against_coverage(self) -> Tensor:
        """p(y > mu) = sum_y' mu(y') P(y labelled preferred to y'), [X, Y]."""
        return (self.observed * self.coverage.unsqueeze(-2)).sum(-1)

    def ipo(self, tau: float) -> Tensor:
        """IPO's population optimum start * exp(p(y > mu)/tau) / Z (arXiv 2310.12036, theorem 1)."""
        return tilt(self.start, self.against_coverage() / tau)

    def frontier(self, betas: Sequence[float]) -> list[Point]:
        """The best reward at each KL: the points of ``regularised(beta)``."""
        return [self.point(self.regularised(beta)) for beta in betas]

    # Feedback: the whole population (n None), or n sampled records.

    def asked(self) -> list[Prompt]:
        """Each prompt once; ``meta`` carries nothing, since a world's judge knows the prompt."""
        return [Prompt(key=f"{x}", prompt=x) for x in range(self.prompts)]

    def judge(
        self, prompts: Sequence[Any], completions: Sequence[Any], meta: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """Gold rewards [N] of completions, as a judge gives them."""
        index = {y: i for i, y in enumerate(self.completions)}
        asked = torch.tensor([int(x) for x in prompts])
        return Verdict(score=self.reward[asked, torch.tensor([index[y] for y in completions])])

    def pairs(self, n: int | None = None, seed: int = 0) -> list[Pair]:
        """Labelled pairs y, y' iid from mu, with gold scores; ``meta["flipped"]`` tells a flip.

        The population holds every ordered pair of different completions with weight
        2 mu(y) mu(y') P(y labelled preferred): weights sum to 1 minus the probability of y = y'.
        """
        if n is None:
            mu, labelled = self.coverage, self.observed
            weight = 2 * mu.unsqueeze(-1) * mu.unsqueeze(-2) * labelled / self.prompts
            return [
                self._pair(f"{x}:{w}>{l}", x, w, l, weight=float(weight[x, w, l]))
                for x in range(self.prompts)
                for w in range(len(self.completions))
                for l in range(len(self.completions))  # noqa: E741
                if w != l and weight[x, w, l] > 0
            ]
        draw = torch.Generator().manual_seed(seed)
        x = torch.randint(self.prompts, (n,), generator=draw)
        first = _categorical(self.coverage[x], draw)
        other = self.coverage[x].scatter(-1, first.unsqueeze(-1), 0.0)
        second = _categorical(other / other.sum(-1, keepdim=True), draw)
        wins = torch.rand(n, generator=draw, dtype=torch.float64) < self.prefer[x, first, second]
        flip = torch.rand(n, generator=draw, dtype=torch.float64) < self.noise
        swap = wins == flip
        chosen, rejected = torch.where(swap, second, first), torch.where(swap, first, second)
        return [
            self._pair(f"{i}", int(x[i]), int(chosen[i]), int(rejected[i]), flipped=bool(flip[i]))
            for i in range(n)
        ]

    def _pair(self, key: str, x: int, w: int, l: int, weight: float = 1.0, **meta: bool) -> Pair:  # noqa: E741
        c, r = self.completions, self.reward[x]
        scores = {"score_chosen": float(r[w]), "score_rejected": float(r[l])}
        return Pair(
            key=key, prompt=x, chosen=c[w], rejected=c[l], weight=weight, fields=scores, meta=meta
        )

    def index(self, completion: Any) -> int:
        """The number of a completion."""
        return self.completions.index(completion)

    def disjoint_pairs(self) -> list[Pair]:
        """Completions 2j preferred to 2j+1 with certainty, each in one pair (cdpo's check)."""
        return [
            self._pair(f"{x}:{w}>{w + 1}", x, w, w + 1)
            for x in range(self.prompts)
            for w in range(0, len(self.completions) - 1, 2)
        ]

    def lists(self, score: Tensor | None = None) -> list[Scored]:
        """Every completion of a prompt in one list, with gold rewards or ``score`` [X, Y]."""
        score = self.reward if score is None else score
        return [
            Scored(key=f"{x}", prompt=x, completions=self.completions, scores=tuple(row))
            for x, row in enumerate(score.tolist())
        ]

    def duels(self) -> list[Scored]:
        """The population of pairs as lists of two, scored 1 (preferred) and 0."""
        return [
            Scored(
                key=p.key,
                prompt=p.prompt,
                completions=(p.chosen, p.rejected),
                scores=(1.0, 0.0),
                weight=p.weight,
            )
            for p in self.pairs()
        ]

    def desirable(self) -> Tensor:
        """Probability of a thumb up, sig(r - mean of r under mu) with flips, [X, Y]."""
        zero = (self.coverage * self.reward).sum(-1, keepdim=True)
        p = torch.sigmoid(self.reward - zero)
        return (1 - self.noise) * p + self.noise * (1 - p)

    def binary(self, n: int | None = None, seed: int = 0) -> list[Binary]:
        """Thumbs on completions from mu; the population has both labels, weighted."""
        up = self.desirable()
        if n is None:
            return [
                Binary(
                    key=f"{x}:{y}:{'+' if label else '-'}",
                    prompt=x,
                    completion=completion,
                    label=label,
                    weight=float(self.coverage[x, y] * (up[x, y] if label else 1 - up[x, y]))
                    / self.prompts,
                )
                for x in range(self.prompts)
                for y, completion in enumerate(self.completions)
                for label in (True, False)
            ]
        draw = torch.Generator().manual_seed(seed)
        x = torch.randint(self.prompts, (n,), generator=draw)
        y = _categorical(self.coverage[x], draw)
        good = torch.rand(n, generator=draw, dtype=torch.float64) < up[x, y]
        return [
            Binary(
                key=f"{i}",
                prompt=int(x[i]),
                completion=self.completions[int(y[i])],
                label=bool(good[i]),
            )
            for i in range(n)
        ]

    def demonstrations(
        self, log_law: Tensor, n: int | None = None, seed: int = 0
    ) -> list[Demonstration]:
        """Completions from a log-law [X, Y]."""
        if n is None:
            weight = log_law.exp() / self.prompts
            return [
                Demonstration(key=f"{x}:{y}", prompt=x, completion=c, weight=float(weight[x, y]))
                for x in range(self.prompts)
                for y, c in enumerate(self.completions)
            ]
        draw = torch.Generator().manual_seed(seed)
        x = torch.randint(self.prompts, (n,), generator=draw)
        y = _categorical(log_law.exp()[x], draw)
        return [
            Demonstration(key=f"{i}", prompt=int(x[i]), completion=self.completions[int(y[i])])
            for i in range(n)
        ]

    def scored(self, n: int | None = None, seed: int = 0) -> list[Scored]:
        """Single completions from mu with their gold reward (trajectories, rewarded at the end)."""
        given = self.demonstrations(self.coverage.log(), n, seed)
        index = {y: i for i, y in enumerate(self.completions)}
        return [
            Scored(
                key=d.key,
                prompt=d.prompt,
                completions=(d.completion,),
                scores=(float(self.reward[d.prompt, index[d.completion]]),),
                weight=d.weight,
            )
            for d in given
        ]


def _categorical(law: Tensor, draw: torch.Generator) -> Tensor:
    """One index a row of probabilities [N, Y]."""
    return torch.multinomial(law, 1, generator=draw).squeeze(-1)
