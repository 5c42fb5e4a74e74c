"""Known optima of methods that learn from demonstrations, thumbs, single scores or lists, and of
those that anchor each answer of a pair by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from polyalign.feedback.records import Pair
from polyalign.methods.optima.known import Known
from polyalign.worlds import closed_forms
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.discrete import tilt

TWO = {"prompts": 8, "responses": 2}


def _wins_less_losses(world: Bandit) -> Tensor:
    return closed_forms.winners(world).exp() - closed_forms.losers(world).exp()


def _first_pushes(world: Bandit, run: Any) -> float:
    """Largest error of the gradient at the reference: beta/4 on what is rejected, 0 on chosen."""
    push = run.hyper["beta"] / 4 * closed_forms.losers(world).exp()
    expected = push - world.start.exp() * push.sum(-1, keepdim=True)
    return float((run.gradient_table(world.start) - expected).abs().max())


def _first_pair(world: Bandit) -> list[Pair]:
    """Answer 0 preferred to 1 with certainty, and nothing about the others."""
    return [p for p in world.disjoint_pairs() if p.chosen == 0]


def _calibrated(world: Bandit, run: Any) -> float:
    """Largest distance from h_w = -h_l = u with 2c (u - 1/(2 beta)) = sig(-2u)."""
    c, target = run.hyper["cal_weight"], 1 / (2 * run.hyper["beta"])
    here = torch.zeros(1, dtype=torch.float64)
    u = closed_forms.bisected(lambda u: 2 * c * (u - target) - torch.sigmoid(-2 * u), here)
    h = world.law(run.policy) - world.start
    return float(torch.maximum((h[:, 0] - u).abs(), (h[:, 1] + u).abs()).max())


def _softmax(world: Bandit, temperature: float) -> Tensor:
    return tilt(torch.zeros_like(world.start), world.reward / temperature)


def _odds_of_two(world: Bandit, options: Mapping[str, Any]) -> Tensor:
    return closed_forms.of_two(world, closed_forms.first_wins(world).logit())


PULLS: dict[str, Callable[[Tensor], Tensor]] = {
    "pearson": lambda t: 1 - t / 2,
    "reverse-kl": lambda t: torch.exp(-(t + 1)),
}
"""How strongly a demonstration still pulls at implicit reward t."""


def _best_two(world: Bandit, options: Mapping[str, Any]) -> Tensor:
    best = world.reward.topk(2, -1).indices
    return torch.full_like(world.start, -torch.inf).scatter(-1, best, math.log(0.5))


KNOWN: dict[str, tuple[Known, ...]] = {
    "sft": (
        Known(
            "the law of the demonstrations",
            law=lambda w, o: w.regularised(0.5),
        ),
    ),
    "implicit-reward-sft": tuple(
        Known(
            f"demonstrated(y) {pull} = lambda pi(y), t = b log(pi/ref)",
            law=lambda w, o: closed_forms.likelihood_ratio_matched(
                w, w.regularised(0.5), lambda h: PULLS[o["f"]](o["b"] * h)
            ),
            hyper={"f": f, "b": 0.5},
            name=f,
        )
        for f, pull in (("pearson", "(1 - t/2)"), ("reverse-kl", "exp(-(t+1))"))
    ),
    "offline-rlhf": (
        Known(
            "mu exp(R/temperature)/Z",
            make={"responses": 5, "coverage": "uniform"},
            law=lambda w, o: tilt(w.coverage.log(), w.reward / o["temperature"]),
            hyper={"form": "rwr", "temperature": 0.8, "standardise": False},
            strength="temperature",
            name="weighted",
        ),
        Known(
            "mu on the best two of five answers, nothing elsewhere",
            make={"responses": 5, "coverage": "uniform"},
            law=_best_two,
            hyper={"form": "filter", "per": "prompt", "keep_ratio": 0.4},
            tolerance=1e-4,
            steps=100,
            name="filtered",
        ),
    ),
    "kto": (
        Known(
            "no closed form: the gradient vanishes at the zero point it came to (64 mismatches)",
            make={"prompts": 4, "responses": 4},
            hyper={"beta": 0.5},
            measure=lambda w, run: run.stationarity(64),
            tolerance=2e-4,
            steps=300,
        ),
        Known(
            "answers that are good more often than bad: net beta s(1-s) = lambda pi; no others",
            law=lambda w, o: closed_forms.anchored_winners(
                w, o["beta"], w.coverage * (2 * w.desirable() - 1)
            ),
            hyper={"beta": 0.5, "zero_point": "none"},
            tolerance=1e-4,
            steps=100,
            name="no zero point",
        ),
    ),
    "bco": (
        Known(
            "the gradient vanishes at ref exp(r/beta)/Z of one prompt, its mean as the shift",
            make={"prompts": 1, "responses": 5},
            hyper={"beta": 0.5, "form": "code"},
            measure=lambda w, run: float(
                run.gradient_table(w.regularised(run.hyper["beta"])).abs().max()
            ),
        ),
    ),
    "apo-zero": (
        Known(
            "answers that win more than they lose: net beta s(1-s) = lambda pi; no others",
            law=lambda w, o: closed_forms.anchored_winners(w, o["beta"], _wins_less_losses(w)),
            hyper={"beta": 0.5},
            tolerance=1e-4,
            steps=100,
        ),
    ),
    "apo-down": (
        Known(
            "at the reference, a push of beta/4 off rejected answers and none on chosen ones",
            make={"prompts": 1, "responses": 5},
            hyper={"beta": 0.5},
            measure=_first_pushes,
            tolerance=1e-12,
            finish=False,
        ),
    ),
    "asft": (
        Known(
            "two answers: softmax(r), which likelihood and odds share",
            make=TWO,
            law=_odds_of_two,
            hyper={"lam": 0.5},
        ),
    ),
    "cal-dpo": (
        Known(
            "h_w = -h_l = u, 2c (u - 1/(2 beta)) = sig(-2u), where other answers give way",
            make={"responses": 9, "reference": "uniform"},
            feedback=_first_pair,
            hyper={"beta": 0.5},
            measure=_calibrated,
        ),
    ),
    "nca": (
        Known(
            "softmax(r/T), normalisation included, under a uniform reference, beta 1",
            make={"responses": 5, "reference": "uniform"},
            law=lambda w, o: _softmax(w, o["T"]),
            hyper={"beta": 1.0, "T": 0.5},
            strength="T",
        ),
        Known(
            "the law of winners under a uniform reference, beta 1",
            make={"responses": 5, "reference": "uniform"},
            law=lambda w, o: closed_forms.winners(w),
            hyper={"beta": 1.0, "form": "pair"},
            name="pair",
        ),
    ),
    "dro": (
        Known(
            "ref exp(r/tau)/Z, although answers come uniformly",
            make={"responses": 5, "coverage": "uniform"},
            feedback=lambda w: w.scored(),
            law=lambda w, o: w.regularised(o["tau"]),
            hyper={"tau": 0.5, "values": "prompt", "standardise": False},
            tolerance=1e-5,
            steps=300,
        ),
    ),
}
