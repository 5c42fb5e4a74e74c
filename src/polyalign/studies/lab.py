"""The laboratory: methods run in the exact worlds, and how far they end from what theory says.

A method is run by the same declarations, units, engine and loops as on a language model; only the
policy and the records are small enough to know the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from polyalign.errors import OptionError, nearest
from polyalign.feedback.records import Record
from polyalign.feedback.units import assemble, make_units
from polyalign.loops.epochs import stage_needs
from polyalign.loops.run import run as run_session
from polyalign.loops.session import Quiet, Session, Settings
from polyalign.methods import get
from polyalign.policies.control import GaussianPolicy
from polyalign.policies.tabular import BilinearPolicy, SequencePolicy, TabularPolicy
from polyalign.protocols import Policy
from polyalign.recipe import Declaration, Method, Schedule, Update
from polyalign.types import Batch, State
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.discrete import Discrete
from polyalign.worlds.loglinear import LogLinear
from polyalign.worlds.lqr import Lqr
from polyalign.worlds.sequences import Sequences

World = Discrete | Lqr
Measure = Callable[[Any, "LabRun"], float]
"""How far the policy of a finished run in a world is from what theory says, at least 0."""


def policy_for(world: World) -> Policy:
    """The world's start policy: the reference as a table, or a Gaussian that does nothing."""
    match world:
        case Sequences():
            return SequencePolicy(world.logits, world.length, world.eos)
        case LogLinear():
            return BilinearPolicy(world.gold * 0.0, world.phi, world.psi)
        case Bandit():
            return TabularPolicy(world.start)
        case Lqr():
            return GaussianPolicy(world.state_size, world.action_size)
    raise OptionError(f"There is no policy for {type(world).__name__}.", "Use a world of worlds/.")


class Watch(Quiet):
    """Hooks that measure a policy in its world every few steps."""

    def __init__(self, world: World, every: int) -> None:
        super().__init__()
        self.world, self.every = world, every
        self.curve: list[dict[str, float]] = []

    def step(self, session: Session, row: dict[str, Any]) -> None:
        super().step(session, row)
        if row["step"] % self.every == 0:
            point = {"step": float(row["step"])}
            if "loss" in row:
                point["loss"] = float(row["loss"])
            if isinstance(self.world, Discrete):
                point |= self.world.point(session.policy)._asdict()
            self.curve.append(point)


@dataclass(frozen=True)
class LabRun:
    """A finished run: the trained policy, its session, and the world's curve along it."""

    policy: Policy
    session: Session
    curve: list[dict[str, float]]
    seconds: float

    def _policy_update(self) -> tuple[State, Update]:
        session = self.session
        return next(
            (session.states[i], update)
            for i, update in enumerate(session.stage.updates)
            if "policy" in update.trains
        )

    def batch(self, epoch: int = 0) -> Batch:
        """All records as one batch; what is random about them is a function of ``epoch``."""
        session = self.session
        every = range(len(session.records))
        units = make_units(session.records, every, stage_needs(session), "lab", epoch)
        return session.with_references(assemble(units, session.policy.encode))

    def loss(self) -> float:
        """The policy's loss over all records as it is now."""
        state, update = self._policy_update()
        return self.session.engine.evaluate(update, self.batch(), state).loss

    def stationarity(self, draws: int = 1) -> float:
        """Largest absolute gradient entry of the policy's update over all records.

        ``draws``: over how many epochs' random parts (mismatched answers) it is averaged.
        """
        state, update = self._policy_update()
        parameters = self.session.policy.trainable().values()
        for epoch in range(draws):
            self.session.engine.backward(update, self.batch(epoch), state)
        largest = max(float(p.grad.abs().max()) for p in parameters if p.grad is not None)
        for p in parameters:
            p.grad = None
        return largest / draws


