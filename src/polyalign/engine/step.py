"""One optimizer step: micro-batches, the one normaliser, coupling, gradients.

A step's loss is ``sum over terms of scale * sum(value * weight) / sum(weight)`` where both sums
run over the whole step and all processes. How the step is cut into micro-batches, padded, ordered
or spread over processes changes neither loss nor gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polyalign.engine import processes, sharding
from polyalign.engine.scoring import (
    Cast,
    attach,
    blank,
    check_finite,
    concatenate,
    scores,
    strip,
    training_only,
)
from polyalign.errors import NumericsError
from polyalign.recipe import Update
from polyalign.types import Batch, Loss, Scores, State, Stateful, Term


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


def cut(batch: Batch, budget: int | None) -> list[Tensor]:
    """Units in the fewest micro-batches of at most ``budget`` decisions each, of like size.

    A decision is a place to compute: a context counts once for all units of a micro-batch that
    share it, and such units stay together. A unit larger than the budget stands alone. None: one
    micro-batch.
    """
    count = len(batch)
    if budget is None or count <= 1:
        return [torch.arange(count)]
    sized: list[tuple[int, list[int]]] = []
    for shared, units in _sharing(batch).items():
        context = sum(_size(batch.rows.contexts[c]) for c in shared)
        size = context
        held: list[int] = []
        for unit, steps in units:
            if held and size + steps > budget:
                sized.append((size, held))
                size, held = context, []
            size, held = size + steps, [*held, unit]
        sized.append((size, held))
    sized.sort(key=lambda item: -item[0])
    total = sum(size for size, _ in sized)
    for parts in range(max(-(-total // budget), 1), len(sized) + 1):
        used = [0] * parts
        out: list[list[int]] = [[] for _ in used]
        for size, held in sized:
            least = used.index(min(used))
            used[least] += size
            out[least] += held
        if max(used) <= max(budget, sized[0][0]):
            break
    else:
        out = [held for _, held in sized]
    return [torch.tensor(part) for part in out if part]


def _sharing(batch: Batch) -> dict[tuple[int, ...], list[tuple[int, int]]]:
    """Units, and the steps of their rows, by the contexts that they need."""
    steps = batch.rows.mask.shape[1] - batch.rows.mask.flip(1).int().argmax(1)
    lengths = torch.where(batch.rows.mask.any(1), steps, 0).tolist()
    context_of = batch.rows.context.tolist()
    members = [index.reshape(len(batch), -1).tolist() for index in batch.roles.values()]
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for unit in range(len(batch)):
        rows = {i for role in members for i in role[unit] if i >= 0}
        contexts = tuple(sorted({context_of[i] for i in rows}))
        found.setdefault(contexts, []).append((unit, sum(lengths[i] for i in rows)))
    return found


def _size(context: object) -> int:
    return len(context) if isinstance(context, tuple) else 1


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
        with training_only(self.cast.modules, update.trains):
            state = self._before(update, batch, state)
            if update.objective.needs.couples == "batch":
                return self._coupled(update, batch, state, grad=True), state
            return self._separable(update, batch, state, grad=True), state

    def evaluate(self, update: Update, batch: Batch, state: State) -> Report:
        """Loss and metrics of an update over a batch, without gradient and without a new state."""
        with training_only(self.cast.modules, ()):
            state = self._before(update, batch, state)
            run = self._coupled if update.objective.needs.couples == "batch" else self._separable
            return run(update, batch, state, grad=False)

    def _before(self, update: Update, batch: Batch, state: State) -> State:
        objective = update.objective
        if not isinstance(objective, Stateful) or objective.needs.couples != "statistics":
            return state
        needs = objective.needs
        roles = needs.statistics or needs.roles
        cuts = [batch.take(units, roles) for units in cut(batch, self.budget)]
        idle = self._idle(cuts)
        parts = [self._score(update, part, grad=False) for part in cuts]
        self._keep_step(update, cuts, idle, grad=False)
        shares = processes.gather(strip(concatenate(parts)))
        with torch.no_grad():
            return objective.before(attach(concatenate(shares), self.cast.modules), state)

    def _score(self, update: Update, part: Batch, grad: bool) -> Scores:
        scored = scores(self.cast, part, update.objective.needs, update.trains, grad)
        check_finite(scored, part)
        return scored

    def _idle(self, parts: Sequence[Batch]) -> int:
        """How often a sharded policy must be asked beside ``parts``, since another process has
        more. To be known before any of them is asked.
        """
        return sharding.missing(parts) if sharding.in_lockstep(self.cast.policy) else 0

    def _keep_step(self, update: Update, parts: Sequence[Batch], idle: int, grad: bool) -> None:
        """Ask the policy ``idle`` times for nothing."""
        for _ in range(idle):
            scored = self._score(update, parts[-1].take(torch.tensor([0])), grad)
            if scored.logp.requires_grad:
                (0.0 * scored.logp).sum().backward()

    def _separable(self, update: Update, batch: Batch, state: State, grad: bool) -> Report:
        """Units do not touch: each micro-batch is scored and back-propagated by itself."""
        objective, needs = update.objective, update.objective.needs
        parts = [batch.take(units, needs.roles) for units in cut(batch, self.budget)]
        denominators: dict[str, float] | None = None
        # All processes must ask for the same sums in the same order.
        several = processes.largest(len(parts)) > 1
        idle = self._idle(parts)
        if several:
            with torch.no_grad():
                # Modules that objectives call want real shapes; all else is satisfied with zeros.
                blanks = [
                    objective(
                        self._score(update, part, grad=False)
                        if needs.modules
                        else blank(self.cast, part, needs),
                        state,
                    )
                    for part in parts
                ]
            if needs.modules:
                self._keep_step(update, parts, idle, grad=False)
            denominators = _weights(blanks)
        tally, value, seen = Tally(), 0.0, []
        for part in parts:
            scored = self._score(update, part, grad)
            loss = objective(scored, state)
            if denominators is None:
                denominators = _weights([loss])
            share = total_loss(loss, denominators)
            if not bool(torch.isfinite(share)):
                raise NumericsError(
                    f"The loss of examples {', '.join(part.keys[:3])} is not finite.",
                    "Lower the learning rate or use dtype=float32.",
                )
            if grad and share.requires_grad:
                share.backward()
            value += float(share.detach())
            seen.append(Loss(tuple(Term(t.weight, t.weight, 1.0, t.name) for t in loss.terms)))
            for name, term in loss.metrics.items():
                tally.add(name, term)
        self._keep_step(update, parts, idle, grad)
        if several:
            _same(denominators or {}, _weights(seen))
        return self._report(value, tally, parts)

    def _coupled(self, update: Update, batch: Batch, state: State, grad: bool) -> Report:
        """Units touch: the objective sees the whole step's scores as leaves, once.

        Where the step is one micro-batch of one process, gradients flow directly; otherwise the
        leaves' gradients are back-propagated by a second pass over the micro-batches.
        """
        objective, needs = update.objective, update.objective.needs
        parts = [batch.take(units, needs.roles) for units in cut(batch, self.budget)]
        direct = len(parts) == 1 and processes.count() == 1
        idle = self._idle(parts)
        first = [self._score(update, part, grad and direct) for part in parts]
        self._keep_step(update, parts, idle, grad=False)
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
                self._second_pass(update, parts, first, own)
                self._keep_step(update, parts, idle, grad)
        share = float(value.detach()) / processes.count()
        return self._report(share, tally, parts)

    def _second_pass(
        self, update: Update, parts: Sequence[Batch], first: Sequence[Scores], leaves: Scores
    ) -> None:
        start = 0
        for part, before in zip(parts, first, strict=True):
            stop, t = start + before.logp.shape[0], before.logp.shape[1]
            scored = self._score(update, part, grad=True)
            pairs = [(scored.logp, _slice(leaves.logp, start, stop, t))]
            for name, leaf in leaves.signals.items():
                pairs.append((scored.signals[name], _slice(leaf, start, stop, t)))
            outputs = [(out, g) for out, g in pairs if g is not None and out.requires_grad]
            if outputs:
                torch.autograd.backward([o for o, _ in outputs], [g for _, g in outputs])
            start = stop

    def _report(self, share: float, tally: Tally, parts: Sequence[Batch]) -> Report:
        tokens = sum(_decisions(part) for part in parts)
        flat = processes.total(torch.tensor([share, float(tokens)], dtype=torch.float64))
        return Report(float(flat[0]), tally.means(), int(flat[1]))


def _decisions(part: Batch) -> int:
    contexts = sum(len(c) if isinstance(c, tuple) else 1 for c in part.rows.contexts)
    return contexts + int(part.rows.mask.sum())


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
