"""The laboratory's experiments: each method in a world that knows what it must find."""

from __future__ import annotations

import math

import torch

from polyalign.environments.lqr import LqrEnvironment
from polyalign.feedback.records import Pair
from polyalign.feedback.store import load
from polyalign.protocols import Policy
from polyalign.studies.lab import Experiment, LabRun, exact, train
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.loglinear import LogLinear
from polyalign.worlds.lqr import Lqr
from polyalign.worlds.sequences import Sequences, path_sums


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


def _against_dpo(world: Sequences, run: LabRun) -> float:
    """Mean D(y_l) over the pairs and KL to the start, each over what DPO gives; the larger."""
    hyper = {"beta": run.session.method.hyper["beta"]}
    settings = run.session.settings
    dpo = train("dpo", world, run.session.records, hyper, settings=settings)
    index = {y: i for i, y in enumerate(world.completions)}
    rejected = torch.tensor([index[p.rejected] for p in run.session.records if isinstance(p, Pair)])

    def spent(policy: Policy) -> tuple[float, float]:
        table = policy.tensors()["logits"].log_softmax(-1)
        return float(world.forward_kl(table)[0, rejected].mean()), world.point(policy).kl

    own, other = spent(run.policy), spent(dpo.policy)
    return max(own[0] / other[0], own[1] / other[1])


def _soft_bellman(world: Sequences, run: LabRun) -> float:
    """The larger of the law's total variation and the values' largest error at used prefixes."""
    soft = world.soft_values(run.session.method.hyper["beta"])
    law = world.distance(run.policy, path_sums(soft.policy, world.completions))
    table = run.session.cast.modules["value"].state_dict()["table"].squeeze(-1)
    used = world.reachable()
    return max(law, float((table - soft.value)[:, used].abs().max()))


def _kept_flips(world: Bandit, run: LabRun) -> float:
    """Flip rate among offline pairs that the first selection kept, over that of all pairs."""
    flipped = {p.key: bool(p.meta["flipped"]) for p in run.session.records}
    kept = [load(data).key for data in run.session.hooks.get("stage-1-records") or ()]
    inside = [flipped[key] for key in kept if key in flipped]
    return (sum(inside) / len(inside)) / (sum(flipped.values()) / len(flipped))


def _missed_reward(world: Bandit, run: LabRun) -> float:
    best = float(world.reward.max(-1).values.mean())
    start = world.point(world.start).reward
    return (best - world.point(run.policy).reward) / (best - start)


def _soft_gaussian(world: Lqr, run: LabRun) -> float:
    """KL(pi* || policy), pi* at the temperature whose entropy is the target, over normal states."""
    target = run.session.method.hyper["target_entropy"]
    best = world.optimum(world.alpha_at(target))
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(64, world.state_size, generator=draw, dtype=torch.float64)
    return best.kl(run.policy, states, samples=16)


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
        2e-3,
        records=lambda w: w.pairs(),
    ),
    "hinge-norm": Experiment(
        "slic",
        "distance of log-ratio gaps from 1/beta",
        lambda: Bandit.make(8, 2),
        _hinge_margin,
        2e-3,
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
    "aot": Experiment(
        "aot",
        "hinge cost left when dominance by a margin is reachable",
        lambda: Bandit.make(preferences="deterministic"),
        lambda w, run: run.loss(),
        1e-9,
        records=lambda w: w.pairs(),
        hyper={"beta": 0.5, "cost": "hinge", "margin": 1.0},
        steps=150,
    ),
    "tdpo": Experiment(
        "tdpo",
        "D(y_l) and KL as shares of DPO's, the larger one",
        lambda: Sequences.make(1, 3, 3, spread=1.5),
        _against_dpo,
        0.8,
        records=lambda w: w.pairs(600),
        hyper={"beta": 0.1, "alpha": 0.5},
        steps=400,
    ),
    "oreo": Experiment(
        "oreo",
        "largest error of law and values against the soft Bellman solution",
        lambda: Sequences.make(1, 3, 3, eos=0),
        _soft_bellman,
        1e-5,
        records=lambda w: w.scored(),
        hyper={"beta": 0.5, "alpha": 0.0},
        steps=400,
    ),
    "sera": Experiment(
        "sera",
        "flip rate of the pairs kept after one iteration, as a share of the overall rate",
        lambda: Bandit.make(8, 24, noise=0.25),
        _kept_flips,
        0.8,
        records=lambda w: w.pairs(2000),
        hyper={"beta": 0.5, "n_iter": 2},
        steps=100,
    ),
    "grpo": Experiment(
        "grpo",
        "share of the achievable reward that is not reached",
        lambda: Bandit.make(4, 8),
        _missed_reward,
        0.1,
        records=lambda w: w.asked(),
        hyper={"G": 8, "beta": 0.0, "L_max": 1},
        steps=200,
        settings=lambda records, steps: exact(8 * len(records), steps, epochs=float(steps)),
    ),
    "sac": Experiment(
        "sac",
        "KL of the soft-optimal Gaussian from the policy, nats",
        lambda: Lqr.make(gamma=0.5),
        _soft_gaussian,
        0.005,
        hyper={
            "gamma": 0.5,
            "tau": 0.3,
            "target_entropy": 1.0,
            "learning_rate": 0.06,
            "warmup": 200,
        },
        steps=400,
        settings=lambda records, steps: exact(64, 1, max_steps=steps, betas=(0.5, 0.99)),
        environment=lambda w: LqrEnvironment(w, horizon=8, spread=1.5),
    ),
    "iopo": Experiment(
        "iopo",
        "largest error of log-ratio double differences against r/beta",
        lambda: LogLinear.make(5, 6, features=(2, 3)),
        _interaction,
        1e-5,
        records=lambda w: w.quadruples(),
        hyper={"beta": 0.5},
        steps=400,
    ),
}
"""By name: a method's id, or a name of its own where a method has several."""
