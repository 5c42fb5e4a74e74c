"""Methods that alternate training with choosing or making feedback."""

from typing import Annotated

from pydantic import Field

from polyalign.errors import OptionError
from polyalign.feedback.records import Pair
from polyalign.loops.selection import Bootstrap, SelectByMargin, Together
from polyalign.objectives import Pairwise, SumLogRatio
from polyalign.recipe import (
    Count,
    Method,
    Positive,
    Probability,
    Records,
    Share,
    Stage,
    Stages,
    Update,
    method,
)


@method(
    id="sera",
    arxiv="2410.09362",
    feedback=Pair,
    tags=("label-noise", "self-training"),
    paper={"lr": 5e-7, "epochs": 1},
)
def sera(
    n_iter: Count = 3,
    keep_ratio: Share = 0.7,
    n_generate: Annotated[int, Field(ge=0)] = 4,
    keep_ratio_generated: Share = 0.7,
    ensemble_gamma: Probability = 0.3,
    beta: Positive = 0.1,
    temperature: Positive = 0.7,
) -> Method:
    """DPO in iterations on the pairs its last policies trust most, and on pairs of its own samples.

    Formula: `M_1 = m_1`, `M_t = (1-gamma) m_t + gamma m_{t-1}`, m the implicit reward margin; keep
    the `ceil(keep_ratio N)` largest; best against worst of n_generate samples by the same
    ensemble, ties and identical texts dropped; then DPO on both from the current policy.
    When: noisy or spurious preferences, no reward model. When not: few clean pairs.
    Limits: implicit rewards are sums, so length counts; bootstrapping sharpens the policy (watch
    the divergence). n_generate=0 only filters. The run's epochs count for each iteration.
    Deviations: the base loss is DPO; ensemble weight, ratios and n are unconfirmed in the paper's
    text; the reference is the start in every iteration.
    Source: Ko et al. 2024, section 4.
    """
    if n_generate == 1:
        raise OptionError(
            "sera: one sample makes no pair.", "Use n_generate=0 (filter only) or >= 2."
        )
    train = (Update(Pairwise(SumLogRatio(), scale=beta)),)
    stages = [Stage(train)]
    for t in range(1, n_iter):
        # Before the first trained policy there is only the start, whose margins are all zero.
        gamma = ensemble_gamma if t >= 2 else 0.0
        review = [SelectByMargin(keep_ratio, gamma)]
        made = [Bootstrap(n_generate, keep_ratio_generated, gamma, temperature, f"self{t}")]
        steps = Together((*review, *(made if n_generate else ())))
        stages.append(Stage(train, streams={"data": Records() >> steps}))
    return Stages(*stages)
