"""A replay buffer: the newest transitions, drawn as a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polyalign.environments.base import Transition
from polyalign.errors import OptionError
from polyalign.feedback.units import Unit, seed_of

COLUMNS = ("state", "action", "reward", "next_state", "terminated", "truncated")


class Replay:
    """At most ``capacity`` transitions; the oldest go first."""

    def __init__(self, capacity: int = 1_000_000) -> None:
        if capacity < 1:
            raise OptionError(f"A replay of capacity {capacity} keeps nothing.", "Give at least 1.")
        self.capacity = capacity
        self.kept: list[Transition] = []
        self.added = 0

    def __len__(self) -> int:
        return len(self.kept)

    def add(self, transition: Transition) -> None:
        """Keep a transition, in the place of the oldest when full."""
        if len(self.kept) < self.capacity:
            self.kept.append(transition)
        else:
            self.kept[self.added % self.capacity] = transition
        self.added += 1

    def sample(self, n: int, seed: int, step: int) -> list[Unit]:
        """``n`` transitions drawn with replacement, as units: a function of (seed, step)."""
        if not self.kept:
            raise OptionError("The replay is empty.", "Act before learning.")
        draw = torch.Generator().manual_seed(seed_of(seed, "replay", step))
        index = torch.randint(len(self.kept), (n,), generator=draw)
        return [self.kept[i].unit(f"{self._age(i)}") for i in index.tolist()]

    def _age(self, index: int) -> int:
        """The number, counted from the first ever added, of what is kept at ``index``."""
        if self.added <= self.capacity:
            return index
        newest = self.added - 1
        return newest - (newest - index) % self.capacity

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors, one a column, and how many were ever added."""
        columns: dict[str, Tensor] = {
            name: torch.tensor([getattr(t, name) for t in self.kept], dtype=torch.float64)
            for name in COLUMNS
        }
        return {"added": self.added, "capacity": self.capacity, **columns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave; the capacity must be the same."""
        if int(state["capacity"]) != self.capacity:
            raise OptionError(
                f"The saved replay has capacity {state['capacity']}, and this one {self.capacity}.",
                "Resume with the same capacity.",
            )
        rows = zip(*(state[name].tolist() for name in COLUMNS), strict=True)
        self.kept = [
            Transition(tuple(s), tuple(a), r, tuple(after), bool(end), bool(cut))
            for s, a, r, after, end, cut in rows
        ]
        self.added = int(state["added"])
