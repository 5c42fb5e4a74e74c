"""Known optima of methods with moving references or several objectives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from polyalign.feedback.records import Pair
from polyalign.methods.optima.known import Known
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.discrete import bradley_terry, tilt


def second_reward(world: Bandit) -> Tensor:
    """Another objective's gold rewards [X, Y], independent of the first's."""
    draw = torch.Generator().manual_seed(11)
    return torch.randn(world.reward.shape, generator=draw, dtype=torch.float64)


def _twice(world: Bandit) -> list[Pair]:
    """The population once for each of two stages."""
    return [replace(p, key=f"{p.key}/{i}") for i in (1, 2) for p in world.pairs()]


def _two_dimensions(world: Bandit) -> list[Pair]:
    """The first reward's pairs, then the second's, with the column that names them."""
    reward = second_reward(world)
    other = replace(world, reward=reward, prefer=bradley_terry(reward))
    return [
        replace(p, key=f"{name}:{p.key}", meta={"dimension": name})
        for name, one in (("first", world), ("second", other))
        for p in one.pairs()
    ]


def _with_margins(world: Bandit) -> list[Pair]:
    """The first reward's pairs, with the second's value of both answers."""
    m = second_reward(world)
    return [
        replace(
            p,
            fields={"m_w": float(m[p.prompt, p.chosen]), "m_l": float(m[p.prompt, p.rejected])},
        )
        for p in world.pairs()
    ]


KNOWN: dict[str, tuple[Known, ...]] = {
    "tr-dpo": (
        Known(
            "ref exp(2r/beta)/Z after one whole update of the reference",
            law=lambda w, o: w.regularised(o["beta"] / 2),
            hyper={"beta": 1.0, "form": "hard", "tau": 200},
            tolerance=2e-3,
            steps=400,
        ),
    ),
    "sdpo": (
        Known(
            "ref exp(2r/beta)/Z after two stages on the same pairs",
            feedback=_twice,
            law=lambda w, o: w.regularised(o["beta"] / 2),
            hyper={"beta": 1.0, "cut": "given"},
            tolerance=1e-3,
            steps=200,
        ),
    ),
    "spo-sequential": (
        Known(
            "ref exp(r_1/beta + (r_2 + lam r_1)/beta)/Z after two rounds",
            feedback=_two_dimensions,
            law=lambda w, o: tilt(
                w.start,
                (w.reward + second_reward(w) + o["lam"][0] * w.reward) / o["beta"][0],
            ),
            hyper={"beta": (1.0,), "lam": (0.5,)},
            tolerance=1e-3,
            steps=200,
        ),
    ),
    "modpo": (
        Known(
            "ref exp((w_0 r_0 + w_1 r_1)/beta)/Z",
            feedback=_with_margins,
            law=lambda w, o: tilt(
                w.start, (o["w"][0] * w.reward + o["w"][1] * second_reward(w)) / o["beta"]
            ),
            hyper={"beta": 0.5, "w": (0.6, 0.4)},
            strength="beta",
        ),
    ),
}
