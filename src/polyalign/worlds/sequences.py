"""Sequences: every completion of a small vocabulary and length, so token-level methods are exact.

Axes: X prompts, S prefixes, V tokens, Y completions, T steps. Prefixes are numbered as the nodes
of a heap: the empty prefix is 0, and appending token v to prefix s gives s V + v + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polyalign.worlds.discrete import Discrete, bradley_terry


def enumerate_sequences(vocabulary: int, length: int, eos: int | None) -> list[tuple[int, ...]]:
    """All completions: they end with ``eos`` or at ``length`` tokens.

    >>> enumerate_sequences(2, 2, 0)
    [(0,), (1, 0), (1, 1)]
    """
    if length == 0:
        return [()]
    tails = enumerate_sequences(vocabulary, length - 1, eos)
    return [
        done
        for v in range(vocabulary)
        for done in ([(v,)] if v == eos else [(v, *tail) for tail in tails])
    ]


def prefix_count(vocabulary: int, length: int) -> int:
    """S: number of prefixes of 0 … length-1 tokens."""
    return sum(vocabulary**t for t in range(length))


@dataclass(frozen=True)
class SoftValues:
    """V* [X, S], Q* [X, S, V] and log pi* [X, S, V] of the KL-regularised problem."""

    value: Tensor
    q: Tensor
    policy: Tensor


@dataclass(frozen=True)
class Sequences(Discrete):
    """X prompts, every sequence of ``vocabulary`` tokens up to ``length`` (payloads: tuples).

    ``logits`` [X, S, V] are the reference's next-token log-probabilities; a completion ends with
    ``eos`` (None: all have full length).
    """

    logits: Tensor
    vocabulary: int
    length: int
    eos: int | None

    @staticmethod
    def make(
        prompts: int = 1,
        vocabulary: int = 3,
        length: int = 3,
        *,
        eos: int | None = None,
        seed: int = 0,
        noise: float = 0.0,
        spread: float = 1.0,
        sharpness: float = 1.0,
    ) -> Sequences:
        """Gold rewards ~ N(0, spread^2) a sequence; reference logits ~ N(0, sharpness^2)."""
        draw = torch.Generator().manual_seed(seed)
        nodes = prefix_count(vocabulary, length)
        logits = sharpness * torch.randn(
            prompts, nodes, vocabulary, generator=draw, dtype=torch.float64
        )
        logits = logits.log_softmax(-1)
        completions = tuple(enumerate_sequences(vocabulary, length, eos))
        start = path_sums(logits, completions)
        reward = spread * torch.randn(
            prompts, len(completions), generator=draw, dtype=torch.float64
        )
        return Sequences(
            start,
            reward,
            bradley_terry(reward),
            start.exp(),
            completions,
            noise,
            logits,
            vocabulary,
            length,
            eos,
        )

    def soft_values(self, beta: float) -> SoftValues:
        """Backward recursion of the soft Bellman equation with the reward at the end.

        Q*(s, v) = r if v ends the sequence, else V*(s v); V*(s) = beta log sum_v ref exp(Q*/beta);
        log pi* = log ref + (Q* - V*)/beta (arXiv 2412.16145, section 3).
        """
        q = torch.zeros_like(self.logits)
        value = torch.zeros(self.logits.shape[:2], dtype=torch.float64)
        gold = {y: self.reward[:, i] for i, y in enumerate(self.completions)}
        prefixes = {y[:t] for y in self.completions for t in range(len(y))}
        for prefix in sorted(prefixes, key=len, reverse=True):
            s = node(prefix, self.vocabulary)
            for v in range(self.vocabulary):
                ended = gold.get((*prefix, v))
                q[:, s, v] = value[:, s * self.vocabulary + v + 1] if ended is None else ended
            value[:, s] = beta * (self.logits[:, s] + q[:, s] / beta).logsumexp(-1)
        return SoftValues(value, q, self.logits + (q - value.unsqueeze(-1)) / beta)

    def conditionals(self, law: Tensor) -> Tensor:
        """The next-token log-laws [X, S, V] that spell a log-law over sequences [X, Y].

        A prefix that no completion passes keeps the reference's law.
        """
        mass = torch.full_like(self.logits, -torch.inf)
        for i, y in enumerate(self.completions):
            for t, v in enumerate(y):
                s = node(y[:t], self.vocabulary)
                mass[:, s, v] = torch.logaddexp(mass[:, s, v], law[:, i])
        empty = mass.isinf().all(-1, keepdim=True)
        return torch.where(empty, self.logits, mass).log_softmax(-1)

    def reachable(self) -> Tensor:
        """Numbers of the prefixes that some completion passes, ascending."""
        prefixes = {y[:t] for y in self.completions for t in range(len(y))}
        return torch.tensor(sorted(node(prefix, self.vocabulary) for prefix in prefixes))

    def forward_kl(self, logits: Tensor) -> Tensor:
        """D(y) = sum_t KL(ref(.|y_<t) || pi(.|y_<t)) of next-token log-laws [X, S, V], [X, Y]."""
        step = (self.logits.exp() * (self.logits - logits)).sum(-1)
        return torch.stack(
            [
                sum(
                    (step[:, node(y[:t], self.vocabulary)] for t in range(len(y))),
                    torch.zeros(self.prompts, dtype=torch.float64),
                )
                for y in self.completions
            ],
            -1,
        )


def node(prefix: tuple[int, ...], vocabulary: int) -> int:
    """The number of a prefix.

    >>> node((), 3), node((0,), 3), node((2, 1), 3)
    (0, 1, 11)
    """
    s = 0
    for v in prefix:
        s = s * vocabulary + v + 1
    return s


def path_sums(logits: Tensor, completions: tuple[tuple[int, ...], ...]) -> Tensor:
    """Log-probability of each completion under next-token log-laws [X, S, V], [X, Y]."""
    vocabulary = logits.shape[-1]
    return torch.stack(
        [
            sum(
                (logits[:, node(y[:t], vocabulary), v] for t, v in enumerate(y)),
                torch.zeros(logits.shape[0], dtype=logits.dtype),
            )
            for y in completions
        ],
        -1,
    )
