"""The laboratory: methods run in the exact worlds, and how far they end from what theory says.

A method is run by the same declarations, units, engine and loops as on a language model; only the
policy and the records are small enough to know the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polyalign.errors import OptionError
from polyalign.feedback.draws import draw
from polyalign.feedback.records import Record
from polyalign.feedback.units import assemble, make_units
from polyalign.loops.epochs import stage_needs, stage_records
from polyalign.loops.run import run as run_session
from polyalign.loops.session import Quiet, Session, Settings
from polyalign.methods import get
from polyalign.policies.control import GaussianPolicy
from polyalign.policies.tabular import BilinearPolicy, SequencePolicy, TabularPolicy
from polyalign.protocols import Policy
from polyalign.recipe import Declaration, Method, Schedule, Update
from polyalign.studies import tiny_lm
from polyalign.studies.finish import LARGEST, newton
from polyalign.types import Batch, State, Stateful
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.discrete import Discrete
from polyalign.worlds.loglinear import LogLinear
from polyalign.worlds.lqr import Lqr
from polyalign.worlds.sequences import Sequences
from polyalign.worlds.tiny_lm import TinyLm

World = Discrete | Lqr | TinyLm

EMPTY = -40.0
"""Log-probability by which a closed form's answer without mass is approached."""


def policy_for(world: World) -> Policy:
    """The world's start policy: the reference as a table, a Gaussian that does nothing, or the
    tiny language model (trained on the spot, once a machine).
    """
    match world:
        case Sequences():
            return SequencePolicy(world.logits, world.length, world.eos)
        case LogLinear():
            return BilinearPolicy(world.gold * 0.0, world.phi, world.psi)
        case Bandit():
            return TabularPolicy(world.start)
        case Lqr():
            return GaussianPolicy(world.state_size, world.action_size)
        case TinyLm():
            return tiny_lm.load()
    raise OptionError(f"There is no policy for {type(world).__name__}.", "Use a world of worlds/.")


