"""One optimizer step: micro-batches, the one normaliser, coupling, gradients.

A step's loss is ``sum over terms of scale * sum(value * weight) / sum(weight)`` where both sums
run over the whole step and all processes. How the step is cut into micro-batches, padded, ordered
or spread over processes changes neither loss nor gradient.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polyalign.engine import processes, sharding
from polyalign.engine.cuts import cut, decisions
from polyalign.engine.scoring import (
    Cast,
    attach,
    blank,
    check_finite,
    concatenate,
    constant,
    scores,
    strip,
    training_only,
)
from polyalign.errors import NumericsError
from polyalign.recipe import Update
from polyalign.types import Batch, Loss, Needs, Scores, State, Stateful, Term


@dataclass
class Report:
    """What a step or an evaluation gave: the loss, metrics by name, and the work done."""

    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    grad_norm: float | None = None


class Tally:
    """Sums of value * weight and of weight, by name, over micro-batches and then processes."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def add(self, name: str, term: Term) -> None:
        entry = self.sums.setdefault(name, [0.0, 0.0])
        weight = term.weight.detach().double()
        entry[0] += float((term.value.detach().double() * weight).sum())
        entry[1] += float(weight.sum())

    def means(self) -> dict[str, float]:
        """Weighted means over all processes; a name without weight is left out."""
        names = sorted({name for share in processes.gather(sorted(self.sums)) for name in share})
        if not names:
            return {}
        flat = torch.tensor(
            [self.sums.get(name, [0.0, 0.0]) for name in names], dtype=torch.float64
        )
        flat = processes.total(flat)
        return {n: float(s / w) for n, (s, w) in zip(names, flat, strict=True) if float(w) > 0}


def total_loss(loss: Loss, denominators: Mapping[str, float]) -> Tensor:
    """The share of the step's loss that these values make."""
    parts = [
        term.scale * (term.value * term.weight).sum() / denominators[_name(i, term)]
        for i, term in enumerate(loss.terms)
        if denominators[_name(i, term)] > 0
    ]
    if not parts:
        return loss.terms[0].value.sum() * 0.0
    return torch.stack([part.reshape(()) for part in parts]).sum()


def _name(position: int, term: Term) -> str:
    return f"{position}:{term.name}"


def _weights(losses: Sequence[Loss]) -> dict[str, float]:
    """Sum of weights of each term over micro-batches and processes."""
    sums: dict[str, float] = {}
    for loss in losses:
        for i, term in enumerate(loss.terms):
            sums[_name(i, term)] = sums.get(_name(i, term), 0.0) + float(term.weight.double().sum())
    names = sorted({name for share in processes.gather(sorted(sums)) for name in share})
    flat = torch.tensor([sums.get(name, 0.0) for name in names], dtype=torch.float64)
    return dict(zip(names, processes.total(flat).tolist(), strict=True))


