"""Control by acting: actor and critics."""

import math
from typing import Annotated

from pydantic import Field

from polyalign.feedback.records import Record
from polyalign.objectives import SacActor, SacCritic, SacTemperature
from polyalign.recipe import (
    Count,
    Environment,
    Method,
    Module,
    Optimizer,
    Positive,
    Real,
    Share,
    Stage,
    Stages,
    Update,
    method,
)


@method(
    id="sac",
    arxiv="1812.05905",
    feedback=Record,
    tags=("control", "off-policy", "baseline"),
    paper={"lr": 3e-4, "batch": 256},
)
def sac(
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.99,
    tau: Share = 0.005,
    alpha: Positive = 1.0,
    target_entropy: Real | None = None,
    learning_rate: Positive = 3e-4,
    warmup: Annotated[int, Field(ge=0)] = 1000,
    updates_per_step: Count = 1,
    buffer: Count = 1_000_000,
) -> Method:
    """Maximum-entropy control off-policy: twin critics, a pathwise actor, a learned temperature.

    Formula: `y = r + gamma (1-e) (min_j Qbar_j(s',a') - alpha log pi(a'|s'))`,
    `L_Q = sum_j 0.5 (Q_j(s,a) - y)^2`, `L_pi = alpha log pi(a|s) - min_j Q_j(s,a)`,
    `L_alpha = -log_alpha sg[log pi(a|s) + Htarget]`, `Qbar <- (1-tau) Qbar + tau Q`.
    When: continuous actions and costly environment steps. When not: offline data alone.
    Limits: rewards' scale matters less than with a fixed temperature, but still; a time limit is no
    termination and must not be reported as one. target_entropy is -dim(A) when not given; alpha is
    where the temperature starts.
    Deviations: actions before `warmup` come from the starting policy, where the reference code
    draws them uniformly; log alpha stands in the temperature's loss, as in common code.
    Source: Haarnoja et al. 2018, equations 5 to 9 and 18.
    """
    adam = Optimizer("adam", lr=learning_rate)
    critics = {f"q{j}": Module("q") for j in (1, 2)}
    targets = {f"q{j}_target": Module("q", target_of=f"q{j}", tau=tau) for j in (1, 2)}
    return Stages(
        Stage(
            (
                Update(SacCritic(gamma), trains=("q1", "q2"), optimizer=adam),
                Update(SacActor(), optimizer=adam),
                Update(SacTemperature(target_entropy), trains=("log_alpha",), optimizer=adam),
            ),
            streams={
                "data": Environment(
                    warmup=warmup, updates_per_step=updates_per_step, capacity=buffer
                )
            },
            modules={
                **critics,
                **targets,
                "log_alpha": Module("scalar", {"init": math.log(alpha)}),
            },
        )
    )
