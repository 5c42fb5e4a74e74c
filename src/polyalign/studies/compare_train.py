"""Training at a budget: a method's own loops, ended when its tokens are spent."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from polyalign.errors import OptionError
from polyalign.feedback.conditioning import Condition
from polyalign.feedback.records import Record
from polyalign.loops.epochs import condition_of
from polyalign.loops.length import per_epoch, steps_of
from polyalign.loops.run import run as run_loops
from polyalign.loops.session import Quiet, Session, Settings
from polyalign.methods import get
from polyalign.policies.counted import Counted, CountedJudge, Known, Tokens
from polyalign.protocols import Judge, Policy
from polyalign.recipe import Declaration, Method, Schedule
from polyalign.runs.plan import Facts, settings_of
from polyalign.runs.prepare import chosen, survey
from polyalign.runs.start import parameters
from polyalign.studies.compare_bench import Bench, ShuffledJudge
from polyalign.studies.compare_part import Keeper, Part
from polyalign.studies.compare_setup import Row

MICRO = 4096
"""Tokens in a micro-batch: fixed, so that results do not depend on the machine's free memory."""

PROBE = 3
"""Optimizer steps that find out what a step costs."""

ATTEMPTS = 3
"""How often a method of several stages may be begun anew because its last stage ran dry."""


class Enough(Exception):
    """The budget is spent."""


