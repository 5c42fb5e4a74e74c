"""What is known of each method, tried: experiments, their results and their sweeps.

The tables in ``methods/optima`` say which world and which optimum; a method without an entry is
tried on the population of its kind of feedback, where its gradient must vanish at the end.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from polyalign.errors import OptionError, PolyalignError, PolyalignWarning, nearest
from polyalign.feedback.records import KINDS
from polyalign.methods import catalogue, get, named
from polyalign.methods.optima import KNOWN
from polyalign.methods.optima.known import POPULATIONS, WORLDS, Known
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.recipe import Declaration, Schedule
from polyalign.studies import tiny_lm
from polyalign.studies.lab import LabRun, World, exact, train
from polyalign.worlds.discrete import Discrete
from polyalign.worlds.discrete import Point as WorldPoint
from polyalign.worlds.tiny_lm import TinyLm

STATIONARY = Known(
    "no closed form: the gradient over the population vanishes", tolerance=1e-7, steps=150
)
"""What is checked of a method of which nothing else is known."""

IN_LANGUAGE = Known(
    "share of the gold reward missing at the start that its samples still miss",
    world="tiny_lm",
    measure=lambda world, run: missed(run),
    tolerance=0.9,
    steps=60,
    settings={"batch": 32, "lr": 2e-4, "epochs": 100.0, "max_steps": 60, "clip": 1.0},
)
"""What is checked of a method on the tiny language model: that its gold reward rises."""

SWEEP = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of an option's value along the reward-KL curve."""

FLAT, AGAIN = 1e-6, 6
"""Gradient entry above which an end is not stationary, and the factor of steps tried then."""

WHOLE = 100_000
"""Units in a step that no population reaches, so that a step sees all of it."""

Progress = Callable[[str, int, int], None]
"""Told what runs, how many are done, and of how many."""


@dataclass(frozen=True)
class Point:
    """One value of the strength: where the policy ended, and where theory says."""

    strength: float
    reward: float
    kl: float
    distance: float | None


@dataclass(frozen=True)
class LabResult:
    """One row of the laboratory's table.

    ``distance`` of the end from what theory ``finds``: total variation where there is a closed
    form, else in the words of ``finds``. ``gradient``: the largest gradient entry over the
    population with the policy set to the closed form. ``reward`` and ``kl`` (nats to the start)
    are None in worlds without enumeration. ``sweep``: the same method over its ``strength``.
    """

    name: str
    method: str
    world: str
    feedback: str
    finds: str
    hyper: Mapping[str, Any]
    distance: float
    tolerance: float
    reached: bool
    gradient: float | None
    reward: float | None
    kl: float | None
    steps: int
    seconds: float
    strength: str | None
    sweep: list[Point]
    frontier: list[tuple[float, float]]
    curve: list[dict[str, float]]


def experiments(
    names: Sequence[str] = (),
    world: str | None = None,
    hyper: Mapping[str, Any] | None = None,
) -> dict[str, tuple[str, Known]]:
    """The experiments of some methods (default: of every method that has a world), by row name.

    ``world`` and ``hyper`` replace what the tables say. Raises :class:`OptionError` for an unknown
    method or world.
    """
    if world is not None and world not in WORLDS:
        raise OptionError(f"The laboratory has no world '{world}'.", nearest(world, WORLDS))
    chosen: dict[str, tuple[str, Known]] = {}
    for method in [named(name)[0] for name in names] or _held():
        known = KNOWN.get(method, (STATIONARY,))
        for one in _in_world(known, world) if world else known:
            row = f"{method}: {one.name}" if one.name else method
            chosen[row] = (method, replace(one, hyper={**one.hyper, **(hyper or {})}))
    return chosen


def _held() -> list[str]:
    """Methods that have a world: those in the tables, and all that learn from given feedback."""
    tried = [
        id
        for id, entry in catalogue().items()
        if entry.get("kind") == "train" and KINDS.get(entry.get("feedback", "")) in POPULATIONS
    ]
    return [id for id in catalogue() if id in KNOWN or id in tried]


def _in_world(known: Iterable[Known], world: str) -> list[Known]:
    """What is known of a method in a world of this name; elsewhere only its gradient is checked.

    A closed form holds where its own world's options are the default ones.
    """
    if world == IN_LANGUAGE.world:
        return [IN_LANGUAGE]
    here = [one for one in known if one.world == world]
    moved = [
        replace(one, world=world) for one in known if one.law and not one.make and not one.feedback
    ]
    return here or moved[:1] or [replace(STATIONARY, world=world)]


def build(known: Known, declared: Declaration) -> World:
    """The world of an experiment; small unless it says otherwise."""
    small = {"bandit": {"responses": 5}, "loglinear": {"instructions": 4, "responses": 5}}
    made: World = WORLDS[known.world](**{**small.get(known.world, {}), **known.make})
    return known.labels(made, declared.validate(known.hyper)) if known.labels else made


