"""Epochs over records: offline learning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from polyalign.engine import processes, sharding
from polyalign.errors import DataError
from polyalign.feedback.conditioning import Condition
from polyalign.feedback.draws import draw
from polyalign.feedback.records import Record
from polyalign.feedback.store import dump, load
from polyalign.feedback.units import Unit, assemble, make_units, order
from polyalign.loops.context import Context
from polyalign.loops.length import per_epoch, steps_of
from polyalign.loops.session import Session
from polyalign.objectives.watched import watched
from polyalign.recipe import Stage
from polyalign.types import Batch, Needs


def run(session: Session) -> None:
    """Run the current stage over its records, from where the session's position is."""
    records = stage_records(session)
    needs = stage_needs(session)
    settings, position = session.settings, session.position
    batches = per_epoch(session.stage, len(records), settings)
    steps = steps_of(session.stage, len(records), settings)
    session.references.ahead(
        lambda place: _batch(session, records, needs, 0, place), min(steps, batches)
    )
    whole: Batch | None = None
    while position["stage_step"] < steps:
        epoch, place = divmod(position["stage_step"], batches)
        anew = bool(needs.draws) or "mismatched" in needs.statistics | needs.roles
        if whole is None or batches > 1 or anew:
            whole = _batch(session, records, needs, epoch, place)
        filled = session.references.fill(whole, position["stage_step"])
        row: dict[str, Any] = dict(session.train(filled, steps))
        finish(session, row, evaluate, epoch=position["stage_step"] / batches, steps=steps)


def finish(
    session: Session,
    row: dict[str, Any],
    measure: Callable[[Session], dict[str, float]],
    *,
    epoch: float,
    steps: int,
    boundary: bool = True,
) -> None:
    """Tell the hooks of a step that is done; ``measure`` held-out records when it is due.

    ``boundary`` is False inside a rollout, whose samples are not part of the state.
    """
    position, every = session.position, session.settings.eval_every
    row |= {
        "step": position["step"],
        "stage": position["stage"],
        "epoch": round(epoch, 6),
        "tokens": position["tokens"],
        "split": "train",
    }
    session.hooks.step(session, row)
    last = position["stage_step"] >= steps
    if session.eval_records and every and (position["step"] % every == 0 or last):
        measured = measure(session)
        session.hooks.step(
            session,
            {f"eval_{k}": v for k, v in measured.items()}
            | {k: row[k] for k in ("step", "stage", "epoch", "tokens")}
            | {"split": "eval"},
        )
    if boundary:
        session.hooks.boundary(session)


def evaluate(session: Session) -> dict[str, float]:
    """The objective's loss and metrics over the evaluation records, as one weighted mean."""
    needs = stage_needs(session)
    records = held_out_records(session)
    units = _share(records, list(range(len(records))), needs, 0, "eval")
    batch = draw(assemble(units, session.policy.encode), needs, 0, "eval")
    batch = session.references.fill(batch, "eval")
    update = next(u for u in session.stage.updates if "policy" in u.trains)
    index = session.stage.updates.index(update)
    if "top_mass" in session.policy.offers and "chosen" in update.objective.needs.roles:
        update = replace(update, objective=watched(update.objective))
    report = session.engine.evaluate(update, batch, session.states[index])
    return {"loss": report.loss, **report.metrics}


def held_out_records(session: Session) -> Sequence[Record]:
    """The evaluation records after those data steps that say ``held_out``: not what chooses or
    makes records, but what changes how their numbers read.
    """
    records = session.eval_records
    for step in session.stage.streams["data"].steps:
        if getattr(step, "held_out", False):
            records = step(records, Context(session))
    return records


def condition(session: Session) -> Condition | None:
    """How the trained policy is to be asked: what data steps wrote into prompts, None for nothing.

    Such a step has a method ``condition(records)``, given the records of the last stage.
    """
    number = session.position["stage"]
    return condition_of(session.stage, session.hooks.get(f"stage-{number}-records") or ())


def condition_of(stage: Stage, kept: Sequence[Mapping[str, Any]]) -> Condition | None:
    """The condition of one stage, whose records were kept as plain data."""
    steps = [s for s in stage.streams["data"].steps if hasattr(s, "condition")]
    if not steps:
        return None
    found: Condition = steps[-1].condition([load(data) for data in kept])
    return found


def stage_needs(session: Session) -> Needs:
    """What the stage's updates need together."""
    total = Needs()
    for update in session.stage.updates:
        total = total | update.objective.needs
    return total


def stage_records(session: Session) -> Sequence[Record]:
    """The stage's records after its data steps; what the steps made is kept for a resumed run."""
    source = session.stage.streams["data"]
    if not source.steps:
        records = session.records
    else:
        name = f"stage-{session.position['stage']}-records"

        def make() -> list[Any]:
            made: Sequence[Record] = list(session.records)
            for step in source.steps:
                made = step(made, Context(session))
            return [dump(record) for record in made]

        # One process makes them: samples of two devices may differ in the last bit.
        known = session.hooks.get(name)
        anew = processes.gather(known is None)[0]
        if anew and sharding.in_lockstep(session.policy):
            # A sharded policy is asked by all together; they take what the first was told.
            known = make()
        kept = processes.first(lambda: make() if known is None else known)
        if anew:
            session.hooks.put(name, kept)
        records = [load(data) for data in kept]
    if not len(records):
        raise DataError(
            "No example is left to train on.", "Look at the data, or keep a larger share."
        )
    return records


def _batch(
    session: Session, records: Sequence[Record], needs: Needs, epoch: int, place: int
) -> Batch:
    settings = session.settings
    count = len(records)
    shuffled = (
        order(count, settings.seed, "order", session.position["stage"], epoch)
        if count > settings.batch
        else list(range(count))
    )
    indices = shuffled[place * settings.batch : (place + 1) * settings.batch]
    units = _share(records, indices, needs, settings.seed, epoch)
    return draw(assemble(units, session.policy.encode), needs, settings.seed, epoch)


def _share(
    records: Sequence[Record], indices: list[int], needs: Needs, *parts: object
) -> list[Unit]:
    """This process's units of a step; where none falls to it, one that has no weight."""
    own = processes.mine(indices)
    units = make_units(records, own or indices[:1], needs, *parts)
    return units if own else [replace(unit, weight=0.0) for unit in units]
