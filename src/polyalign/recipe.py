"""Recipes: what a method that trains declares, and how a declaration becomes a command.

A method is a function whose signature is its hyper-parameter schema; it returns a
:class:`Method`, a list of stages. Nothing here computes: loops and engine read these values.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from polyalign.errors import OptionError, nearest
from polyalign.feedback.records import Record, kind_name
from polyalign.hyper import (
    Count,
    Names,
    NonNegative,
    NonNegatives,
    Positive,
    Positives,
    Probability,
    Real,
    Schedule,
    Share,
    Smoothing,
    listed,
)
from polyalign.types import Objective


@dataclass(frozen=True)
class Optimizer:
    """How a step is taken; what is None comes from the run's configuration."""

    name: str = "adamw"
    lr: float | None = None
    betas: tuple[float, float] | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class Update:
    """One objective and what it trains; everything not in ``trains`` is constant for it.

    ``every`` n-th optimizer step of the stream; ``epochs`` passes over each rollout;
    ``until`` stops the passes when a metric of this name exceeds the number.
    """

    objective: Objective
    trains: tuple[str, ...] = ("policy",)
    optimizer: Optimizer = field(default_factory=Optimizer)
    stream: str = "data"
    every: int = 1
    epochs: int = 1
    until: tuple[str, float] | None = None


@dataclass(frozen=True)
class Reference:
    """What a policy stays close to, by name: which weights, and when they are taken anew.

    ``weights``: "start" (the policy before training), "previous" (at the start of this stage),
    "stage-N" (at the start of stage N, counted from 0), or "model:NAME", another model or run.
    ``every`` n optimizer steps the reference moves towards the policy by ``mix``
    (1.0 copies); 0 never.
    """

    weights: str = "start"
    every: int = 0
    mix: float = 1.0


@dataclass(frozen=True)
class Module:
    """A trainable thing beside the policy, made by the policy's ``build(kind, options)``.

    ``target_of`` names the module that this one follows with ``x <- (1-tau) x + tau y`` after
    each update that trains that module; it is then not trained itself.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    target_of: str | None = None
    tau: float = 1.0


DataStep = Callable[[Sequence[Record], Any], Sequence[Record]]
"""Records in, records out; the second argument is the loop's context (policies, draws, judge).

