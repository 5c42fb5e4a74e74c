"""The references of a stage: which policies they are, when they move, and what of those that
stand still is computed once only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch

from polyalign.engine import processes
from polyalign.engine.cuts import cut
from polyalign.engine.scoring import live
from polyalign.errors import NeedsError
from polyalign.protocols import Policy
from polyalign.recipe import Reference, Stage
from polyalign.references.cache import Cache
from polyalign.types import Batch

if TYPE_CHECKING:
    from polyalign.loops.session import Session


def names(stage: Stage) -> set[str]:
    """The references that a stage declares or its objectives read."""
    found = set(stage.references)
    for update in stage.updates:
        found |= update.objective.needs.references
        if any("ref" in signal for signal in update.objective.needs.signals if "(" in signal):
            found.add("ref")
    return found


def whole_law(stage: Stage, name: str) -> bool:
    """Whether a stage reads a reference's whole law at each step."""
    needs = [update.objective.needs for update in stage.updates]
    return any(live(one) and name in one.references for one in needs)


def scorable(stage: Stage) -> bool:
    """Whether all that a stage asks of its references can be scored before its first step: they
    stand still, only log-probabilities are read, and of rows that are the same in every epoch.
    """
    found = names(stage)
    needs = [update.objective.needs for update in stage.updates]
    return (
        bool(found)
        and all(source.kind == "records" for source in stage.streams.values())
        and not any(stage.reference(name).every or whole_law(stage, name) for name in found)
        and not any(live(one) or one.draws for one in needs)
        and not any("mismatched" in one.statistics | one.roles for one in needs)
    )


class Later:
    """A policy that is asked for its weights when it is first asked for anything."""

    lockstep = False

    def __init__(self, find: Callable[[], Policy]) -> None:
        self.find = find

    def __getattr__(self, name: str) -> Any:
        return getattr(self.find(), name)


class References:
    """What a session knows of its references; ``caches`` has the numbers of those that stand still.

    Where the settings say ``references_first``, they are all scored before a stage's first step
    (:meth:`ahead`), and no policy is held in memory for them while it trains.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.caches: dict[str, Cache] = {}
        self._again = self._first = False
        self._held: dict[str, Policy] = {}

    def open(self, stage: Stage) -> None:
        """Take up a stage's references."""
        session = self.session
        settings = session.settings
        self._held = {}
        self._first = settings.references_first and scorable(stage)
        session.cast.references = {name: self._policy(stage, name) for name in names(stage)}
        # A row that is scored once needs no cache: its reference is scored beside the policy.
        self._again = self._first or settings.epochs * stage.share > 1
        self.caches = {
            name: Cache(reference)
            for name, reference in session.cast.references.items()
            if stage.reference(name).every == 0
        }
        for name in self.caches if settings.reference_states and self._again else ():
            where = session.hooks.place(f"laws/stage-{session.position['stage']}/{name}")
            remember = getattr(session.cast.references[name], "remember", None)
            if where is not None and remember is not None and whole_law(stage, name):
                remember(where, settings.reference_states)
        session.let_go()

    def _policy(self, stage: Stage, name: str) -> Policy:
        spec = stage.reference(name)
        if not self._first:
            return self.made(spec)

        def find() -> Policy:
            if spec.weights == "start" and self.session.untouched:
                return self.session.policy
            if name not in self._held:
                self._held[name] = self.made(spec)
            return self._held[name]

        return cast(Policy, Later(find))

    def made(self, spec: Reference) -> Policy:
        """The policy that a declaration means; raises :class:`NeedsError` where there is none."""
        session = self.session
        if spec.weights == "start":
            if spec.every == 0:
                return session.start
            # One that moves must not take the start with it.
            return (session.policy if session.untouched else session.start).freeze()
        if spec.weights == "previous":
            return self.at(session.position["stage"])
        kind, _, name = spec.weights.partition(":")
        if kind == "model" and session.opens is not None:
            return session.opens(name)
        kind, _, number = spec.weights.partition("-")
        if kind == "stage" and number.isdigit():
            return self.at(int(number))
        raise NeedsError(
            f"A reference cannot be '{spec.weights}' here.",
            "Use start, previous, stage-0 and so on, or model:NAME where models can be opened.",
        )

    def at(self, stage: int) -> Policy:
        """The policy as it was when stage number ``stage`` began, as a constant."""
        session = self.session
        if stage == 0:
            return session.start
        kept = session.hooks.get(f"stage-{stage}-start")
        if kept is None:
            raise NeedsError(f"Stage {stage} has not begun.", "Ask for an earlier stage.")
        now = session.policy_tensors()
        session.policy.load(kept)
        frozen = session.policy.freeze()
        session.policy.load(now)
        return frozen

    @torch.no_grad()
    def move(self, stage: Stage) -> None:
        """After a step: move those that follow the policy."""
        session = self.session
        for name, policy in session.cast.references.items():
            spec = stage.reference(name)
            if spec.every and session.position["stage_step"] % spec.every == 0:
                own, now = policy.tensors(), session.policy.tensors()
                policy.load({k: own[k].lerp(now[k].to(own[k].dtype), spec.mix) for k in own})

    # What is computed once

    def ahead(self, make: Callable[[int], Batch], count: int) -> None:
        """Score the stage's first ``count`` batches, where that is to be done before its first
        step; then let go of the policies that were asked. What is kept already is read.
        """
        if not self._first:
            return
        for place in range(count):
            if not self.restore([f"ahead-{place}"]):
                self.fill(make(place), f"ahead-{place}")
                self.session.hooks.progress("scoring the reference", place + 1, count)
        self._held = {}
        self.session.let_go()

    def fill(self, batch: Batch, part: object) -> Batch:
        """The batch of a stage's ``part`` (the step's number, or "eval" for what is held out) with
        the log-probabilities of references that stand still.
        """
        if not self._again and part != "eval":
            return batch
        refs = dict(batch.refs)
        budget = self.session.settings.budget
        for name in self._scored():
            refs[name], new = self.caches[name].fill(batch, lambda b: cut(b, budget))
            if new:
                self.session.hooks.put(self._chunk(name, part), new, own=True)
        return replace(batch, refs=refs)

    def _scored(self) -> Iterator[str]:
        updates = self.session.stage.updates
        wanted = {n for update in updates for n in update.objective.needs.references}
        yield from sorted(wanted & set(self.caches))

    def restore(self, parts: Iterable[object]) -> bool:
        """Take up what an earlier process computed of these parts; whether there was anything."""
        found = False
        for part in parts:
            for name in self._scored():
                kept = self.session.hooks.get(self._chunk(name, part))
                if kept is not None:
                    self.caches[name].restore(kept)
                    found = True
        return found

    def _chunk(self, name: str, part: object) -> str:
        share = f"-{processes.rank()}of{processes.count()}" if processes.count() > 1 else ""
        return f"refs/stage-{self.session.position['stage']}/{name}/{part}{share}"
