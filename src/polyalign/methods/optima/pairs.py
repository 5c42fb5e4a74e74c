"""Known optima of methods that learn from pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from polyalign.feedback.records import Pair
from polyalign.methods.optima.known import Known
from polyalign.worlds import closed_forms
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.discrete import tilt

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


def _fair_odds(world: Bandit, options: Mapping[str, Any]) -> Tensor:
    """Two answers that share as their labels do, at temperature beta."""
    odds = closed_forms.first_wins(world).logit()
    return closed_forms.of_two(world, odds / options.get("beta", 1.0))


def _two_of_three(world: Bandit, options: Mapping[str, Any]) -> Tensor:
    both = closed_forms.of_two(world, closed_forms.first_wins(world).logit())
    return torch.cat([both, torch.full_like(both[:, :1], -torch.inf)], -1)


def _reference_margins(world: Bandit, options: Mapping[str, Any]) -> Tensor:
    """Margins beta softplus(K) for either answer as the winner, K the reference's gap for it."""
    k, beta = world.start[:, 0] - world.start[:, 1], options["beta"]
    z = closed_forms.margined_odds(
        closed_forms.first_wins(world), beta * softplus(k), beta * softplus(-k)
    )
    return closed_forms.of_two(world, z / beta)


def _single_triples(world: Bandit) -> list[Pair]:
    """Answer 0 preferred to 1, and 2 another model's best, once a prompt."""
    first = [p for p in world.disjoint_pairs() if p.chosen == 0]
    return [replace(p, others={"source_chosen": 2}) for p in first]


def _smoothed_triple(world: Bandit, run: Any) -> float:
    o = run.hyper
    h = world.law(run.policy) - world.start
    z = o["beta"] * (o["alpha"] * h[:, 2] + (1 - o["alpha"]) * h[:, 0] - h[:, 1])
    eps = o["label_smoothing"]
    return float((z - math.log((1 - eps) / eps)).abs().max())


def _parked(world: Bandit, run: Any) -> float:
    """Largest distance of beta D from the local minimum at tau = 0.05 (arXiv 2406.08414)."""
    h = world.law(run.policy) - world.start
    return float((run.hyper["beta"] * (h[:, 0::2] - h[:, 1::2]) + 0.1185699).abs().max())


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
    "cpo": (
        Known(
            "softmax(r/beta) without the likelihood",
            law=lambda w, o: tilt(torch.zeros_like(w.start), w.reward / o["beta"]),
            hyper={"beta": 0.5, "alpha": 0.0},
            strength="beta",
        ),
        Known(
            "two answers, beta 1: softmax(r), which preference and likelihood share",
            make=TWO,
            law=_fair_odds,
            hyper={"beta": 1.0, "alpha": 1.0},
            name="likelihood",
        ),
    ),
    "rpo": (
        Known(
            "an answer outside the data is emptied; two in it share as sig(r - r'), beta 1",
            make={"responses": 3, "reference": "uniform"},
            feedback=lambda w: [p for p in w.pairs() if 2 not in (p.chosen, p.rejected)],
            law=_two_of_three,
            hyper={"beta": 1.0, "eta": 0.5},
        ),
    ),
    "triple-po": (
        Known(
            "softmax(r/beta) without a gold answer",
            law=lambda w, o: tilt(torch.zeros_like(w.start), w.reward / o["beta"]),
            hyper={"beta": 0.5, "alpha": 0.0},
            strength="beta",
        ),
        Known(
            "two answers, the gold one the chosen, beta 1: softmax(r)",
            make=TWO,
            feedback=lambda w: [replace(p, others={"gold": p.chosen}) for p in w.pairs()],
            law=_fair_odds,
            hyper={"beta": 1.0, "alpha": 1.0},
            name="gold",
        ),
    ),
    "wrpo": (
        Known(
            "beta (alpha h_s + (1 - alpha) h_t - h_l) = log((1-eps)/eps) on single triples",
            make={"responses": 5},
            feedback=_single_triples,
            hyper={"beta": 0.5, "alpha": 0.4, "label_smoothing": 0.1},
            measure=_smoothed_triple,
        ),
    ),
    "discopop": (
        Known(
            "from the reference each pair falls back to the minimum at beta D = -0.11857",
            make={"responses": 6},
            feedback=lambda w: w.disjoint_pairs(),
            measure=_parked,
        ),
    ),
    "dpop": (
        Known(
            "two answers: the root of its first-order condition, the charge included",
            make=TWO,
            law=lambda w, o: closed_forms.shortfall_charged(w, o["beta"], o["lam"]),
            hyper={"beta": 0.5, "lam": 0.2},
        ),
    ),
    "mipo": (
        Known(
            "two answers: the root of its margins' equation",
            make=TWO,
            law=_reference_margins,
            hyper={"beta": 2.0},
        ),
    ),
}