def table_for(world: World, law: Tensor) -> Tensor | None:
    """The logits of the world's table policy with a log-law [X, Y]; None where it has no table."""
    match world:
        case Sequences():
            return world.conditionals(law.clamp(min=EMPTY))
        case Bandit():
            return law.clamp(min=EMPTY)
    return None


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
    """A run: the trained policy, its session, and the world's curve along it."""

    world: World
    policy: Policy
    session: Session
    curve: list[dict[str, float]]
    seconds: float

    @property
    def hyper(self) -> Mapping[str, Any]:
        """The method's options, defaults included."""
        return self.session.method.hyper

    def again(self, method: str, hyper: Mapping[str, Any], **options: Any) -> LabRun:
        """Another method on the same world, records and settings."""
        options = {"settings": self.session.settings} | options
        return train(method, self.world, self.session.records, hyper, **options)

    def _policy_update(self) -> tuple[State, Update]:
        session = self.session
        return next(
            (session.states[i], update)
            for i, update in enumerate(session.stage.updates)
            if "policy" in update.trains
        )

    def batch(self, epoch: int = 0) -> Batch:
        """The last stage's records as one batch; what is random about them is a function of
        ``epoch``.
        """
        session = self.session
        records = stage_records(session)
        needs = stage_needs(session)
        units = make_units(records, range(len(records)), needs, "lab", epoch)
        batch = draw(assemble(units, session.policy.encode), needs, "lab", epoch)
        return session.references.fill(batch, session.position["stage_step"])

    def loss(self) -> float:
        """The policy's loss over all records as it is now."""
        state, update = self._policy_update()
        return self.session.engine.evaluate(update, self.batch(), state).loss

    def stationarity(self, draws: int = 1) -> float:
        """Largest absolute gradient entry of the policy's update over all records.

        ``draws``: over how many epochs' random parts (mismatched answers) it is averaged.
        """
        batches = [self.batch(epoch) for epoch in range(draws)]
        total = sum(self._gradient(batch) for batch in batches)
        return float(torch.as_tensor(total).abs().max()) / draws

    def scatter(self) -> float:
        """Variance of the policy update's gradient from one record to the next, summed over all
        parameters, where the policy is now.
        """
        session = self.session
        records, needs = stage_records(session), stage_needs(session)
        each = []
        for i in range(len(records)):
            units = make_units(records, [i], needs, "lab", 0)
            each.append(
                self._gradient(draw(assemble(units, session.policy.encode), needs, "lab", 0))
            )
        return float(torch.stack(each).var(0).sum())

    def _gradient(self, batch: Batch, fresh: bool = False) -> Tensor:
        """The policy update's gradient over a batch, all parameters in one row [P].

        ``fresh``: the objective remembers no step, only this batch's statistic.
        """
        state, update = self._policy_update()
        if fresh and isinstance(update.objective, Stateful):
            state = update.objective.start()
        parameters = list(self.session.policy.trainable().values())
        self.session.engine.backward(update, batch, state)
        flat = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
                          for p in parameters])  # fmt: skip
        for p in parameters:
            p.grad = None
        return flat

    @property
    def smooth(self) -> bool:
        """Whether the run's end is a zero of a gradient that stands still: one stage and update,
        no statistic of the steps, no moving reference, nothing drawn anew.
        """
        stages, session = self.session.method.stages, self.session
        stage = stages[-1]
        return (
            len(stages) == 1
            and len(stage.updates) == 1
            and stage.updates[0].trains == ("policy",)
            and stage.updates[0].objective.needs.couples != "statistics"
            and all(stream.kind == "records" for stream in stage.streams.values())
            and not any(stage.reference(n).every for n in session.cast.references)
            and sum(p.numel() for p in session.policy.trainable().values()) <= LARGEST
        )

    def finish(self) -> None:
        """Go on to the last digits by Newton's method on the engine's gradient."""
        (parameter,) = self.session.policy.trainable().values()
        batch = self.batch()

        def gradient(flat: Tensor) -> Tensor:
            with torch.no_grad():
                parameter.copy_(flat.reshape(parameter.shape))
            return self._gradient(batch)

        end = newton(gradient, parameter.detach().flatten())
        with torch.no_grad():
            parameter.copy_(end.reshape(parameter.shape))

    def gradient_at(self, law: Tensor) -> float | None:
        """Largest gradient entry over the population with the policy set to a log-law [X, Y].

        None where the policy is no table, or where more than the policy is trained.
        """
        if table_for(self.world, law) is None or not self.smooth:
            return None
        return float(self.gradient_table(law).abs().max())

    def gradient_table(self, law: Tensor) -> Tensor:
        """The population gradient by logits with the policy set to a log-law [X, Y].

        A statistic of the step, where the objective has one, is that of this law.
        """
        table = table_for(self.world, law)
        (parameter,) = self.session.policy.trainable().values()
        now = parameter.detach().clone()
        with torch.no_grad():
            parameter.copy_(now if table is None else table)
        gradient = self._gradient(self.batch(), fresh=True).reshape(parameter.shape)
        with torch.no_grad():
            parameter.copy_(now)
        return gradient


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
        judge=None if isinstance(world, Lqr) else world.judge,
        environment=environment,
    )
    begin = time.perf_counter()
    run_session(session)
    return LabRun(world, policy, session, watch.curve, time.perf_counter() - begin)


def _maker(declared: Declaration, hyper: Mapping[str, Any]) -> Callable[[float], Method]:
    """The method at a progress; made once where no hyper-parameter is a schedule."""
    fixed = declared(**hyper)
    if any(isinstance(value, Schedule) for value in fixed.hyper.values()):
        return lambda progress: declared(progress=progress, **hyper)
    return lambda progress: fixed


def exact(batch: int, steps: int, lr: float = 0.1, **more: Any) -> Settings:
    """Settings for a population objective: the whole batch, no clipping, a rate that dies out."""
    chosen = Settings(
        epochs=float(steps),
        batch=max(batch, 1),
        lr=lr,
        betas=(0.9, 0.95),
        schedule="cosine",
        warmup=0.02,
        clip=None,
    )
    return replace(chosen, **more)