A step that never samples says so with ``samples = False``; then sampling options are refused.
"""


@dataclass(frozen=True)
class Source:
    """Where a stream's records come from, and the data steps they pass.

    ``kind`` "records": the given feedback. "rollouts": ``n`` completions of the policy for each
    prompt, judged and credited. "environment": transitions of acting, kept in a replay.
    Sources that are added with ``|`` are used together. For the plan, ``share`` is about which
    share of the records' text the steps leave, and ``each`` how many examples they make of a
    record; a function of the given records where it depends on them.
    """

    kind: Literal["records", "rollouts", "environment"] = "records"
    steps: tuple[DataStep, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    share: float | Callable[[Sequence[Record]], float] = 1.0
    each: Callable[[Sequence[Record]], float] | None = None

    def left(self, records: Sequence[Record]) -> tuple[float, float]:
        """About how many examples, and which share of the text, the steps leave of each record."""
        share = self.share(records) if callable(self.share) else self.share
        return share * (1.0 if self.each is None else self.each(records)), share

    def __rshift__(self, step: DataStep) -> Source:
        return replace(self, steps=(*self.steps, step))


def Records() -> Source:
    """The feedback that the user brings."""
    return Source("records")


def Rollouts(n: int, **options: Any) -> Source:
    """``n`` completions a prompt from the policy, judged; ``options`` of :class:`Sampling` pass
    on.
    """
    return Source("rollouts", options={"n": n, **options})


def Environment(**options: Any) -> Source:
    """Transitions from acting in an environment, with a replay buffer."""
    return Source("environment", options=options)


@dataclass(frozen=True)
class Stage:
    """One stage of a method.

    ``credit`` turns a rollout's verdicts into fields of its units, without gradient, over the whole
    rollout. ``start``: "policy" goes on from where the policy is, "start" begins anew.
    ``together`` computes the gradients of all updates at the same parameters before any moves.
    """

    updates: tuple[Update, ...]
    streams: Mapping[str, Source] = field(default_factory=lambda: {"data": Records()})
    references: Mapping[str, Reference] = field(default_factory=dict)
    modules: Mapping[str, Module] = field(default_factory=dict)
    credit: Callable[..., Any] | None = None
    start: Literal["policy", "start"] = "policy"
    together: bool = False
    share: float = 1.0

    def reference(self, name: str) -> Reference:
        """The declared reference of this name, or the start."""
        return self.references.get(name, Reference())


@dataclass(frozen=True)
class Method:
    """What a declaration returns: stages, with the hyper-parameters that made them.

    ``feedback`` names the kind that this configuration learns from, where it is another than the
    declaration's.
    """

    stages: tuple[Stage, ...]
    declaration: Declaration | None = None
    hyper: Mapping[str, Any] = field(default_factory=dict)
    feedback: type[Record] | None = None


def Offline(objective: Objective, **stage: Any) -> Method:
    """One stage, one update, over the given feedback."""
    return Method((Stage((Update(objective),), **stage),))


def Stages(*stages: Stage) -> Method:
    """Several stages, one after the other."""
    return Method(tuple(stages))


@dataclass(frozen=True)
class Header(ABC):
    """What every kind of method has: who it is, what it reads, and a function with a schema.

    Calling it validates hyper-parameters and gives what the function makes of them.
    """

    kind: ClassVar[str]
    """Which of the catalogue's kinds it is, and so which command uses it."""

    id: str
    make: Callable[..., Any]
    feedback: type[Record]
    title: str
    arxiv: str | None = None
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    family: str = ""
    paper: Mapping[str, Any] = field(default_factory=dict)

    @property
    def doc(self) -> str:
        """Formula, advice, limits and source."""
        return inspect.getdoc(self.make) or ""

    @property
    def schema(self) -> dict[str, inspect.Parameter]:
        """The hyper-parameters by name."""
        return dict(inspect.signature(self.make).parameters)

    def hints(self) -> dict[str, Any]:
        """Type of each hyper-parameter, with its bounds."""
        hints = get_type_hints(self.make, include_extras=True)
        hints.pop("return", None)
        return hints

    def validate(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """All hyper-parameters, defaults filled in; text is read as the type asks.

        Raises :class:`OptionError` naming an unknown name's nearest valid one, or the value and
        what the type allows. A number may be a :class:`Schedule` or its text ``0.5->0.1``.
        """
        parameters, hints = self.schema, self.hints()
        for name in hyper:
            if name not in parameters:
                raise OptionError(f"{self.id} has no option '{name}'.", nearest(name, parameters))
        values: dict[str, Any] = {}
        for name, parameter in parameters.items():
            value = hyper.get(name, parameter.default)
            schedule = Schedule.parse(value) if isinstance(value, str) else value
            if isinstance(schedule, Schedule):
                self._check(name, hints[name], schedule.first)
                self._check(name, hints[name], schedule.last)
                values[name] = schedule
            else:
                values[name] = self._check(name, hints[name], value)
        return values

    def _check(self, name: str, hint: Any, value: Any) -> Any:
        try:
            return TypeAdapter(hint).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]["msg"]
            choices = re.findall(r"'([^']*)'", first) if isinstance(value, str) else []
            default = f"The default is {self.schema[name].default!r}."
            mend = nearest(value, choices) if choices else default
            raise OptionError(
                f"{self.id}: {name}={value!r} is not allowed: {first[0].lower()}{first[1:]}.",
                f"{mend} See: polyalign methods show {self.id}",
            ) from None

    @abstractmethod
    def __call__(self, **hyper: Any) -> Any:
        """What the function makes of these hyper-parameters."""


