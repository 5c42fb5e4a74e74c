"""A training session: everything that lives while a method's stages run, and its state tree.

A session knows policies, records and updates; files, screens and signals are its hooks' business.
Its randomness is a function of (seed, purpose, stage, epoch or round, key), so its whole state is
the trained tensors, the optimizers' memory, the objectives' state and a position.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from polyalign.engine import processes, sharding
from polyalign.engine.scoring import Cast
from polyalign.engine.step import Engine, Report
from polyalign.errors import NumericsError
from polyalign.feedback.records import Record
from polyalign.feedback.units import seed_of
from polyalign.loops.references import References
from polyalign.optimizers.build import build, export_state, factor, import_state
from polyalign.protocols import Judge, Policy, Sampling
from polyalign.recipe import Method, Stage, Update
from polyalign.types import Batch, State, Stateful


@dataclass(frozen=True)
class Settings:
    """What a run chooses beside the method: sizes, steps, rates.

    ``batch``: units in one optimizer step; ``budget``: decisions in one micro-batch at most;
    ``warmup``: share (below 1) or number of steps; ``clip``: largest gradient norm, None: no
    clipping; ``reference_states``: the dtype in which a constant reference's states are kept where
    its whole law is read again, None: they are computed again; ``references_first``: references
    are scored before the first step, where that can be done, and not held in memory.
    """

    seed: int = 0
    epochs: float = 1.0
    max_steps: int | None = None
    batch: int = 16
    budget: int | None = None
    lr: float = 1e-4
    module_lr: float | None = None
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: str = "linear"
    warmup: float = 0.1
    clip: float | None = 1.0
    reference_states: str | None = None
    references_first: bool = False
    eval_every: int = 0
    sampling: Sampling = field(default_factory=Sampling)


class Hooks(Protocol):
    """What a session tells the outside, and asks it."""

    def step(self, session: Session, row: dict[str, Any]) -> None:
        """An optimizer step is done; ``row`` holds its metrics. May raise to stop."""
        ...

    def boundary(self, session: Session) -> None:
        """The session's state is complete here: save it if due, stop if asked."""
        ...

    def put(self, name: str, value: Any, own: bool = False) -> None:
        """Keep a tree (tensors and plain data) under a name, for a later process.

        All processes of a run keep the same, together, unless it is a process's ``own``.
        """
        ...

    def get(self, name: str) -> Any | None:
        """What was kept under a name, or None."""
        ...

    def place(self, name: str) -> Path | None:
        """A folder for what is too large to be kept as a tree; None where there is no disk."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """Something long goes on: ``done`` of ``total``."""
        ...


class Quiet:
    """Hooks that keep things in memory and say nothing."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []

    def step(self, session: Session, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def boundary(self, session: Session) -> None: ...

    def put(self, name: str, value: Any, own: bool = False) -> None:
        self.kept[name] = value

    def get(self, name: str) -> Any | None:
        return self.kept.get(name)

    def place(self, name: str) -> Path | None:
        return None

    def progress(self, what: str, done: int, total: int) -> None: ...


class Session:
    """Runs a method on a policy and records.

    ``make`` gives the method at a progress in [0, 1] (its schedules resolved); ``opens`` loads a
    constant policy by name, for references that are other models. ``reopen`` gives the start again,
    as a constant, once the policy has moved; without it a copy is kept from the beginning.
    """

    def __init__(
        self,
        make: Callable[[float], Method],
        policy: Policy,
        records: Sequence[Record],
        settings: Settings,
        *,
        hooks: Hooks | None = None,
        judge: Judge | None = None,
        environment: Any = None,
        eval_records: Sequence[Record] = (),
        opens: Callable[[str], Policy] | None = None,
        reopen: Callable[[], Policy] | None = None,
    ) -> None:
        self.make = make
        self.opens = opens
        self.method = make(0.0)
        self.policy = policy
        self.records = records
        self.eval_records = eval_records
        self.settings = settings
        self.hooks: Hooks = hooks or Quiet()
        self.judge = judge
        self.environment = environment
        self.reopen = reopen
        self._start = None if reopen else policy.freeze()
        self.cast = Cast(policy, {}, {})
        self.engine = Engine(self.cast, settings.budget)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.parameters: dict[str, dict[str, nn.Parameter]] = {}
        self.states: list[State] = []
        self.references = References(self)
        self.position = {"stage": 0, "stage_step": 0, "step": 0, "tokens": 0}
        self.loop_state: dict[str, Any] = {}

    @property
    def start(self) -> Policy:
        """The policy as it was before training, a constant."""
        if self._start is None:
            assert self.reopen is not None
            self._start = self.policy.freeze() if self.untouched else self.reopen()
        return self._start

    @property
    def untouched(self) -> bool:
        """Whether the policy is still the start, of which no copy is kept."""
        return self.reopen is not None and self.position["stage"] == self.position["step"] == 0

    def let_go(self) -> None:
        """Hold no copy of the start, where it can be had again and no reference is it."""
        held = any(policy is self._start for policy in self.cast.references.values())
        if self.reopen is not None and not held:
            self._start = None

    @property
    def stage(self) -> Stage:
        """The stage that is running, with schedules as they are now."""
        return self.method.stages[self.position["stage"]]

    def seed(self, purpose: str, *parts: object) -> int:
        """A seed that is a function of the run's seed, the purpose, the stage and ``parts``."""
        return seed_of(self.settings.seed, purpose, self.position["stage"], *parts)

    # Opening a stage

    def open(self) -> None:
        """Make the stage's references, modules, optimizers and objective states."""
        stage, index = self.stage, self.position["stage"]
        if stage.start == "start" and index > 0 and self.position["stage_step"] == 0:
            self.policy.load(self.hooks.get("stage-0-start") or {})
        if len(self.method.stages) > 1 and not self._has(f"stage-{index}-start"):
            self.hooks.put(f"stage-{index}-start", self.policy_tensors())
        self.references.open(stage)
        self.cast.modules.clear()
        for name, module in stage.modules.items():
            if module.target_of is None:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.seed("module", name))
                    self.cast.modules[name] = self.policy.build(module.kind, module.options)
        for name, module in stage.modules.items():
            if module.target_of is not None:
                target = copy.deepcopy(self.cast.modules[module.target_of])
                self.cast.modules[name] = target.requires_grad_(False)
        self.parameters = {
            name: self.policy.trainable()
            if name == "policy"
            else dict(self.cast.modules[name].named_parameters())
            for name in sorted({name for update in stage.updates for name in update.trains})
        }
        self.optimizers = {name: self._optimizer(stage, name) for name in self.parameters}
        self.states = [
            update.objective.start() if isinstance(update.objective, Stateful) else {}
            for update in stage.updates
        ]
        for update in stage.updates:
            self.cast.match(update.objective.needs)

    def _has(self, name: str) -> bool:
        """Whether something is kept under a name, as the first process sees it."""
        return bool(processes.gather(self.hooks.get(name) is not None)[0])

    def policy_tensors(self) -> dict[str, Tensor]:
        """A copy of what the policy trains, on the CPU."""
        return {name: value.clone().cpu() for name, value in self.policy.tensors().items()}

    def _optimizer(self, stage: Stage, name: str) -> torch.optim.Optimizer:
        chosen = next(u.optimizer for u in stage.updates if name in u.trains)
        settings = self.settings
        default = settings.lr if name == "policy" else (settings.module_lr or settings.lr)
        decay = settings.weight_decay if chosen.weight_decay is None else chosen.weight_decay
        return build(
            chosen.name if chosen.name != "adamw" else settings.optimizer,
            self.parameters[name],
            lr=default if chosen.lr is None else chosen.lr,
            betas=chosen.betas or settings.betas,
            weight_decay=decay,
        )

    # One optimizer step

    def train(self, batch: Batch, steps: int, stream: str = "data") -> dict[str, float]:
        """One optimizer step of the stage's updates of ``stream``; ``steps`` the stage will have.

        Returns the metrics; those of updates that do not train the policy carry the module's name.
        """
        position = self.position
        self.method = self.make(min(position["stage_step"] / max(steps, 1), 1.0))
        stage = self.stage
        due = [
            (i, update)
            for i, update in enumerate(stage.updates)
            if update.stream == stream and position["stage_step"] % update.every == 0
        ]
        scale = factor(self.settings.schedule, position["stage_step"], steps, self.settings.warmup)
        row: dict[str, float] = {}
        for group in [due] if stage.together else [[one] for one in due]:
            updates = [update for _, update in group]
            states = [self.states[i] for i, _ in group]
            found = self.engine.backward_all(updates, batch, states)
            for (i, _), (_, state) in zip(group, found, strict=True):
                self.states[i] = state
            for name in sorted({name for _, update in group for name in update.trains}):
                norm = self._move(name, scale)
                row["grad_norm" if name == "policy" else f"grad_norm/{name}"] = norm
            for update, (report, _) in zip(updates, found, strict=True):
                row.update(_named(update, report))
                position["tokens"] += report.tokens
        self._follow(stage)
        row["lr"] = scale * self.optimizers[min(self.optimizers)].defaults["lr"]
        if "policy" in self.optimizers:
            row["lr"] = scale * self.optimizers["policy"].defaults["lr"]
        position["stage_step"] += 1
        position["step"] += 1
        self.references.move(stage)
        return row

    def _move(self, name: str, scale: float) -> float:
        """Step one optimizer with the gradients that lie there; returns their norm before
        clipping.
        """
        optimizer, parameters = self.optimizers[name], list(self.parameters[name].values())
        processes.add_gradients(parameters)
        limit = self.settings.clip if self.settings.clip is not None else float("inf")
        norm = sharding.total_norm(nn.utils.clip_grad_norm_(parameters, limit))
        if norm != norm or norm == float("inf"):
            raise NumericsError(
                f"The gradient of '{name}' is not finite at step {self.position['step'] + 1}.",
                "Lower the learning rate, or use dtype=float32.",
            )
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def _follow(self, stage: Stage) -> None:
        """Move target copies towards the modules they follow."""
        for name, module in stage.modules.items():
            if module.target_of is None:
                continue
            leader = dict(self.cast.modules[module.target_of].named_parameters())
            for key, value in self.cast.modules[name].named_parameters():
                value.lerp_(leader[key], module.tau)

    # State

    def state(self) -> dict[str, Any]:
        """The whole state as a tree of tensors and plain data; valid at boundaries."""
        return {
            "position": dict(self.position),
            "policy": self.policy_tensors(),
            "modules": {name: dict(m.state_dict()) for name, m in self.cast.modules.items()},
            "optimizers": {
                name: export_state(optimizer, self.parameters[name])
                for name, optimizer in self.optimizers.items()
            },
            "states": [dict(state) for state in self.states],
            "references": {
                name: {k: value.clone() for k, value in policy.tensors().items()}
                for name, policy in self.cast.references.items()
                if self.stage.reference(name).every
            },
            "loop": copy.deepcopy(self.loop_state),
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` gave, in a session made with the same arguments."""
        self.position = dict(tree["position"])
        self.policy.load(tree["policy"])
        self.open()
        for name, tensors in tree["modules"].items():
            self.cast.modules[name].load_state_dict(tensors)
        for name, memory in tree["optimizers"].items():
            import_state(self.optimizers[name], self.parameters[name], memory)
        self.states = [dict(state) for state in tree["states"]]
        for name, tensors in tree["references"].items():
            self.cast.references[name].load(tensors)
        self.references.restore(["eval", *range(self.position["stage_step"])])
        self.loop_state = copy.deepcopy(dict(tree["loop"]))


def _named(update: Update, report: Report) -> dict[str, float]:
    """Metrics under the names people know; an update of modules only carries their names."""
    if "policy" in update.trains:
        return {"loss": report.loss, **report.metrics}
    name = "+".join(update.trains)
    return {f"loss/{name}": report.loss, **{f"{name}/{k}": v for k, v in report.metrics.items()}}
