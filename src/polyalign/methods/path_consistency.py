"""Offline reinforcement learning from judged trajectories by path consistency."""

from typing import Literal

from polyalign.feedback.records import Scored
from polyalign.objectives import OreoPolicy, OreoValue
from polyalign.recipe import Method, Module, NonNegative, Positive, Stage, Stages, Update, method


@method(
    id="oreo",
    arxiv="2412.16145",
    feedback=Scored,
    tags=("reasoning", "value", "credit"),
    paper={"lr": 5e-6, "batch": 128, "epochs": 1},
)
def oreo(
    beta: Positive = 0.03,
    alpha: NonNegative | None = None,
    level: Literal["token", "step", "response"] = "token",
) -> Method:
    """Policy and value learn together that rewards, values and log-ratios agree along trajectories.

    Formula: `L_V = (1/T) sum_t (V(s_t) - R + beta sg[sum_{i>=t} lr_i])^2`,
    `L_pi = (1/T) sum_t (sg[V(s_t)] - R + beta lr_t + sg[beta sum_{i>t} lr_i])^2 + alpha
    KL(pi||ref)`, lr the log-ratio to the reference; t counts tokens, steps (segments) or one whole
    response. When: many judged answers per problem, right and wrong, without pairs; multi-step
    reasoning. When not: all answers of a problem share one reward. Limits: a separate value
    network; the reference must be live for the KL (alpha=0 lifts that).
    Deviations: none; alpha is 0.01, 0.1 or 0.3 by level when not given, as published.
    Source: Wang et al. 2024, equations 7 to 10.
    """
    if alpha is None:
        alpha = {"token": 0.01, "step": 0.1, "response": 0.3}[level]
    return Stages(
        Stage(
            (
                Update(OreoValue(beta, level), trains=("value",)),
                Update(OreoPolicy(beta, alpha, level)),
            ),
            modules={"value": Module("value")},
            together=True,
        )
    )
