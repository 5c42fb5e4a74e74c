"""The types that objectives are written in: rows, units, scores, terms, needs.

Axes, by letter: N rows, T steps of a row (tokens, denoising steps, actions), U units,
K members of a unit's list role.
Log-probabilities are natural logarithms at temperature 1, 0 where masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

State = Mapping[str, Tensor]
"""What an objective remembers between optimizer steps (running baselines, shifts)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One encoded (context, steps): what a policy scores.

    ``context`` is opaque to all but the policy, hashable or a tensor; ``steps`` [T, ...];
    ``mask`` [T] is True where the step is the policy's own (positions decide, never values);
    ``segment`` [T] numbers turns or reasoning steps, None when there is one.
    """

    context: Any
    steps: Tensor
    mask: Tensor
    segment: Tensor | None = None

    @property
    def cost(self) -> int:
        """Decisions to compute for this row: its context's length plus its steps."""
        size = len(self.context) if isinstance(self.context, (tuple, list)) else 1
        return size + int(self.steps.shape[0])


@dataclass(frozen=True, slots=True)
class Rows:
    """N encoded rows, padded to the longest.

    ``contexts`` holds each distinct context once; ``context`` [N] says which one a row has,
    so that a policy may compute a shared context once. ``steps`` [N, T, ...], ``mask`` [N, T].
    """

    contexts: Sequence[Any]
    context: Tensor
    steps: Tensor
    mask: Tensor
    segment: Tensor | None = None

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    @staticmethod
    def collate(rows: Sequence[Row]) -> Rows:
        """Stack rows; contexts that are equal (or the same tensor) are kept once."""
        where: dict[Any, int] = {}
        contexts: list[Any] = []
        index = []
        for row in rows:
            key = id(row.context) if isinstance(row.context, Tensor) else row.context
            if key not in where:
                where[key] = len(contexts)
                contexts.append(row.context)
            index.append(where[key])
        longest = max((row.steps.shape[0] for row in rows), default=0)
        first = rows[0].steps
        steps = first.new_zeros((len(rows), longest, *first.shape[1:]))
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        segmented = any(row.segment is not None for row in rows)
        segment = torch.zeros(len(rows), longest, dtype=torch.long) if segmented else None
        for i, row in enumerate(rows):
            n = row.steps.shape[0]
            steps[i, :n] = row.steps
            mask[i, :n] = row.mask
            if segment is not None and row.segment is not None:
                segment[i, :n] = row.segment
        return Rows(contexts, torch.tensor(index), steps, mask, segment)

    def take(self, index: Tensor) -> Rows:
        """The rows at ``index``, with only the contexts they use, trimmed to the longest of
        them.
        """
        kept, context = torch.unique(self.context[index], return_inverse=True)
        mask = self.mask[index]
        used = mask.any(0).nonzero()
        t = int(used.max()) + 1 if len(used) else min(1, mask.shape[1])
        return Rows(
            [self.contexts[int(i)] for i in kept],
            context,
            self.steps[index, :t],
            mask[:, :t],
            None if self.segment is None else self.segment[index, :t],
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows, the units over them, and all that scoring needs beside parameters.

    ``roles[name]``: row indices, [U], or [U, K] with -1 where a list is shorter.
    ``weight`` [U]; ``fields[name]`` [U, ...]; ``keys``: the units' identities, for randomness.
    ``old`` [N, T]: log-probabilities of the law that drew the rows. ``refs[name]`` [N, T]:
    reference log-probabilities computed before. ``draws[name]`` [N, ...]: the random numbers
    that scoring uses, the same for policy and references.
    """

    rows: Rows
    roles: Mapping[str, Tensor]
    weight: Tensor
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    old: Tensor | None = None
    refs: Mapping[str, Tensor] = field(default_factory=dict)
    draws: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.weight.shape[0])

    def take(self, units: Tensor, roles: Iterable[str] | None = None) -> Batch:
        """The batch of some units: their rows only, re-indexed, for ``roles`` (default all)."""
        names = [name for name in self.roles if roles is None or name in set(roles)]
        picked = {name: self.roles[name][units] for name in names}
        flat = torch.cat([index.flatten() for index in picked.values()])
        used = torch.unique(flat[flat >= 0])
        new = torch.full((len(self.rows) + 1,), -1, dtype=torch.long)
        new[used] = torch.arange(len(used))
        rows = self.rows.take(used)
        t = rows.mask.shape[1]
        return Batch(
            rows,
            {name: new[index] for name, index in picked.items()},
            self.weight[units],
            {name: value[units] for name, value in self.fields.items()},
            tuple(self.keys[int(i)] for i in units) if self.keys else (),
            None if self.old is None else self.old[used, :t],
            {name: value[used, :t] for name, value in self.refs.items()},
            {
                name: value[used, :t] if value.dim() > 1 else value[used]
                for name, value in self.draws.items()
            },
        )


@dataclass(frozen=True)
class Term:
    """A part of a loss or a metric: values and their weights, of one shape.

    The engine alone divides: over a whole optimizer step and all processes it forms
    ``scale * sum(value * weight) / sum(weight)``. Weights are functions of masks, units and
    fields only (never of log-probabilities) and not negative.
    """

    value: Tensor
    weight: Tensor
    scale: float = 1.0
    name: str = "loss"


@dataclass(frozen=True)
class Loss:
    """What an objective returns: Terms to minimise and Terms to report, by name."""

    terms: tuple[Term, ...]
    metrics: Mapping[str, Term] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """What an objective sees, over rows [N, T] or, after ``scores[role]``, over units [U, T] or
    [U, K, T].

    ``logp`` carries gradient; ``refs[name]``, ``old`` and ``fields`` do not; ``signals[name]``
    holds exactly what was asked for ([N, T], [N] or [N, ...]); ``draws[name]`` [N, T] are uniform
    random numbers. ``valid`` is False for the missing members of a list role.
    ``weight`` [U] and ``fields`` are the units' in every view.
    """

    logp: Tensor
    mask: Tensor
    weight: Tensor
    roles: Mapping[str, Tensor] = field(default_factory=dict)
    refs: Mapping[str, Tensor] = field(default_factory=dict)
    old: Tensor | None = None
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    modules: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    segment: Tensor | None = None
    valid: Tensor | None = None
    draws: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, role: str) -> Scores:
        index = self.roles[role]
        valid = index >= 0
        safe = index.clamp(min=0)

        def gather(x: Tensor) -> Tensor:
            return x[safe]

        mask = self.mask[safe] & valid.unsqueeze(-1)
        return replace(
            self,
            logp=torch.where(mask, gather(self.logp), 0.0),
            mask=mask,
            roles={},
            refs={name: torch.where(mask, gather(x), 0.0) for name, x in self.refs.items()},
            old=None if self.old is None else torch.where(mask, gather(self.old), 0.0),
            signals={name: gather(x) for name, x in self.signals.items()},
            segment=None if self.segment is None else gather(self.segment),
            valid=valid,
            draws={name: gather(x) for name, x in self.draws.items()},
        )

    @property
    def lengths(self) -> Tensor:
        """Number of the policy's own steps of each row, at least 1, in the dtype of logp."""
        return self.mask.sum(-1).clamp(min=1).to(self.logp.dtype)

    def sum(self, x: Tensor | None = None) -> Tensor:
        """Sum over steps of ``x`` (default logp) where the mask is True; NaN elsewhere does not
        leak.
        """
        return torch.where(self.mask, self.logp if x is None else x, 0.0).sum(-1)

    def mean(self, x: Tensor | None = None) -> Tensor:
        """Mean over the policy's own steps of ``x`` (default logp)."""
        return self.sum(x) / self.lengths

    def log_ratio(self, reference: str = "ref") -> Tensor:
        """Per-step log-probability of the policy minus the reference's, same shape as logp."""
        return self.logp - self.refs[reference]

    def _row_weight(self) -> Tensor:
        """Unit weights spread over the view's rows; 0 for missing members."""
        weight = self.weight.to(self.logp.dtype)
        if self.valid is None:
            raise ValueError(
                "row and step terms are made from a role: scores['chosen'].per_step(…)"
            )
        while weight.dim() < self.valid.dim():
            weight = weight.unsqueeze(-1)
        return weight * self.valid

    def per_unit(
        self, value: Tensor, *, scale: float = 1.0, weight: Tensor | None = None, name: str = "loss"
    ) -> Term:
        """A Term of one value [U] a unit; ``weight`` [U] multiplies the units' weights."""
        base = self.weight.to(value.dtype)
        return Term(value, base if weight is None else base * weight, scale, name)

    def per_row(
        self, value: Tensor, *, scale: float = 1.0, weight: Tensor | None = None, name: str = "loss"
    ) -> Term:
        """A Term of one value a row of this role, [U] or [U, K]."""
        base = self._row_weight()
        return Term(value, base if weight is None else base * weight, scale, name)

    def per_step(
        self, value: Tensor, *, scale: float = 1.0, weight: Tensor | None = None, name: str = "loss"
    ) -> Term:
        """A Term of one value a step of this role, [U, T] or [U, K, T], masked by position."""
        base = self._row_weight().unsqueeze(-1) * self.mask
        value = torch.where(self.mask, value, 0.0)
        return Term(value, base if weight is None else base * weight, scale, name)


Coupling = Literal["unit", "statistics", "batch"]


@dataclass(frozen=True)
class Needs:
    """What an objective asks of units, references, policy and engine; parts' needs add up with
    ``|``.

    ``roles`` are scored with gradient; ``statistics`` roles are scored without, for
    ``before`` only. ``draws`` names independent random numbers, uniform in [0, 1), one a step.
    ``references`` are names whose log-probabilities are read; ``signals`` come
    from :data:`SIGNALS` or are module names; ``fields`` are the units' numbers, and ``bounds`` says
    of some of them (name, least, most): an example outside is refused.
    """

    roles: frozenset[str] = frozenset()
    references: frozenset[str] = frozenset()
    signals: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()
    statistics: frozenset[str] = frozenset()
    draws: frozenset[str] = frozenset()
    old: bool = False
    couples: Coupling = "unit"
    bounds: frozenset[tuple[str, float, float]] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        order = ("unit", "statistics", "batch")
        return Needs(
            self.roles | other.roles,
            self.references | other.references,
            self.signals | other.signals,
            self.fields | other.fields,
            self.modules | other.modules,
            self.statistics | other.statistics,
            self.draws | other.draws,
            self.old or other.old,
            max(self.couples, other.couples, key=order.index),
            self.bounds | other.bounds,
        )


def needs(
    *roles: str,
    references: Iterable[str] = (),
    signals: Iterable[str] = (),
    fields: Iterable[str] = (),
    modules: Iterable[str] = (),
    statistics: Iterable[str] = (),
    draws: Iterable[str] = (),
    old: bool = False,
    couples: Coupling = "unit",
    bounds: Iterable[tuple[str, float, float]] = (),
) -> Needs:
    """Spell :class:`Needs` without the frozensets.

    >>> sorted(needs("chosen", "rejected", references=["ref"]).roles)
    ['chosen', 'rejected']
    """
    return Needs(
        frozenset(roles),
        frozenset(references),
        frozenset(signals),
        frozenset(fields),
        frozenset(modules),
        frozenset(statistics),
        frozenset(draws),
        old,
        couples,
        frozenset(bounds),
    )


SIGNALS = {
    "entropy": "entropy of the policy's law at each step, nats [N, T]",
    "kl(ref|policy)": "KL(ref || policy) over the whole law at each step, nats [N, T]; live "
    "reference",
    "kl(policy|ref)": "KL(policy || ref) over the whole law at each step, nats [N, T]; live "
    "reference",
    "js(policy|ref)": "Jensen-Shannon divergence of the two laws at each step, nats [N, T]; live "
    "reference",
    "tv(policy|ref)": "total variation of the two laws at each step, in [0, 1] [N, T]; live "
    "reference",
    "log_overlap(policy|ref)": "log sum_v p(v)^a q(v)^(1-a) of policy p and live reference q at "
    "each step [N, T]; log_overlap(policy|ref)@a, a = 0.5",
    "log_collision": "log sum_v p(v)^2 at each step [N, T]",
    "max_prob": "largest probability at each step [N, T]",
    "top_mass": "probability of the k likeliest choices at each step [N, T]; top_mass@k, k = 10",
    "top_entropy": "-sum p log p over them, nats [N, T]; top_entropy@k, k = 10",
    "context": "the context as a tensor [N, ...] (control, worlds)",
    "steps": "the steps as a tensor [N, T, ...] (tokens, actions)",
    "stop_word": "1 where a step is a function word, else 0 [N, T] (language)",
    "sample": "a fresh pathwise sample in each context, with gradient [N, T, ...]",
    "sample_logp": "its log-probability, with gradient [N, T]",
}
"""The closed vocabulary of what a policy may offer beside log-probabilities."""


def signal(name: str) -> tuple[str, int | None]:
    """A signal's name in :data:`SIGNALS` and its k, where one is said.

    >>> signal("top_mass@3"), signal("entropy")
    (('top_mass', 3), ('entropy', None))
    """
    base, _, k = name.partition("@")
    return base, int(k) if k.isdigit() else None


class Objective(Protocol):
    """A frozen dataclass of hyper-parameters and one pure call."""

    @property
    def needs(self) -> Needs: ...

    def __call__(self, scores: Scores, state: State) -> Loss: ...


@runtime_checkable
class Stateful(Protocol):
    """An objective with a statistic over the whole optimizer step (coupling "statistics")."""

    def start(self) -> State:
        """The state before the first step."""
        ...

    def before(self, scores: Scores, state: State) -> State:
        """The state for this step, from scores of all its units, without gradient."""
        ...