class Options(dict[str, Any]):
    """A method's options that remember which of them a closed form has read."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


def closed_form(
    known: Known, world: World, run: LabRun, given: Iterable[str] = ()
) -> Tensor | None:
    """The closed form at the run's options.

    None where there is none, and where options were ``given`` that it does not read: then it need
    not hold.
    """
    if known.law is None or not isinstance(world, Discrete):
        return None
    options = Options(run.hyper)
    law = known.law(world, options)
    return law if set(given) <= options.read else None


def perform(
    method: str,
    known: Known,
    name: str = "",
    sweep: bool = False,
    given: Iterable[str] = (),
) -> LabResult:
    """Run one experiment and measure it; ``sweep`` also runs it over its strength.

    ``given`` names options that were changed; where the closed form does not read one of them, the
    gradient is what is checked. Raises :class:`OptionError` where the world cannot give the
    method's feedback.
    """
    begin = time.perf_counter()
    declared = get(method)
    world = build(known, declared)
    run = attempt(declared, known, world)
    law = closed_form(known, world, run, given)
    if law is None and known.law:
        known = replace(known, finds=STATIONARY.finds, law=None, tolerance=STATIONARY.tolerance)
    if law is not None and isinstance(world, Discrete):
        distance = world.distance(run.policy, law)
    elif known.measure is not None:
        distance = known.measure(world, run)
    else:
        distance = run.stationarity()
    point = place(world, run)
    points = swept(declared, known) if sweep and isinstance(world, Discrete) else []
    return LabResult(
        name or method,
        method,
        known.world,
        next((kind for kind, record in KINDS.items() if record is declared.feedback), "acting"),
        known.finds,
        {name: str(v) if isinstance(v, Schedule) else v for name, v in run.hyper.items()},
        distance,
        known.tolerance,
        distance <= known.tolerance,
        None if law is None else run.gradient_at(law),
        None if point is None else point.reward,
        None if point is None else point.kl,
        run.session.position["step"],
        time.perf_counter() - begin,
        known.strength,
        points,
        frontier(world) if points else [],
        run.curve,
    )


def place(world: World, run: LabRun) -> WorldPoint | None:
    """Gold reward and divergence of a run's end: exact, from samples of the tiny language model,
    or None.
    """
    match world:
        case Discrete():
            return world.point(run.policy)
        case TinyLm():
            own, start = _language(run)
            return WorldPoint(tiny_lm.gold(own), tiny_lm.divergence(own, start))
    return None


def missed(run: LabRun) -> float:
    """How much of the gold reward that the start's samples miss (of 1) the end's still miss."""
    own, start = _language(run)
    return (1 - tiny_lm.gold(own)) / (1 - tiny_lm.gold(start))


def _language(run: LabRun) -> tuple[LanguagePolicy, LanguagePolicy]:
    """A run's policy and its start, which are language models."""
    own, start = run.policy, run.session.start
    assert isinstance(own, LanguagePolicy)
    assert isinstance(start, LanguagePolicy)
    return own, start


def attempt(declared: Declaration, known: Known, world: World) -> LabRun:
    """Train as an experiment says, through the loops and, where it is smooth, to the last digit.

    Where the last digits end off a stationary point the loops had not descended far enough, and go
    once more with several times the steps.
    """
    run = descend(declared, known, world)
    if not (known.finish and run.smooth):
        return run
    run.finish()
    if run.stationarity() > FLAT:
        run = descend(declared, replace(known, steps=AGAIN * known.steps), world)
        run.finish()
    return run


def descend(declared: Declaration, known: Known, world: World) -> LabRun:
    """Train as an experiment says, through the loops alone."""
    feedback = known.feedback or POPULATIONS.get(
        declared(**known.hyper).feedback or declared.feedback
    )
    try:
        records = feedback(world) if feedback else ()
    except AttributeError:
        raise OptionError(
            f"The world '{known.world}' gives no feedback that {declared.id} learns from.",
            f"Worlds: {', '.join(WORLDS)}.",
        ) from None
    settings = exact(**{"batch": WHOLE, "steps": known.steps, **known.settings})
    with warnings.catch_warnings():
        # A world's strengths are chosen for its size, not for a language model.
        warnings.simplefilter("ignore", PolyalignWarning)
        return train(
            declared.id,
            world,
            records,
            known.hyper,
            settings=settings,
            steps=known.steps,
            policy=known.policy(world) if known.policy else None,
            environment=known.environment(world) if known.environment else None,
        )


def swept(declared: Declaration, known: Known) -> list[Point]:
    """The reward-KL curve: the method at multiples of its strength, with the distance to theory."""
    name = known.strength
    if name is None:
        return []
    points = []
    middle = float(declared.validate(known.hyper)[name])
    for factor in SWEEP:
        value = middle * factor
        one = replace(known, hyper={**known.hyper, name: value})
        try:
            world = build(one, declared)
            run = attempt(declared, one, world)
        except PolyalignError:
            continue  # Outside what the option or the numbers allow; the curve is shorter there.
        assert isinstance(world, Discrete)
        law = closed_form(known, world, run)
        at = world.point(run.policy)
        distance = None if law is None else world.distance(run.policy, law)
        points.append(Point(value, at.reward, at.kl, distance))
    return points


def frontier(world: World) -> list[tuple[float, float]]:
    """The best reward at each divergence, as (KL, reward)."""
    if not isinstance(world, Discrete):
        return []
    betas = [2.0 ** (k / 2) for k in range(-8, 9)]
    return sorted((point.kl, point.reward) for point in world.frontier(betas))


def lab(
    names: Sequence[str] = (),
    *,
    world: str | None = None,
    hyper: Mapping[str, Any] | None = None,
    sweep: bool = False,
    progress: Progress | None = None,
    refused: dict[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The laboratory's table, one plain dictionary a row; all methods when no name is given.

    With ``refused``, methods that the world's feedback does not suffice for are left out and put
    there with the reason; else their :class:`PolyalignError` is raised.
    """
    chosen = experiments(names, world, hyper)
    rows = []
    for done, (name, (method, known)) in enumerate(chosen.items()):
        if progress:
            progress(name, done, len(chosen))
        try:
            rows.append(asdict(perform(method, known, name, sweep, hyper or ())))
        except PolyalignError as error:
            if refused is None:
                raise
            refused[name] = error.what
    if progress:
        progress("", len(chosen), len(chosen))
    return rows