def train(
    method: str,
    world: World,
    records: Sequence[Record] = (),
    hyper: Mapping[str, Any] | None = None,
    *,
    settings: Settings | None = None,
    steps: int = 500,
    policy: Policy | None = None,
    environment: Any = None,
) -> LabRun:
    """Run a method in a world through the public loops.

    Without ``settings``: ``steps`` full-batch Adam steps with a cosine decay, which end at the
    population optimum to many digits.
    """
    make = _maker(get(method), dict(hyper or {}))
    policy = policy or policy_for(world)
    if settings is None:
        settings = exact(len(records), steps)
    watch = Watch(world, max(1, steps // 20))
    session = Session(
        make,
        policy,
        records,
        settings,
        hooks=watch,
        judge=world.judge if isinstance(world, Discrete) else None,
        environment=environment,
    )
    begin = time.perf_counter()
    run_session(session)
    return LabRun(policy, session, watch.curve, time.perf_counter() - begin)


def _maker(declared: Declaration, hyper: Mapping[str, Any]) -> Callable[[float], Method]:
    """The method at a progress; made once where no hyper-parameter is a schedule."""
    fixed = declared(**hyper)
    if any(isinstance(value, Schedule) for value in fixed.hyper.values()):
        return lambda progress: declared(progress=progress, **hyper)
    return lambda progress: fixed


def exact(batch: int, steps: int, lr: float = 0.1, **more: Any) -> Settings:
    """Settings for a population objective: the whole batch, no clipping, a rate that dies out."""
    chosen: dict[str, Any] = {
        "epochs": float(steps),
        "batch": max(batch, 1),
        "lr": lr,
        "betas": (0.9, 0.95),
        "schedule": "cosine",
        "warmup": 0.02,
        "clip": None,
    }
    return Settings(**(chosen | more))


@dataclass(frozen=True)
class Experiment:
    """One row of the laboratory's table, as data.

    ``world`` makes the world, ``records`` its feedback; ``measure`` says how far the end is from
    theory, in the words of ``what``; it must fall below ``tolerance``.
    """

    method: str
    what: str
    world: Callable[[], World]
    measure: Measure
    tolerance: float
    records: Callable[[Any], Sequence[Record]] = lambda world: ()
    hyper: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 300
    settings: Callable[[Sequence[Record], int], Settings] = lambda records, steps: exact(
        len(records), steps
    )
    policy: Callable[[Any], Policy] = policy_for
    environment: Callable[[Any], Any] = lambda world: None


@dataclass(frozen=True)
class LabResult:
    """What an experiment gave. ``reward`` and ``kl`` are None in worlds without enumeration."""

    name: str
    method: str
    hyper: Mapping[str, Any]
    world: str
    what: str
    distance: float
    tolerance: float
    reached: bool
    reward: float | None
    kl: float | None
    steps: int
    seconds: float
    curve: list[dict[str, float]]


def perform(name: str, experiment: Experiment) -> LabResult:
    """Run one experiment and measure it."""
    world = experiment.world()
    records = experiment.records(world)
    run = train(
        experiment.method,
        world,
        records,
        experiment.hyper,
        settings=experiment.settings(records, experiment.steps),
        steps=experiment.steps,
        policy=experiment.policy(world),
        environment=experiment.environment(world),
    )
    distance = experiment.measure(world, run)
    point = world.point(run.policy) if isinstance(world, Discrete) else None
    return LabResult(
        name,
        experiment.method,
        dict(experiment.hyper),
        type(world).__name__.lower(),
        experiment.what,
        distance,
        experiment.tolerance,
        distance <= experiment.tolerance,
        None if point is None else point.reward,
        None if point is None else point.kl,
        run.session.position["step"],
        run.seconds,
        run.curve,
    )


def lab(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The laboratory's table, one plain dictionary a row; all experiments when no name is given.

    A name is an experiment ("cdpo") or a method, which stands for all of its experiments. Raises
    :class:`OptionError` for an unknown name.
    """
    from polyalign.studies.experiments import EXPERIMENTS

    chosen: dict[str, Experiment] = {}
    for name in names or EXPERIMENTS:
        found = {k: e for k, e in EXPERIMENTS.items() if name in (k, e.method)}
        if not found:
            raise OptionError(
                f"The laboratory has no experiment '{name}'.", nearest(name, EXPERIMENTS)
            )
        chosen |= {name: found[name]} if name in found else found
    return [asdict(perform(name, experiment)) for name, experiment in chosen.items()]
