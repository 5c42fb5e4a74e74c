"""Acting: the part of Gymnasium's interface that loops use, and what one action gives.

Any Gymnasium environment with vector observations and actions fits :class:`Environment` as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from polyalign.feedback.units import Unit

State = tuple[float, ...]
Action = tuple[float, ...]


class Environment(Protocol):
    """``reset`` and ``step`` as Gymnasium has them; observations and actions are vectors."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """The first observation of an episode, and notes."""
        ...

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated (no future), truncated (time is up), and notes."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """An environment whose state can be kept: runs in it resume exactly."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Transition:
    """One action in one state. Only ``terminated`` ends the future; a time limit does not."""

    state: State
    action: Action
    reward: float
    next_state: State
    terminated: bool
    truncated: bool = False

    def unit(self, key: str) -> Unit:
        """Roles ``own`` (state, action) and ``next`` (next state); fields reward, terminated.

        The action stands in ``next`` only to give its row a step: objectives draw a fresh one.
        """
        return Unit(
            key,
            {"own": (self.state, self.action), "next": (self.next_state, self.action)},
            1.0,
            {"reward": self.reward, "terminated": float(self.terminated)},
        )


def vector(observation: Any) -> tuple[float, ...]:
    """An observation or action as the tuple of floats that policies read."""
    flat = observation.reshape(-1).tolist() if hasattr(observation, "reshape") else observation
    return tuple(float(x) for x in flat)
