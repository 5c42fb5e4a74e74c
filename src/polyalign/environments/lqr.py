"""The linear-quadratic world as an environment to act in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyalign.feedback.units import seed_of
from polyalign.worlds.lqr import Lqr


class LqrEnvironment:
    """Starts in a normal state of the given ``spread``; time is up (truncated) after ``horizon``.

    All noise is a function of (seed, episode, step); the state can be kept and put back.
    """

    def __init__(self, world: Lqr, *, horizon: int = 20, spread: float = 1.0) -> None:
        self.world, self.horizon, self.spread = world, horizon, spread
        self.seed, self.episode, self.time = 0, -1, 0
        self.state = torch.zeros(world.state_size, dtype=torch.float64)

    def _normal(self) -> Tensor:
        seed = seed_of(self.seed, "lqr", self.episode, self.time)
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(self.world.state_size, generator=draw, dtype=torch.float64)

    def reset(self, *, seed: int | None = None) -> tuple[NDArray[np.float64], dict[str, Any]]:
        if seed is not None:
            self.seed, self.episode = seed, -1
        self.episode, self.time = self.episode + 1, 0
        self.state = self.spread * self._normal()
        return self.state.numpy().copy(), {}

    def step(self, action: Any) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        a = torch.as_tensor(np.asarray(action, dtype=np.float64)).reshape(-1)
        reward = float(self.world.reward(self.state.unsqueeze(0), a.unsqueeze(0)))
        self.time += 1
        self.state = self.world.move(self.state, a, self._normal())
        return self.state.numpy().copy(), reward, False, self.time >= self.horizon, {}

    def state_dict(self) -> Mapping[str, Any]:
        return {
            "seed": self.seed,
            "episode": self.episode,
            "time": self.time,
            "state": self.state.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seed, self.episode = int(state["seed"]), int(state["episode"])
        self.time, self.state = int(state["time"]), state["state"].clone()
