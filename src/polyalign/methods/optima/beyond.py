"""Known optima of methods with values, stages, samples or actions of their own."""

from __future__ import annotations

from typing import Any

import torch

from polyalign.environments.lqr import LqrEnvironment
from polyalign.feedback.records import Pair
from polyalign.feedback.store import load
from polyalign.methods.optima.known import Known
from polyalign.protocols import Policy
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.loglinear import LogLinear
from polyalign.worlds.lqr import Lqr
from polyalign.worlds.sequences import Sequences, path_sums


def _interaction(world: LogLinear, run: Any) -> float:
    ratio = world.log_ratio_interaction(world.law(run.policy))
    return float((ratio - world.iopo(run.hyper["beta"])).abs().max())


def _against_pairs_alone(world: Sequences, run: Any) -> float:
    """Mean D(y_l) over the pairs and KL to the start, each over what DPO gives; the larger."""
    other = run.again("dpo", {"beta": run.hyper["beta"]})
    index = {y: i for i, y in enumerate(world.completions)}
    rejected = torch.tensor([index[p.rejected] for p in run.session.records if isinstance(p, Pair)])

    def spent(policy: Policy) -> tuple[float, float]:
        table = policy.tensors()["logits"].log_softmax(-1)
        return float(world.forward_kl(table)[0, rejected].mean()), world.point(policy).kl

    ours, theirs = spent(run.policy), spent(other.policy)
    return max(ours[0] / theirs[0], ours[1] / theirs[1])


def _soft_bellman(world: Sequences, run: Any) -> float:
    """The larger of the law's total variation and the values' largest error at used prefixes."""
    soft = world.soft_values(run.hyper["beta"])
    law = world.distance(run.policy, path_sums(soft.policy, world.completions))
    table = run.session.cast.modules["value"].state_dict()["table"].squeeze(-1)
    used = world.reachable()
    return max(law, float((table - soft.value)[:, used].abs().max()))


def _kept_flips(world: Bandit, run: Any) -> float:
    """Flip rate among offline pairs that the first selection kept, over that of all pairs."""
    flipped = {p.key: bool(p.meta["flipped"]) for p in run.session.records}
    kept = [load(data).key for data in run.session.hooks.get("stage-1-records") or ()]
    inside = [flipped[key] for key in kept if key in flipped]
    return (sum(inside) / len(inside)) / (sum(flipped.values()) / len(flipped))


def _missed_reward(world: Bandit, run: Any) -> float:
    best = float(world.reward.max(-1).values.mean())
    start = world.point(world.start).reward
    return (best - world.point(run.policy).reward) / (best - start)


def _soft_gaussian(world: Lqr, run: Any) -> float:
    """KL(pi* || policy), pi* at the temperature whose entropy is the target, over normal states."""
    best = world.optimum(world.alpha_at(run.hyper["target_entropy"]))
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(64, world.state_size, generator=draw, dtype=torch.float64)
    return best.kl(run.policy, states, samples=16)


KNOWN: dict[str, tuple[Known, ...]] = {
    "tdpo": (
        Known(
            "D(y_l) and KL as shares of DPO's on the same pairs, the larger one",
            world="sequences",
            make={"spread": 1.5},
            feedback=lambda w: w.pairs(600),
            hyper={"beta": 0.1, "alpha": 0.5},
            measure=_against_pairs_alone,
            tolerance=0.8,
            steps=150,
            finish=False,
        ),
    ),
    "oreo": (
        Known(
            "ref exp(r/beta)/Z and the soft Bellman values, token by token",
            world="sequences",
            make={"eos": 0},
            feedback=lambda w: w.scored(),
            hyper={"beta": 0.5, "alpha": 0.0},
            measure=_soft_bellman,
            tolerance=1e-4,
            steps=300,
        ),
    ),
    "sera": (
        Known(
            "flip rate of the pairs kept after one iteration, as a share of the overall rate",
            make={"prompts": 8, "responses": 24, "noise": 0.25},
            feedback=lambda w: w.pairs(2000),
            hyper={"beta": 0.5, "n_iter": 2},
            measure=_kept_flips,
            tolerance=0.8,
            steps=100,
        ),
    ),
    "grpo": (
        Known(
            "share of the achievable reward that is not reached",
            make={"prompts": 4, "responses": 8},
            hyper={"G": 8, "beta": 0.0, "L_max": 1},
            measure=_missed_reward,
            tolerance=0.1,
            steps=200,
            settings={"batch": 32},
        ),
    ),
    "sac": (
        Known(
            "KL of the soft-optimal Gaussian from the policy, nats",
            world="lqr",
            make={"gamma": 0.5},
            hyper={
                "gamma": 0.5,
                "tau": 0.3,
                "target_entropy": 1.0,
                "learning_rate": 0.06,
                "warmup": 200,
            },
            measure=_soft_gaussian,
            tolerance=0.005,
            steps=1,
            settings={"batch": 64, "max_steps": 400, "betas": (0.5, 0.99)},
            environment=lambda w: LqrEnvironment(w, horizon=8, spread=1.5),
        ),
    ),
    "iopo": (
        Known(
            "double differences of log pi/ref are those of r/beta",
            world="loglinear",
            make={"instructions": 4, "responses": 5, "features": (2, 3)},
            hyper={"beta": 0.5},
            measure=_interaction,
        ),
    ),
}