class Declaration(Header):
    """A method that trains: its function returns a :class:`Method`."""

    kind = "train"

    def __call__(self, *, progress: float = 0.0, **hyper: Any) -> Method:
        """The method at these hyper-parameters; schedules are read at ``progress`` in [0, 1]."""
        values = self.validate(hyper)
        now = {
            name: value.at(progress) if isinstance(value, Schedule) else value
            for name, value in values.items()
        }
        made: Method = self.make(**now)
        return replace(made, declaration=self, hyper=values)


class Measure(Header):
    """A method that measures: its function returns what ``evaluate --with`` calls."""

    kind = "measure"

    def __call__(self, **hyper: Any) -> Callable[[Any], Any]:
        """The measurement at these options; a number over time has no meaning here."""
        values = self.validate(hyper)
        for name, value in values.items():
            if isinstance(value, Schedule):
                raise OptionError(f"{self.id}: {name} is no schedule.", "Give one value.")
        found: Callable[[Any], Any] = self.make(**values)
        return found


REGISTRY: dict[str, Header] = {}
"""Declarations by id, filled as the modules of ``methods/`` (and users' own) are imported."""


def method(
    *,
    id: str,
    feedback: type[Record],
    arxiv: str | None = None,
    aliases: Sequence[str] = (),
    tags: Sequence[str] = (),
    paper: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Method]], Declaration]:
    """Declare a method that trains: its function's signature is its hyper-parameter schema.

    Every parameter needs a type with its bounds and a default; the docstring's first line is the
    title. ``paper`` holds the published ``lr``, ``batch`` and ``epochs`` (``--paper-defaults``).
    Raises :class:`OptionError` when the id is taken by another function.
    """

    def declare(make: Callable[..., Method]) -> Declaration:
        return _declared(Declaration, id, make, feedback, arxiv, aliases, tags, paper)

    return declare


def measure(
    *,
    id: str,
    feedback: type[Record],
    arxiv: str | None = None,
    aliases: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> Callable[[Callable[..., Callable[[Any], Any]]], Measure]:
    """Declare a method that measures, with the header of one that trains.

    Its function returns a callable of the evaluation's bench. ``feedback``: the least that it
    reads; :class:`Prompt` means that any kind with prompts will do.
    """

    def declare(make: Callable[..., Callable[[Any], Any]]) -> Measure:
        return _declared(Measure, id, make, feedback, arxiv, aliases, tags, None)

    return declare


AnyHeader = TypeVar("AnyHeader", bound=Header)


def _declared(
    kind: type[AnyHeader],
    id: str,
    make: Callable[..., Any],
    feedback: type[Record],
    arxiv: str | None,
    aliases: Sequence[str],
    tags: Sequence[str],
    paper: Mapping[str, Any] | None,
) -> AnyHeader:
    old = REGISTRY.get(id)
    if old is not None and old.make.__module__ != make.__module__:
        raise OptionError(
            f"The method id '{id}' is taken by {old.make.__module__}.", "Choose another id."
        )
    for parameter in inspect.signature(make).parameters.values():
        if parameter.default is parameter.empty or parameter.annotation is parameter.empty:
            raise OptionError(
                f"{id}: the parameter '{parameter.name}' needs a type and a default.",
                f"Write {parameter.name}: Positive = 1.0, for example.",
            )
    title = (inspect.getdoc(make) or id).splitlines()[0]
    family = make.__module__.rsplit(".", 1)[-1]
    declared = kind(
        id, make, feedback, title, arxiv, tuple(aliases), tuple(tags), family, dict(paper or {})
    )
    REGISTRY[id] = declared
    return declared


__all__ = [
    "REGISTRY", "Count", "DataStep", "Declaration", "Environment", "Header", "Measure", "Method",
    "Module", "Names", "NonNegative", "NonNegatives", "Offline", "Optimizer", "Positive",
    "Positives", "Probability", "Real", "Records", "Reference", "Rollouts", "Schedule", "Share",
    "Smoothing", "Source", "Stage", "Stages", "Update", "kind_name", "listed", "measure", "method",
]  # fmt: skip