class Engine:
    """Computes losses and gradients of updates over batches, for one cast.

    ``budget``: decisions in one micro-batch at most (None: everything at once).
    """

    def __init__(self, cast: Cast, budget: int | None = None) -> None:
        self.cast = cast
        self.budget = budget

    def backward(self, update: Update, batch: Batch, state: State) -> tuple[Report, State]:
        """Add the gradients of one update's loss over a whole step's batch; returns the new state.

        Raises :class:`NumericsError` naming the example when a number is not finite.
        """
        ((report, state),) = self.backward_all((update,), batch, (state,))
        return report, state

    def backward_all(
        self, updates: Sequence[Update], batch: Batch, states: Sequence[State]
    ) -> list[tuple[Report, State]]:
        """Add the gradients of several updates, all at the parameters as they are now.

        Updates that read the same rows, unit by unit, are scored and back-propagated in one pass,
        each seeing as constant what it does not train.
        """
        if _one_pass(updates):
            with training_only(self.cast.modules, _Asked.of(*updates).trains):
                reports = self._separable(updates, batch, states, grad=True)
            return list(zip(reports, states, strict=True))
        found = []
        for update, state in zip(updates, states, strict=True):
            with training_only(self.cast.modules, update.trains):
                state = self._before(update, batch, state)
                if update.objective.needs.couples == "batch":
                    report = self._coupled(update, batch, state, grad=True)
                else:
                    (report,) = self._separable((update,), batch, (state,), grad=True)
            found.append((report, state))
        return found

    def evaluate(self, update: Update, batch: Batch, state: State) -> Report:
        """Loss and metrics of an update over a batch, without gradient and without a new state."""
        with training_only(self.cast.modules, ()):
            state = self._before(update, batch, state)
            if update.objective.needs.couples == "batch":
                return self._coupled(update, batch, state, grad=False)
            return self._separable((update,), batch, (state,), grad=False)[0]

    def _before(self, update: Update, batch: Batch, state: State) -> State:
        objective = update.objective
        if not isinstance(objective, Stateful) or objective.needs.couples != "statistics":
            return state
        asked = _Asked.of(update)
        needs = asked.needs
        roles = needs.statistics or needs.roles
        cuts = [batch.take(units, roles) for units in cut(batch, self.budget)]
        idle = self._idle(cuts)
        parts = [self._score(asked, part, grad=False) for part in cuts]
        self._keep_step(asked, cuts, idle, grad=False)
        shares = processes.gather(strip(concatenate(parts)))
        with torch.no_grad():
            return objective.before(attach(concatenate(shares), self.cast.modules), state)

    def _score(self, asked: _Asked, part: Batch, grad: bool) -> Scores:
        scored = scores(self.cast, part, asked.needs, asked.trains, grad)
        check_finite(scored, part)
        return scored

    def _idle(self, parts: Sequence[Batch]) -> int:
        """How often a sharded policy must be asked beside ``parts``, since another process has
        more. To be known before any of them is asked.
        """
        return sharding.missing(parts) if sharding.in_lockstep(self.cast.policy) else 0

    def _keep_step(self, asked: _Asked, parts: Sequence[Batch], idle: int, grad: bool) -> None:
        """Ask the policy ``idle`` times for nothing."""
        for _ in range(idle):
            scored = self._score(asked, parts[-1].take(torch.tensor([0])), grad)
            if scored.logp.requires_grad:
                (0.0 * scored.logp).sum().backward()

    def _separable(
        self, updates: Sequence[Update], batch: Batch, states: Sequence[State], grad: bool
    ) -> list[Report]:
        """Units do not touch: each micro-batch is scored and back-propagated by itself."""
        asked = _Asked.of(*updates)
        needs = asked.needs
        parts = [batch.take(units, needs.roles) for units in cut(batch, self.budget)]
        denominators: list[dict[str, float]] = []
        # All processes must ask for the same sums in the same order.
        several = processes.largest(len(parts)) > 1
        idle = self._idle(parts)

        def losses(scored: Scores) -> list[Loss]:
            if len(updates) == 1:
                return [updates[0].objective(scored, states[0])]
            return [
                update.objective(constant(scored, update.trains), state)
                for update, state in zip(updates, states, strict=True)
            ]

        if several:
            with torch.no_grad():
                # Modules that objectives call want real shapes; all else is satisfied with zeros.
                blanks = [
                    losses(
                        self._score(asked, part, grad=False)
                        if needs.modules
                        else blank(self.cast, part, needs)
                    )
                    for part in parts
                ]
            if needs.modules:
                self._keep_step(asked, parts, idle, grad=False)
            denominators = [_weights(column) for column in zip(*blanks, strict=True)]
        tallies = [Tally() for _ in updates]
        values = [0.0] * len(updates)
        seen: list[list[Loss]] = []
        for part in parts:
            made = losses(self._score(asked, part, grad))
            denominators = denominators or [_weights([loss]) for loss in made]
            shares = [total_loss(*pair) for pair in zip(made, denominators, strict=True)]
            if not all(bool(torch.isfinite(share)) for share in shares):
                raise NumericsError(
                    f"The loss of examples {', '.join(part.keys[:3])} is not finite.",
                    "Lower the learning rate or use dtype=float32.",
                )
            moved = [share for share in shares if share.requires_grad]
            if grad and moved:
                torch.autograd.backward(moved)
            values = [v + float(share.detach()) for v, share in zip(values, shares, strict=True)]
            for loss, tally in zip(made, tallies, strict=True):
                for name, term in loss.metrics.items():
                    tally.add(name, term)
            seen.append(
                [
                    Loss(tuple(Term(t.weight, t.weight, 1.0, t.name) for t in loss.terms))
                    for loss in made
                ]
            )
        self._keep_step(asked, parts, idle, grad)
        if several:
            for expected, column in zip(denominators, zip(*seen, strict=True), strict=True):
                _same(expected, _weights(column))
        # What is computed once is counted once.
        work = [sum(decisions(part) for part in parts), *[0] * (len(updates) - 1)]
        return [
            self._report(value, tally, tokens)
            for value, tally, tokens in zip(values, tallies, work, strict=True)
        ]

    def _coupled(self, update: Update, batch: Batch, state: State, grad: bool) -> Report:
        """Units touch: the objective sees the whole step's scores as leaves, once.

        Where the step is one micro-batch of one process, gradients flow directly; otherwise the
        leaves' gradients are back-propagated by a second pass over the micro-batches.
        """
        objective, asked = update.objective, _Asked.of(update)
        parts = [batch.take(units, asked.needs.roles) for units in cut(batch, self.budget)]
        direct = len(parts) == 1 and processes.count() == 1
        idle = self._idle(parts)
        first = [self._score(asked, part, grad and direct) for part in parts]
        self._keep_step(asked, parts, idle, grad=False)
        own = strip(concatenate(first))
        shares = processes.gather(_detached(own)) if processes.count() > 1 else [own]
        if not direct:
            own = _leaves(own)
            shares[processes.rank()] = own
        loss = objective(attach(concatenate(shares), self.cast.modules), state)
        # Every process sees the whole step here, so the weights are complete already.
        sums = {_name(i, t): float(t.weight.double().sum()) for i, t in enumerate(loss.terms)}
        value = total_loss(loss, sums)
        tally = Tally()
        if processes.rank() == 0:
            for name, term in loss.metrics.items():
                tally.add(name, term)
        if grad and value.requires_grad:
            value.backward()
            if not direct:
                self._second_pass(asked, parts, first, own)
                self._keep_step(asked, parts, idle, grad)
        share = float(value.detach()) / processes.count()
        return self._report(share, tally, sum(decisions(part) for part in parts))

    def _second_pass(
        self, asked: _Asked, parts: Sequence[Batch], first: Sequence[Scores], leaves: Scores
    ) -> None:
        start = 0
        for part, before in zip(parts, first, strict=True):
            stop, t = start + before.logp.shape[0], before.logp.shape[1]
            scored = self._score(asked, part, grad=True)
            pairs = [(scored.logp, _slice(leaves.logp, start, stop, t))]
            for name, leaf in leaves.signals.items():
                pairs.append((scored.signals[name], _slice(leaf, start, stop, t)))
            outputs = [(out, g) for out, g in pairs if g is not None and out.requires_grad]
            if outputs:
                torch.autograd.backward([o for o, _ in outputs], [g for _, g in outputs])
            start = stop

    def _report(self, share: float, tally: Tally, tokens: int) -> Report:
        flat = processes.total(torch.tensor([share, float(tokens)], dtype=torch.float64))
        return Report(float(flat[0]), tally.means(), int(flat[1]))