class Meter(Quiet):
    """Ends a session at its budget, keeps its learning curve, and saves it now and then."""

    def __init__(
        self, spent: Tokens, limit: float, steps: int | None = None, keeper: Keeper | None = None
    ) -> None:
        super().__init__()
        self.spent, self.limit, self.steps = spent, limit, steps
        self.keeper = keeper or Keeper(None)
        self.costs: list[Tokens] = []
        self._last = 0

    def step(self, session: Session, row: dict[str, Any]) -> None:
        super().step(session, row | {"computed": self.spent.total})

    def put(self, name: str, value: Any, own: bool = False) -> None:
        super().put(name, value, own)
        self.keeper.new[name] = value

    def boundary(self, session: Session) -> None:
        cost = self.spent.total - self._last
        self._last = self.spent.total
        self.costs.append(replace(self.spent))
        # The step that would go beyond the budget is not begun.
        if self.spent.total + cost > self.limit:
            raise Enough
        if self.steps is not None and session.position["step"] >= self.steps:
            raise Enough
        if self.keeper.due():
            self.keeper.save(session, self.counted())

    def counted(self) -> dict[str, Any]:
        """What was spent, and the rows so far, as plain data."""
        return {"spent": asdict(self.spent), "last": self._last, "rows": self.rows}

    def restore(self, counted: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
        """Go on counting from where a checkpoint was."""
        for name, value in counted["spent"].items():
            setattr(self.spent, name, value)
        self._last, self.rows = counted["last"], list(counted["rows"])
        self.kept = dict(kept)


@dataclass(frozen=True)
class Trained:
    """What a training run left: the work done, and its curve; the policy was trained in place.

    ``before``: seconds that earlier, interrupted processes had spent on it; ``condition``: with
    what the policy is asked from then on.
    """

    spent: Tokens
    steps: int
    planned: int
    rows: list[dict[str, Any]]
    settings: Settings
    before: float = 0.0
    condition: Condition | None = None


def train(
    bench: Bench,
    row: Row,
    seed: int,
    budget: int,
    *,
    records: Sequence[Record],
    extra: Mapping[str, Any] | None = None,
    known: Known | None = None,
    shuffle: int | None = None,
    part: Part | None = None,
    name: str = "run",
) -> Trained:
    """Train ``bench.policy`` with a row's method for at most ``budget`` computed tokens.

    ``extra``: options and hyper-parameters on top of the row's. Raises :class:`OptionError` for a
    budget that not even one step fits into.
    """
    declaration = get(row.method)
    extra = dict(extra or {})
    own = {name: extra.pop(name) for name in list(extra) if name in declaration.schema}
    hyper = {**row.hyper, **own}
    config = bench.config(replace(row, hyper=hyper), seed).model_copy(update=extra)
    policy = bench.policy(row, seed)
    method = declaration(**hyper)
    kept, measured = survey(records, policy, method, lambda *_: None, bench.progress)
    records = chosen(records, kept) if len(kept) < len(records) else records
    facts = Facts(
        parameters=parameters(policy),
        trainable=sum(p.numel() for p in policy.trainable().values()),
        hidden=int(getattr(policy.model.config, "hidden_size", 512)),
        layers=int(getattr(policy.model.config, "num_hidden_layers", 12)),
        model="",
        data="",
        full=policy.peft is None,
        dtype=str(policy.model.dtype),
        device=str(policy.device),
        survey=measured,
    )
    # A budget is spent step by step, on the reference too.
    settings = replace(
        settings_of(config, declaration, facts, config.micro or MICRO), references_first=False
    )
    judge = bench.judge
    if shuffle is not None and judge is not None:
        judge = ShuffledJudge(judge, shuffle)
    return at_budget(
        declaration, hyper, policy, records, settings, judge, budget, known, part, name
    )


def at_budget(
    declaration: Declaration,
    hyper: Mapping[str, Any],
    policy: Policy,
    records: Sequence[Record],
    settings: Settings,
    judge: Judge | None,
    budget: int,
    known: Known | None = None,
    part: Part | None = None,
    name: str = "run",
) -> Trained:
    """Train a policy in place with a method's own loops until ``budget`` tokens are computed.

    A few steps, which are then undone, find out what a step costs, so that the learning rate's
    schedule ends where the budget does. With ``part`` an interrupted run goes on where it was,
    under its ``name``.
    """
    method = declaration(**hyper)
    part = part or Part(None)
    start = {key: value.clone() for key, value in policy.tensors().items()}

    def session_of(settings: Settings, meter: Meter) -> Session:
        policy.load(start)
        session = Session(
            maker(declaration, hyper),
            Counted(policy, meter.spent),
            records,
            settings,
            hooks=meter,
            judge=None if judge is None else CountedJudge(judge, meter.spent),
        )
        assert isinstance(session.start, Counted)
        session.start.known = known
        return session

    def probed() -> list[dict[str, int]]:
        # A run of more than one epoch keeps its references, as a long one would.
        meter = Meter(Tokens(), 1e30, PROBE)
        with contextlib.suppress(Enough):
            run_loops(session_of(replace(settings, epochs=2 * max(settings.epochs, 1.0)), meter))
        return [asdict(cost) for cost in meter.costs]

    def attempt(settings: Settings, keeper: Keeper) -> tuple[Meter, int]:
        """One run at the budget, or what is left of one; the stage in which it ended."""
        meter = Meter(Tokens(), budget, keeper=keeper)
        session = session_of(settings, meter)
        found = keeper.newest()
        if found is not None:
            tree, kept = found
            meter.restore(tree["counted"], kept)
            if tree["whole"]:
                policy.load(tree["session"]["policy"])
                return meter, int(tree["counted"]["stage"])
            session.restore(tree["session"])
            # What restoring reads again was paid for already.
            meter.restore(tree["counted"], kept)
        with contextlib.suppress(Enough):
            run_loops(session, opened=found is not None)
        keeper.save(session, meter.counted() | {"stage": session.position["stage"]}, whole=True)
        return meter, session.position["stage"]

    costs = [Tokens(**cost) for cost in part.once(f"{name}-cost", probed)]
    epochs = _epochs(method, records, settings, costs, budget)
    if epochs is None:
        raise OptionError(
            f"One optimizer step of {declaration.id} computes {costs[0].total:,} tokens, more"
            f" than the budget of {budget:,}.",
            "Raise --budget, or make steps smaller with --batch.",
        )
    before = 0.0
    for left in reversed(range(ATTEMPTS)):
        run = replace(settings, epochs=epochs)
        planned = sum(steps_of(stage, len(records), run) for stage in method.stages)
        keeper = part.keeper(f"{name}-{left}")
        meter, stage = attempt(run, keeper)
        before += keeper.before
        share = len(meter.rows) / max(planned, 1)
        if stage == len(method.stages) - 1 or left == 0:
            break
        epochs *= min(share, 0.98)
    kept = meter.get(f"stage-{stage}-records") or ()
    condition = condition_of(method.stages[stage], kept)
    return Trained(meter.spent, len(meter.rows), planned, meter.rows, run, before, condition)


def maker(declaration: Declaration, hyper: Mapping[str, Any]) -> Any:
    """The method at a progress; made once where nothing is scheduled."""
    fixed = declaration(**hyper)
    if any(isinstance(value, Schedule) for value in fixed.hyper.values()):
        return lambda progress: declaration(progress=progress, **hyper)
    return lambda progress: fixed


def _epochs(
    method: Method,
    records: Sequence[Record],
    settings: Settings,
    costs: Sequence[Tokens],
    budget: int,
) -> float | None:
    """Passes over the data that the budget pays for; None where it does not pay for one step.

    References that stand still are computed in the first pass only.
    """
    once = all(s.reference(n).every == 0 for s in method.stages for n in s.references)
    live = any(
        "(" in n for s in method.stages for u in s.updates for n in u.objective.needs.signals
    )
    steps = [b.total - a.total for a, b in itertools.pairwise([Tokens(), *costs])]
    kept = [b.reference - a.reference for a, b in itertools.pairwise([Tokens(), *costs])]
    cost = sum(steps) / len(steps)
    reference = sum(kept) / len(kept) if once and not live else 0.0
    if steps[0] > budget:
        return None
    stage = method.stages[0]
    batches = per_epoch(stage, len(records), settings)
    passes = max((u.epochs for u in stage.updates), default=1)
    share = sum(s.share for s in method.stages)
    single = batches * passes * cost * share
    if single >= budget or stage.streams["data"].kind != "records":
        return budget / single
    later = batches * passes * (cost - reference) * share
    return 1 + (budget - single) / max(later, 1.0)


def candidates(
    search: Mapping[str, Sequence[Any]], declaration: Declaration
) -> list[dict[str, Any]]:
    """The grid of a declared search, as far as a method has the options."""
    from polyalign.runs.config import TrainConfig

    known = [n for n in search if n in declaration.schema or n in TrainConfig.model_fields]
    return [
        dict(zip(known, values, strict=True))
        for values in itertools.product(*(search[name] for name in known))
    ]
