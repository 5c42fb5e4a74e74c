"""What theory says that a method finds in a small exact world, as data beside the declarations.

The laboratory reads these tables; they know no more than a world's numbers and a method's
options, and never the loss. Adding a method's row is one :class:`Known`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from polyalign.feedback.records import (
    Binary,
    Demonstration,
    Pair,
    Prompt,
    Quadruple,
    Record,
    Scored,
)
from polyalign.protocols import Policy
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.loglinear import LogLinear
from polyalign.worlds.lqr import Lqr
from polyalign.worlds.sequences import Sequences
from polyalign.worlds.tiny_lm import TinyLm

Law = Callable[[Any, Mapping[str, Any]], Tensor]
"""The closed form: the log-law [X, Y] of a world and a method's options."""

Measure = Callable[[Any, Any], float]
"""How far a finished run in a world is from what theory says, at least 0."""

Feedback = Callable[[Any], Sequence[Record]]
"""A world's feedback, usually its whole population."""

WORLDS: dict[str, Callable[..., Any]] = {
    "bandit": Bandit.make,
    "loglinear": LogLinear.make,
    "sequences": Sequences.make,
    "lqr": Lqr.make,
    "tiny_lm": TinyLm.make,
}
"""Worlds by the name that the command line takes."""

POPULATIONS: dict[type[Record], Feedback] = {
    Pair: lambda world: world.pairs(),
    Binary: lambda world: world.binary(),
    Scored: lambda world: world.lists(),
    Demonstration: lambda world: world.demonstrations(world.regularised(0.5)),
    Prompt: lambda world: world.asked(),
    Quadruple: lambda world: world.quadruples(),
}
"""The population of each kind of feedback that a declaration may ask for."""


@dataclass(frozen=True)
class Known:
    """One thing that theory says of a method, and where the laboratory looks for it.

    ``finds``: it in words. ``world`` with its options ``make``; ``feedback`` (default: the whole
    population of the declared kind); ``hyper``. ``labels`` makes the world anew with preferences
    that depend on the options. Either ``law``, the closed form, or ``measure``, a
    distance of a finished run from theory; with neither, what is checked is that the gradient over
    the population vanishes. ``strength``: the option whose sweep draws the reward-KL curve.
    """

    finds: str
    world: str = "bandit"
    make: Mapping[str, Any] = field(default_factory=dict)
    feedback: Feedback | None = None
    hyper: Mapping[str, Any] = field(default_factory=dict)
    labels: Callable[[Any, Mapping[str, Any]], Any] | None = None
    law: Law | None = None
    measure: Measure | None = None
    tolerance: float = 1e-6
    strength: str | None = None
    steps: int = 30
    settings: Mapping[str, Any] = field(default_factory=dict)
    finish: bool = True
    environment: Callable[[Any], Any] | None = None
    policy: Callable[[Any], Policy] | None = None
    name: str = ""
