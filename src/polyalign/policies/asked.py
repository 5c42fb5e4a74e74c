"""A policy that is asked with a condition in its prompts, as it was trained to be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyalign.errors import OptionError
from polyalign.feedback.conditioning import Condition
from polyalign.protocols import Policy, PolicyScores, Rollout, Sampling
from polyalign.types import Row, Rows


@dataclass(frozen=True)
class Asked:
    """``inner`` with a condition written into every context that it encodes or answers.

    So whoever measures it gives prompts as people write them.
    """

    inner: Policy
    condition: Condition

    @property
    def offers(self) -> frozenset[str]:
        """What the inner policy offers."""
        return self.inner.offers

    def encode(self, context: Any, completion: Any) -> Row:
        """The row of the conditioned context."""
        return self.inner.encode(self.condition.ask(context), completion)

    def score(
        self,
        rows: Rows,
        want: frozenset[str] = frozenset(),
        draws: Mapping[str, Tensor] | None = None,
        against: Mapping[str, Policy] | None = None,
    ) -> PolicyScores:
        """The inner policy's scores of rows, which hold their contexts already."""
        plain = {name: plainly(other) for name, other in (against or {}).items()}
        return self.inner.score(rows, want, draws, plain or None)

    def sample(
        self, contexts: Sequence[Any], n: int, how: Sampling, seeds: Sequence[int]
    ) -> Rollout:
        """Answers to the conditioned contexts."""
        return self.inner.sample([self.condition.ask(c) for c in contexts], n, how, seeds)

    def freeze(self) -> Asked:
        """A constant that is asked alike."""
        return Asked(self.inner.freeze(), self.condition)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The inner policy's parameters."""
        return self.inner.trainable()

    def tensors(self) -> dict[str, Tensor]:
        """The inner policy's values."""
        return self.inner.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the inner policy's parameters."""
        self.inner.load(tensors)

    def build(self, kind: str, options: Mapping[str, Any]) -> torch.nn.Module:
        """A module of the inner policy's domain."""
        return self.inner.build(kind, options)

    def __getattr__(self, name: str) -> Any:
        # What only some policies have (a tokenizer, a template) is the inner one's.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


def asked(policy: Policy, condition: Condition | None) -> Policy:
    """The policy with a condition, if there is one."""
    return policy if condition is None else Asked(policy, condition)


def plainly(policy: Policy) -> Policy:
    """The policy without its condition, where it has one."""
    return policy.inner if isinstance(policy, Asked) else policy


def condition_of(model: str | Path, wanted: str | float | None = None) -> Condition | None:
    """How a model folder that polyalign trained wants to be asked; None for nothing.

    ``wanted``: another value than the usual one, or "none" to leave the condition out. Raises
    :class:`OptionError` for a value off the scale, one that is no number, and for a model that
    knows no condition.
    """
    file = Path(model).expanduser() / "polyalign.json"
    try:
        found = json.loads(file.read_text("utf-8")).get("condition") if file.is_file() else None
    except (OSError, ValueError, AttributeError):
        found = None
    condition = None if found is None else Condition.read(found)
    if wanted is None or (condition is not None and str(wanted).lower() == "none"):
        return None if wanted is not None else condition
    if condition is None:
        raise OptionError(
            f"condition={wanted} has no effect: {model} was not trained with a condition in its "
            "prompts.",
            "Leave it out.",
        )
    try:
        value = float(wanted)
    except ValueError:
        raise OptionError(
            f"condition={wanted} is no number.",
            f"Ask for one from {condition.least:g} to {condition.most:g}, or for none.",
        ) from None
    return condition.at(value)
