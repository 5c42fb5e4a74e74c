"""A policy that counts what it computes: the measure by which methods get equal budgets.

A token counts when a forward pass computes it, as the engine counts a step's work: every distinct
context of a scored batch once and every own step; of sampled answers each context once and each
step drawn. The backward pass is the same multiple for every method, so it is not counted apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from polyalign.protocols import Policy, PolicyScores, Rollout, Sampling
from polyalign.types import Row, Rows

Known = Callable[[Rows], Tensor | None]
"""Log-probabilities [N, T] of rows that are known already, or None."""


@dataclass
class Tokens:
    """Tokens computed so far, by who computed them."""

    policy: int = 0
    reference: int = 0
    sampled: int = 0
    judge: int = 0

    @property
    def total(self) -> int:
        """All of them together."""
        return self.policy + self.reference + self.sampled + self.judge

    def to_json(self) -> dict[str, int]:
        """Plain data, with the total."""
        return {**asdict(self), "total": self.total}


def decisions(rows: Rows) -> int:
    """Tokens in a batch of rows: distinct contexts once, and the rows' own steps."""
    contexts = sum(len(c) if isinstance(c, (tuple, list)) else 1 for c in rows.contexts)
    return contexts + int(rows.mask.sum())


class Counted:
    """``inner`` with its work added to ``spent``; constants made from it count as references.

    ``known`` may answer for rows whose log-probabilities somebody shares: they are counted like
    all others, for a method is charged for what it asks, whoever computed it.
    """

    def __init__(
        self,
        inner: Policy,
        spent: Tokens,
        role: Literal["policy", "reference"] = "policy",
        known: Known | None = None,
    ) -> None:
        self.inner = inner
        self.spent = spent
        self.role = role
        self.known = known

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "spent"):  # not there yet, while a copy is being made
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _add(self, role: str, count: int) -> None:
        setattr(self.spent, role, getattr(self.spent, role) + count)

    @property
    def offers(self) -> frozenset[str]:
        return self.inner.offers

    def encode(self, context: Any, completion: Any) -> Row:
        return self.inner.encode(context, completion)

    def score(
        self,
        rows: Rows,
        want: frozenset[str] = frozenset(),
        draws: Mapping[str, Tensor] | None = None,
        against: Mapping[str, Policy] | None = None,
    ) -> PolicyScores:
        count = decisions(rows)
        self._add(self.role, count)
        others = dict(against or {})
        if any("(" in name for name in want):
            self._add("reference", count * len(others))
        if self.known is not None and not want:
            found = self.known(rows)
            if found is not None:
                return PolicyScores(found)
        bare = {n: p.inner if isinstance(p, Counted) else p for n, p in others.items()}
        return self.inner.score(rows, want, draws, bare)

    def sample(
        self, contexts: Sequence[Any], n: int, how: Sampling, seeds: Sequence[int]
    ) -> Rollout:
        drawn = self.inner.sample(contexts, n, how, seeds)
        self._add("sampled", decisions(Rows.collate(drawn.rows)) if drawn.rows else 0)
        return drawn

    def freeze(self) -> Counted:
        return Counted(self.inner.freeze(), self.spent, "reference")

    def trainable(self) -> dict[str, nn.Parameter]:
        return self.inner.trainable()

    def tensors(self) -> dict[str, Tensor]:
        return self.inner.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.inner.load(tensors)

    def build(self, kind: str, options: Mapping[str, Any]) -> nn.Module:
        module = self.inner.build(kind, options)

        def count(_: nn.Module, given: tuple[Any, ...]) -> None:
            if given and isinstance(given[0], Rows):
                self._add("policy", decisions(given[0]))

        module.register_forward_pre_hook(count)
        return module


class CountedJudge:
    """A judge whose own tokens are counted, where it is a model that reads the answers."""

    def __init__(self, inner: Any, spent: Tokens) -> None:
        self.inner = inner
        self.spent = spent

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "spent"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], meta: Sequence[Mapping[str, Any]]
    ) -> Any:
        before = _spent(self.inner)
        verdict = self.inner(prompts, completions, meta)
        if before is not None:
            self.spent.judge += (_spent(self.inner) or 0) - before
        elif hasattr(self.inner, "encode"):
            self.spent.judge += sum(
                len(self.inner.encode(p, c)) for p, c in zip(prompts, completions, strict=True)
            )
        return verdict


def _spent(judge: Any) -> int | None:
    """Tokens that a judge says it has used so far; None when it keeps no account."""
    found = getattr(judge, "tokens_used", None)
    return int(found) if found is not None else None
