"""Explicit policies: tables of logits whose every probability is at hand, in float64.

Axes: N rows, T steps, X prompts, S prefixes, V choices at a step (responses or tokens),
D features of a prompt, E of a response. A context is a prompt's number. The same class
:class:`Discrete` serves them all; they differ in where the logits of a step come from.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from polyalign.errors import ModelError, NeedsError, OptionError, nearest
from polyalign.metrics.concentration import concentration
from polyalign.policies.choosing import invert, truncate
from polyalign.policies.divergences import between
from polyalign.policies.modules import (
    Logits,
    Scalar,
    Table,
    heap,
    known_options,
    load_parameters,
)
from polyalign.protocols import Policy, PolicyScores, Rollout, Sampling
from polyalign.types import Row, Rows, signal

OFFERS = frozenset(
    {
        "entropy",
        "kl(ref|policy)",
        "kl(policy|ref)",
        "js(policy|ref)",
        "tv(policy|ref)",
        "log_overlap(policy|ref)",
        "log_collision",
        "max_prob",
        "top_mass",
        "top_entropy",
        "context",
        "steps",
        "sample_rows",
    }
)


class Discrete(ABC):
    """A policy with finitely many choices at each step, all of them enumerated."""

    parameter: nn.Parameter
    """The one trainable tensor."""

    name = "logits"

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = nn.Parameter(parameter.detach().double().clone())
        self._encoded: dict[tuple[Any, Any], Row] = {}

    @property
    def offers(self) -> frozenset[str]:
        return OFFERS

    @abstractmethod
    def logits(self, prompts: Tensor, nodes: Tensor) -> Tensor:
        """Unnormalised log-probabilities [..., V] of prompts and prefix numbers [...]."""

    @abstractmethod
    def _payload(self, steps: Sequence[int]) -> Any:
        """The completion that these choices spell."""

    @abstractmethod
    def _steps(self, completion: Any) -> Sequence[int]:
        """The choices that spell a completion."""

    @abstractmethod
    def _ends(self, choice: Tensor, taken: int) -> Tensor:
        """Whether a choice, made after ``taken`` others, ends the sequence; a bool each."""

    @property
    @abstractmethod
    def prompts(self) -> int:
        """X, the number of prompts that the policy knows."""

    @property
    @abstractmethod
    def choices(self) -> int:
        """V, the number of choices at a step."""

    @property
    @abstractmethod
    def prefixes(self) -> int:
        """S, the number of prefixes at which something is chosen."""

    def encode(self, context: Any, completion: Any) -> Row:
        if (context, completion) not in self._encoded:
            if not 0 <= context < self.prompts:
                raise ModelError(
                    f"This policy has no prompt {context}.", f"Prompts are 0 … {self.prompts - 1}."
                )
            steps = torch.tensor([] if completion is None else self._steps(completion)).long()
            if bool(((steps < 0) | (steps >= self.choices)).any()):
                raise ModelError(
                    f"The completion {completion} has a step outside 0 … {self.choices - 1}.",
                    "Use the completions of the policy's world.",
                )
            self._encoded[context, completion] = Row(
                context, steps, torch.ones(len(steps), dtype=torch.bool)
            )
        return self._encoded[context, completion]

    def nodes(self, steps: Tensor) -> Tensor:
        """The prefix number before each step, [N, T]."""
        return heap(steps, self.choices, self.prefixes)

    def distribution(self, rows: Rows) -> Tensor:
        """The log-law at every step of the rows, [N, T, V]."""
        prompts = torch.tensor([int(c) for c in rows.contexts])[rows.context]
        steps = rows.steps.long()
        return self.logits(prompts.unsqueeze(-1).expand_as(steps), self.nodes(steps)).log_softmax(
            -1
        )

    def score(
        self,
        rows: Rows,
        want: frozenset[str] = frozenset(),
        draws: Mapping[str, Tensor] | None = None,
        against: Mapping[str, Policy] | None = None,
    ) -> PolicyScores:
        law = self.distribution(rows)
        logp = law.gather(-1, rows.steps.long().unsqueeze(-1)).squeeze(-1)
        signals: dict[str, Tensor] = {}
        for name in want:
            value = self._signal(name, law, rows, against or {})
            signals[name] = torch.where(rows.mask, value, 0) if _per_step(name) else value
        return PolicyScores(torch.where(rows.mask, logp, 0.0), signals)

    def _signal(self, name: str, law: Tensor, rows: Rows, against: Mapping[str, Policy]) -> Tensor:
        base, k = signal(name)
        match base:
            case "top_mass":
                return concentration(law, k).mass
            case "top_entropy":
                return concentration(law, k).entropy
            case "entropy":
                return -(law.exp() * law).sum(-1)
            case "log_collision":
                return (2 * law).logsumexp(-1)
            case "max_prob":
                return law.max(-1).values.exp()
            case "context":
                return torch.tensor([int(c) for c in rows.contexts])[rows.context]
            case "steps":
                return rows.steps
            case (
                "kl(ref|policy)"
                | "kl(policy|ref)"
                | "js(policy|ref)"
                | "tv(policy|ref)"
                | "log_overlap(policy|ref)"
            ):
                ref = against.get("ref")
                if not isinstance(ref, Discrete):
                    raise NeedsError(
                        f"'{name}' reads the whole law of a live reference named 'ref'.",
                        "Give the stage a reference 'ref' of the policy's own kind.",
                    )
                with torch.no_grad():
                    other = ref.distribution(rows)
                return between(name, law, other)
        raise NeedsError(f"A table has no signal '{name}'.", nearest(name, self.offers))

    def sample(
        self, contexts: Sequence[Any], n: int, how: Sampling, seeds: Sequence[int]
    ) -> Rollout:
        prompts = torch.tensor([int(c) for c in contexts]).repeat_interleave(n)
        if len(seeds) != len(prompts):
            raise OptionError(
                f"sample() was given {len(seeds)} seeds for {len(prompts)} rows.",
                "Give one seed a row: contexts times n.",
            )
        longest = min(self._longest(), how.max_steps)
        uniform = torch.stack(
            [
                torch.rand(longest, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
                for s in seeds
            ]
        )
        steps = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
        old = torch.zeros(len(prompts), longest, dtype=torch.float64)
        logp = torch.zeros_like(old)
        ended = torch.zeros(len(prompts), dtype=torch.bool)
        node = torch.zeros(len(prompts), dtype=torch.long)
        with torch.no_grad():
            for t in range(longest):
                logits = self.logits(prompts, node)
                law = truncate(logits, how)
                choice = invert(law.exp(), uniform[:, t])
                mask[:, t] = ~ended
                steps[:, t] = torch.where(ended, 0, choice)
                taken = choice.unsqueeze(-1)
                old[:, t] = torch.where(ended, 0.0, law.gather(-1, taken).squeeze(-1))
                own = logits.log_softmax(-1).gather(-1, taken).squeeze(-1)
                logp[:, t] = torch.where(ended, 0.0, own)
                ended = ended | self._ends(choice, t)
                if bool(ended.all()):
                    break
                node = (node * self.choices + choice + 1).clamp(max=self.prefixes - 1)
        lengths = mask.sum(-1).tolist()
        longest = max(lengths, default=0)
        payloads = tuple(
            self._payload(row[:k]) for row, k in zip(steps.tolist(), lengths, strict=True)
        )
        rows = tuple(
            self.encode(int(x), payload) for x, payload in zip(prompts, payloads, strict=True)
        )
        return Rollout(rows, old[:, :longest], logp[:, :longest], ended, payloads, n)

    def _longest(self) -> int:
        return 1

    def freeze(self) -> Self:
        twin = copy.copy(self)
        twin.parameter = nn.Parameter(self.parameter.detach().clone(), requires_grad=False)
        return twin

    def trainable(self) -> dict[str, nn.Parameter]:
        return {self.name: self.parameter}

    def tensors(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.trainable().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        load_parameters(self.trainable(), tensors)

    def build(self, kind: str, options: Mapping[str, Any]) -> nn.Module:
        """Make a "value" V(s), a "q" Q(s, v) of the step taken, both tables, or a "scalar".

        Each has the option ``init``; "logits" are ``size`` numbers, at zero.
        """
        if kind == "logits":
            return Logits(**known_options(kind, options, "size"))
        if kind == "scalar":
            return Scalar(**known_options(kind, options, "init"))
        makers = {"value": 1, "q": self.choices}
        if kind not in makers:
            raise OptionError(
                f"A table cannot build the module '{kind}'.",
                nearest(kind, [*makers, "scalar", "logits"]),
            )
        options = known_options(kind, options, "init")
        return Table(self.prompts, self.prefixes, self.choices, makers[kind], **options)


class TabularPolicy(Discrete):
    """A softmax over V responses (payloads 0 … V-1) for each of X prompts, logits [X, V]."""

    def logits(self, prompts: Tensor, nodes: Tensor) -> Tensor:
        return self.parameter[prompts]

    @property
    def prompts(self) -> int:
        return int(self.parameter.shape[0])

    @property
    def choices(self) -> int:
        return int(self.parameter.shape[-1])

    @property
    def prefixes(self) -> int:
        return 1

    def _payload(self, steps: Sequence[int]) -> int:
        return steps[0]

    def _steps(self, completion: int) -> Sequence[int]:
        return [completion]

    def _ends(self, choice: Tensor, taken: int) -> Tensor:
        return torch.ones_like(choice, dtype=torch.bool)


class NamedPrompts(TabularPolicy):
    """A table whose prompts also go by names, so that data steps may write into a text prompt."""

    def __init__(self, logits: Tensor, names: Sequence[str]) -> None:
        super().__init__(logits)
        self.names = {name: x for x, name in enumerate(names)}

    def encode(self, context: Any, completion: Any) -> Row:
        return super().encode(self.names.get(context, context), completion)


class BilinearPolicy(TabularPolicy):
    """A softmax of phi(x)' W psi(y): logits from features [X, D], [V, E] and a weight [D, E].

    ``base`` [X, V] are logits that stay.
    """

    name = "weight"

    def __init__(
        self, weight: Tensor, phi: Tensor, psi: Tensor, base: Tensor | float = 0.0
    ) -> None:
        super().__init__(weight)
        self.phi, self.psi, self.base = phi.double(), psi.double(), base

    def logits(self, prompts: Tensor, nodes: Tensor) -> Tensor:
        return (self.base + self.phi @ self.parameter @ self.psi.T)[prompts]

    @property
    def prompts(self) -> int:
        return int(self.phi.shape[0])

    @property
    def choices(self) -> int:
        return int(self.psi.shape[0])


class NamedFeatures(BilinearPolicy):
    """The same with prompts that also go by names."""

    def __init__(self, weight: Tensor, phi: Tensor, psi: Tensor, names: Sequence[str]) -> None:
        super().__init__(weight, phi, psi)
        self.names = {name: x for x, name in enumerate(names)}

    def encode(self, context: Any, completion: Any) -> Row:
        return super().encode(self.names.get(context, context), completion)


class SequencePolicy(Discrete):
    """A table of next-token logits [X, S, V] for every prefix; payloads are tuples of tokens.

    A sequence ends with ``eos`` (part of the payload) or at ``length`` tokens.
    """

    def __init__(self, logits: Tensor, length: int, eos: int | None = None) -> None:
        super().__init__(logits)
        self.length, self.eos = length, eos
        need = sum(logits.shape[-1] ** t for t in range(length))
        if logits.shape[1] != need:
            raise ModelError(
                f"Logits have {logits.shape[1]} prefixes, and {length} steps of {logits.shape[-1]} "
                f"tokens have {need}.",
                "Give logits of shape [prompts, prefixes, tokens].",
            )

    def logits(self, prompts: Tensor, nodes: Tensor) -> Tensor:
        return self.parameter[prompts, nodes]

    @property
    def prompts(self) -> int:
        return int(self.parameter.shape[0])

    @property
    def choices(self) -> int:
        return int(self.parameter.shape[-1])

    @property
    def prefixes(self) -> int:
        return int(self.parameter.shape[1])

    def _payload(self, steps: Sequence[int]) -> tuple[int, ...]:
        return tuple(steps)

    def _steps(self, completion: Sequence[int]) -> Sequence[int]:
        return completion

    def _longest(self) -> int:
        return self.length

    def _ends(self, choice: Tensor, taken: int) -> Tensor:
        if taken + 1 >= self.length:
            return torch.ones_like(choice, dtype=torch.bool)
        return choice == -1 if self.eos is None else choice == self.eos


def _per_step(name: str) -> bool:
    return name not in ("context", "steps")
