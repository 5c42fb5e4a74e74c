"""The laboratory's experiments: each method in a world that knows what it must find."""

from __future__ import annotations

import math
from typing import Any

import torch

from polyalign.studies.lab import Experiment, LabRun, exact
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.loglinear import LogLinear
from polyalign.worlds.sequences import Sequences


def _smoothed_margin(world: Bandit, run: LabRun) -> float:
    """Largest distance of beta D from log((1-eps)/eps), over pairs that occur once."""
    hyper = run.session.method.hyper
    eps = hyper["label_smoothing"]
    h = world.law(run.policy) - world.start
    return float(
        (hyper["beta"] * (h[:, 0::2] - h[:, 1::2]) - math.log((1 - eps) / eps)).abs().max()
    )


def _hinge_margin(world: Bandit, run: LabRun) -> float:
    """Largest distance of the preferred response's log-ratio gap from the hinge's corner."""
    hyper = run.session.method.hyper
    law = world.law(run.policy)
    if hyper["form"] == "hinge-norm":
        gap, corner = law - world.start, 1 / hyper["beta"]
    else:
        gap, corner = law, hyper["delta"]
    side = (world.reward[:, 0] - world.reward[:, 1]).sign()
    return float(((gap[:, 0] - gap[:, 1]) * side - corner).abs().max())


def _imitation_target(world: Bandit) -> torch.Tensor:
    return world.regularised(0.5)


def _lengthwise(world: Sequences, run: LabRun) -> float:
    """SimPO without a margin, at one length n: the optimum is softmax(n r / beta)."""
    beta = run.session.method.hyper["beta"]
    return world.distance(run.policy, (world.length * world.reward / beta).log_softmax(-1))


def _interaction(world: LogLinear, run: LabRun) -> float:
    ratio = world.log_ratio_interaction(world.law(run.policy))
    beta = run.session.method.hyper["beta"]
    return float((ratio - world.iopo(beta)).abs().max())


EXPERIMENTS: dict[str, Experiment] = {
    "sft": Experiment(
        "sft",
        "total variation to the law of the demonstrations",
        Bandit.make,
        lambda w, run: w.distance(run.policy, _imitation_target(w)),
        1e-6,
        records=lambda w: w.demonstrations(_imitation_target(w)),
    ),
    "dpo": Experiment(
        "dpo",
        "total variation to ref exp(r/beta)/Z",
        Bandit.make,
        lambda w, run: w.distance(run.policy, w.regularised(0.5)),
        1e-5,
        records=lambda w: w.pairs(),
        hyper={"beta": 0.5},
    ),
    "cdpo": Experiment(
        "dpo",
        "distance of the margin from log((1-eps)/eps)",
        Bandit.make,
        _smoothed_margin,
        1e-5,
        records=lambda w: w.disjoint_pairs(),
        hyper={"beta": 0.5, "loss": "cdpo", "label_smoothing": 0.1},
    ),
    "robust": Experiment(
        "dpo",
        "total variation to the clean ref exp(r/beta)/Z, a fifth of labels flipped",
        lambda: Bandit.make(noise=0.2),
        lambda w, run: w.distance(run.policy, w.regularised(0.5)),
        1e-5,
        records=lambda w: w.pairs(),
        hyper={"beta": 0.5, "loss": "robust", "label_smoothing": 0.2},
    ),
    "ipo": Experiment(
        "ipo",
        "total variation to ref exp(p(y > mu)/tau)/Z, intransitive preferences",
        lambda: Bandit.make(preferences="intransitive"),
        lambda w, run: w.distance(run.policy, w.ipo(0.5)),
        1e-6,
        records=lambda w: w.pairs(),
        hyper={"tau": 0.5, "length_average": False},
    ),
    "slic": Experiment(
        "slic",
        "distance of log-probability gaps from delta",
        lambda: Bandit.make(8, 2),
        _hinge_margin,
        1e-3,
        records=lambda w: w.pairs(),
    ),
    "hinge-norm": Experiment(
        "slic",
        "distance of log-ratio gaps from 1/beta",
        lambda: Bandit.make(8, 2),
        _hinge_margin,
        1e-3,
        records=lambda w: w.pairs(),
        hyper={"form": "hinge-norm", "beta": 0.5},
    ),
    "simpo": Experiment(
        "simpo",
        "total variation to softmax(n r/beta), all lengths n, no margin",
        Sequences.make,
        _lengthwise,
        1e-5,
        records=lambda w: w.pairs(),
        hyper={"beta": 5.0, "gamma_beta_ratio": 0.0},
    ),
    "orpo": Experiment(
        "orpo",
        "largest gradient entry over the population",
        lambda: Sequences.make(1, 3, 2, eos=0),
        lambda w, run: run.stationarity(),
        1e-6,
        records=lambda w: w.pairs(),
        hyper={"lam": 0.5},
    ),
    "kto": Experiment(
        "kto",
        "largest gradient entry over the population and 64 mismatches",
        lambda: Bandit.make(4, 4),
        lambda w, run: run.stationarity(64),
        1e-4,
        records=lambda w: w.binary(),
        hyper={"beta": 0.5},
    ),
    "iopo": Experiment(
        "iopo",
        "largest error of log-ratio double differences against r/beta",
        lambda: LogLinear.make(5, 6, features=(2, 3)),
        _interaction,
        1e-5,
        records=lambda w: w.quadruples(),
        hyper={"beta": 0.5},
    ),
}
"""By name: a method's id, or a name of its own where a method has several."""


def _unused(_: Any) -> None:
    exact(1, 1)
