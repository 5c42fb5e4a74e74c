"""What policies and judges are to the rest of the house.

Axes: N rows, T steps, A aspects, C constraints, M members of an ensemble, G groups of K.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from polyalign.types import Row, Rows


@dataclass(frozen=True)
class Sampling:
    """How to draw: the law is the policy's at ``temperature``, cut to ``top_k`` and ``top_p``."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_steps: int = 128


@dataclass(frozen=True)
class Rollout:
    """What a policy sampled: ``n`` rows a context, contexts in the order asked.

    ``old`` [N, T] is the log-probability of the law that drew (temperature and truncation
    included), ``logp`` [N, T] the policy's at temperature 1; ``finished`` [N] is False where the
    budget ended the row; ``payloads`` are the completions as records hold them.
    """

    rows: tuple[Row, ...]
    old: Tensor
    logp: Tensor
    finished: Tensor
    payloads: tuple[Any, ...]
    n: int


@dataclass(frozen=True)
class PolicyScores:
    """``logp`` [N, T] and the signals that were asked for."""

    logp: Tensor
    signals: Mapping[str, Tensor] = field(default_factory=dict)


class Policy(Protocol):
    """Anything that makes sequences of decisions and can be scored, sampled and trained."""

    @property
    def offers(self) -> frozenset[str]:
        """Names of :data:`SIGNALS` that ``score`` can give, and "sample_rows" when it can
        sample.
        """
        ...

    def encode(self, context: Any, completion: Any) -> Row:
        """The row of a record's payloads; ``completion`` None gives a row without steps."""
        ...

    def score(
        self,
        rows: Rows,
        want: frozenset[str] = frozenset(),
        draws: Mapping[str, Tensor] | None = None,
        against: Mapping[str, Policy] | None = None,
    ) -> PolicyScores:
        """Log-probabilities and signals, deterministic in parameters, rows and draws.

        ``against`` names live reference policies for signals that read two laws.
        """
        ...

    def sample(
        self, contexts: Sequence[Any], n: int, how: Sampling, seeds: Sequence[int]
    ) -> Rollout:
        """``n`` completions for each context payload; ``seeds`` has one number a row."""
        ...

    def freeze(self) -> Policy:
        """This policy as it is now, as a constant: the cheapest copy the policy knows to make."""
        ...

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that training may move, by stable name."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The values that ``load`` sets, by the same names, of a live or a constant policy."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the trainable parameters from tensors by name."""
        ...

    def build(self, kind: str, options: Mapping[str, Any]) -> torch.nn.Module:
        """A trainable module of this policy's domain ("value", "q", …) that maps rows to a
        signal.
        """
        ...


@dataclass(frozen=True)
class Verdict:
    """What a judge says of N behaviours; only what it knows is set.

    ``score`` [N], ``members`` [M, N], ``steps`` [N, T], ``vector`` [N, A], ``satisfied`` [N, C],
    ``prefer`` [G, K, K] (swap-averaged), ``abstained`` [N].
    """

    score: Tensor | None = None
    members: Tensor | None = None
    steps: Tensor | None = None
    vector: Tensor | None = None
    satisfied: Tensor | None = None
    prefer: Tensor | None = None
    abstained: Tensor | None = None


class Judge(Protocol):
    """Says which behaviour is better, from payloads and what the prompts' records carry."""

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], meta: Sequence[Mapping[str, Any]]
    ) -> Verdict: ...