@dataclass(frozen=True)
class _Asked:
    """What updates of one pass read and train together."""

    needs: Needs
    trains: tuple[str, ...]

    @classmethod
    def of(cls, *updates: Update) -> _Asked:
        needs = functools.reduce(operator.or_, (update.objective.needs for update in updates))
        return cls(needs, tuple({name: None for update in updates for name in update.trains}))


def _one_pass(updates: Sequence[Update]) -> bool:
    """Whether updates can share a pass: several, of the same rows, unit by unit, and none calls a
    module itself (which would train for all of them).
    """
    needs = [update.objective.needs for update in updates]
    return (
        len(needs) > 1
        and all(one.couples == "unit" and not one.modules for one in needs)
        and len({one.roles for one in needs}) == 1
    )


def _detached(scored: Scores) -> Scores:
    return _map(scored, lambda x: x.detach())


def _leaves(scored: Scores) -> Scores:
    return _map(scored, lambda x: x.detach().clone().requires_grad_(x.is_floating_point()))


def _map(scored: Scores, change: Callable[[Tensor], Tensor]) -> Scores:
    from dataclasses import replace

    return replace(
        scored,
        logp=change(scored.logp),
        signals={name: change(value) for name, value in scored.signals.items()},
    )


def _slice(leaf: Tensor, start: int, stop: int, t: int) -> Tensor | None:
    if leaf.grad is None:
        return None
    part = leaf.grad[start:stop]
    return part[:, :t] if part.dim() > 1 else part


def _same(expected: Mapping[str, float], seen: Mapping[str, float]) -> None:
    """Weights must not depend on log-probabilities, or micro-batches would change the loss."""
    for name, value in expected.items():
        if abs(value - seen.get(name, 0.0)) > 1e-6 * max(1.0, abs(value)):
            raise NumericsError(
                f"The weights of the term '{name.partition(':')[2]}' depend on log-probabilities.",
                'Declare couples="batch" in the needs, or move the factor into the value.',
            )
