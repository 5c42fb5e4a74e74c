"""Known optima of methods that learn from lists of scored answers."""

from __future__ import annotations

import math
from typing import Any

import torch

from polyalign.methods.optima.known import Known
from polyalign.worlds import closed_forms
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.discrete import tilt

TWO = {"prompts": 8, "responses": 2}


def _smoothed(world: Bandit, run: Any) -> float:
    """Largest distance of beta_pi D from log((1-eps)/eps), over pairs that occur once."""
    eps, h = run.hyper["eps"], world.law(run.policy) - world.start
    margin = run.hyper["beta_pi"] * (h[:, 0::2] - h[:, 1::2])
    return float((margin - math.log((1 - eps) / eps)).abs().max())


def _out_of_order(world: Bandit, run: Any) -> float:
    """Largest gap by which a worse answer is likelier than a better one, or 1 - pi(best)."""
    law = world.law(run.policy)
    gap = law.unsqueeze(-1) - law.unsqueeze(-2)
    worse = world.reward.unsqueeze(-1) < world.reward.unsqueeze(-2)
    best = law.gather(-1, world.reward.argmax(-1, keepdim=True)).exp()
    return max(float(gap[worse].max()), float((1 - best).max()))


KNOWN: dict[str, tuple[Known, ...]] = {
    "infonca": (
        Known(
            "ref exp(r/(beta T))/Z",
            law=lambda w, o: w.regularised(o["beta"] * o["T"]),
            hyper={"beta": 0.5, "T": 1.0},
            strength="beta",
        ),
    ),
    "exo": (
        Known(
            "ref exp(r/(beta_pi beta_r))/Z",
            law=lambda w, o: w.regularised(o["beta_pi"] * o["beta_r"]),
            hyper={"beta_pi": 0.5, "beta_r": 1.0},
            strength="beta_r",
        ),
        Known(
            "beta_pi D = log((1-eps)/eps) on pairs that occur once",
            make={"responses": 6},
            feedback=lambda w: w.disjoint_pairs(),
            hyper={"form": "pref", "beta_pi": 0.5, "eps": 0.1},
            measure=_smoothed,
            name="pref",
        ),
    ),
    "lipo": (
        Known(
            "ref exp(r/beta)/Z from pairs as lists of two",
            feedback=lambda w: w.duels(),
            law=lambda w, o: w.regularised(o["beta"]),
            hyper={"beta": 0.5},
            strength="beta",
        ),
        Known(
            "ref exp(r/beta)/Z from pairs as lists of two",
            feedback=lambda w: w.duels(),
            law=lambda w, o: w.regularised(o["beta"]),
            hyper={"beta": 0.5, "variant": "list-mle"},
            name="list-mle",
        ),
        Known(
            "ref label^(1/beta)/Z",
            feedback=lambda w: w.lists(w.reward.exp()),
            law=lambda w, o: w.regularised(o["beta"]),
            hyper={"beta": 0.5, "variant": "softmax"},
            name="softmax",
        ),
    ),
    "pro": (
        Known(
            "softmax(r) from pairs as lists of two, without imitation",
            feedback=lambda w: w.duels(),
            law=lambda w, o: tilt(torch.zeros_like(w.start), w.reward),
            hyper={"sft_weight": 0.0},
        ),
        Known(
            "two answers: softmax(r), which ranking and imitation share",
            make=TWO,
            feedback=lambda w: w.duels(),
            law=lambda w, o: closed_forms.of_two(w, closed_forms.first_wins(w).logit()),
            name="imitation",
        ),
    ),
    "rrhf": (
        Known(
            "all mass on the best answer, the others in the order of their scores",
            measure=_out_of_order,
            tolerance=0.05,
            steps=150,
            finish=False,
        ),
    ),
    "brain": (
        Known(
            "ref exp(r/g)/Z, the posterior of good answers",
            law=lambda w, o: w.regularised(o["g"]),
            hyper={"g": 0.5},
            strength="g",
        ),
    ),
}
