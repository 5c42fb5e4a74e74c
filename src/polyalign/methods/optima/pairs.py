"""Known optima of methods that learn from pairs."""

from __future__ import annotations

import math
from typing import Any

from polyalign.methods.optima.known import Known
from polyalign.worlds import closed_forms
from polyalign.worlds.bandit import Bandit

TWO = {"prompts": 8, "responses": 2}
ENDING = {"vocabulary": 3, "length": 2, "eos": 0}


def _smoothed_margin(world: Bandit, run: Any) -> float:
    """Largest distance of beta D from log((1-eps)/eps), over pairs that occur once."""
    eps = run.hyper["label_smoothing"]
    h = world.law(run.policy) - world.start
    margin = run.hyper["beta"] * (h[:, 0:-1:2] - h[:, 1::2])
    return float((margin - math.log((1 - eps) / eps)).abs().max())


def _hinge_margin(world: Bandit, run: Any) -> float:
    """Largest distance of the preferred response's log-ratio gap from the hinge's corner."""
    law = world.law(run.policy)
    if run.hyper["form"] == "hinge-norm":
        gap, corner = law - world.start, 1 / run.hyper["beta"]
    else:
        gap, corner = law, run.hyper["delta"]
    side = (world.reward[:, 0] - world.reward[:, 1]).sign()
    return float(((gap[:, 0] - gap[:, 1]) * side - corner).abs().max())


KNOWN: dict[str, tuple[Known, ...]] = {
    "dpo": (
        Known(
            "ref exp(r/beta)/Z",
            law=lambda w, o: w.regularised(o["beta"]),
            hyper={"beta": 0.5},
            strength="beta",
        ),
        Known(
            "beta D = log((1-eps)/eps) on pairs that occur once",
            make={"responses": 6},
            feedback=lambda w: w.disjoint_pairs(),
            hyper={"beta": 0.5, "loss": "cdpo", "label_smoothing": 0.1},
            measure=_smoothed_margin,
            name="smoothed",
        ),
        Known(
            "the clean ref exp(r/beta)/Z, although a fifth of the labels is flipped",
            make={"responses": 5, "noise": 0.2},
            law=lambda w, o: w.regularised(o["beta"]),
            hyper={"beta": 0.5, "loss": "robust", "label_smoothing": 0.2},
            name="robust",
        ),
    ),
    "ipo": (
        Known(
            "ref exp(p(y > mu)/tau)/Z, also of intransitive preferences",
            make={"responses": 5, "preferences": "intransitive"},
            law=lambda w, o: w.ipo(o["tau"]),
            hyper={"tau": 0.5, "length_average": False},
            strength="tau",
        ),
    ),
    "slic": (
        Known(
            "log-probabilities of two answers lie delta apart",
            make=TWO,
            hyper={"lam": 0.1},
            measure=_hinge_margin,
            tolerance=2e-3,
            steps=300,
            finish=False,
        ),
        Known(
            "log-ratios of two answers lie 1/beta apart",
            make=TWO,
            hyper={"form": "hinge-norm", "beta": 0.5},
            measure=_hinge_margin,
            tolerance=2e-3,
            steps=300,
            finish=False,
            name="hinge-norm",
        ),
    ),
    "simpo": (
        Known(
            "exp(n (r + c)/beta) without a margin, answers of one and two tokens",
            world="sequences",
            make=ENDING,
            law=lambda w, o: closed_forms.per_token(w, o["beta"], reference=False),
            hyper={"beta": 2.5, "gamma_beta_ratio": 0.0},
            strength="beta",
        ),
        Known(
            "two answers: the root of its margin's equation",
            make=TWO,
            law=lambda w, o: closed_forms.of_two(
                w,
                closed_forms.margined_odds(
                    closed_forms.first_wins(w),
                    o["beta"] * o["gamma_beta_ratio"],
                    o["beta"] * o["gamma_beta_ratio"],
                )
                / o["beta"],
            ),
            hyper={"beta": 2.5, "gamma_beta_ratio": 0.5},
            name="margin",
        ),
    ),
    "orpo": (
        Known(
            "no closed form: the gradient over the population vanishes",
            world="sequences",
            make=ENDING,
            hyper={"lam": 0.5},
            tolerance=1e-9,
        ),
    ),
    "aot": (
        Known(
            "no hinge cost is left where dominance by a margin can be reached",
            make={"responses": 8, "preferences": "deterministic"},
            hyper={"beta": 0.5, "cost": "hinge", "margin": 1.0},
            measure=lambda w, run: run.loss(),
            tolerance=1e-9,
            steps=150,
            finish=False,
        ),
    ),
}
