"""Pairs with a third answer: one to imitate, or another model's best."""

from typing import Literal

from polyalign.errors import OptionError
from polyalign.feedback.records import Pair
from polyalign.objectives import (
    Constant,
    Hinge,
    Logistic,
    MeanLogp,
    Pairwise,
    SumLogp,
    TwoWinners,
)
from polyalign.objectives.likelihood import imitation
from polyalign.recipe import (
    Method,
    NonNegative,
    Offline,
    Positive,
    Probability,
    Smoothing,
    method,
)


@method(
    id="triple-po",
    arxiv="2405.16681",
    feedback=Pair,
    aliases=("triple-preference-optimization",),
    tags=("reference-free", "one-stage"),
    paper={"lr": 5e-7, "epochs": 1},
)
def triple_po(
    form: Literal["paper", "code"] = "paper",
    loss: Literal["tpo", "tpo-l"] = "tpo",
    link: Literal["sigmoid", "hinge"] = "sigmoid",
    beta: Positive = 0.1,
    alpha: NonNegative = 0.5,
    gamma: NonNegative | None = None,
) -> Method:
    """Imitation of a gold answer in one stage with a preference between two worse ones.

    Formula: tpo `z = beta (lp_w - lp_l)`; tpo-l `z = beta (lp_w/n_w - lp_l/n_l) - gamma` (0.5
    unless said); `L = -logsig(z) + alpha NLL_g`, hinge `max(0, 1 - z) + …`. NLL_g is the mean of
    `-lp_g` in form=paper, and the mean over all tokens, `-sum lp_g / sum n_g`, in form=code.
    When: three scored answers or more a prompt, and one stage from a base model. Pairs bring the
    gold answer as a column `gold`; `polyalign data pair FILE --rule second-worst` makes them of
    scored answers (the best is gold, the second chosen, the worst rejected).
    When not: pairs alone (then it is cpo). Limits: in form=paper alpha weighs a sum over tokens.
    Deviations: none; gamma with loss=tpo is refused. Source: Saeidi et al. 2024.
    """
    if gamma is not None and loss == "tpo":
        raise OptionError(
            "triple-po: gamma has no place in loss=tpo.", "Use loss=tpo-l, or leave it out."
        )
    by: Literal["sum", "token"] = "sum" if form == "paper" else "token"
    return Offline(
        Pairwise(
            SumLogp() if loss == "tpo" else MeanLogp(),
            scale=beta,
            margin=Constant(0.0 if loss == "tpo" else 0.5 if gamma is None else gamma),
            link=Logistic() if link == "sigmoid" else Hinge(1.0),
            anchors=imitation(alpha, "gold", by),
        )
    )


@method(
    id="wrpo",
    arxiv="2412.03187",
    feedback=Pair,
    aliases=("weighted-reward-preference-optimization",),
    tags=("model-fusion", "schedule"),
    paper={"lr": 3e-7, "epochs": 1},
)
def wrpo(
    form: Literal["paper", "losses"] = "paper",
    beta: Positive = 0.01,
    alpha: Probability = "0->0.1",  # type: ignore[assignment]  # any number may be a schedule
    label_smoothing: Smoothing = 0.0,
) -> Method:
    """DPO whose winner is two answers, another model's best and, at first mostly, the policy's own.

    Formula: `z = beta (alpha h_s + (1 - alpha) h_t - h_l)`, `h = log pi - log ref` summed over the
    answer, s the source's best, t and l the policy's own best and worst;
    `L = -(1-eps) logsig(z) - eps logsig(-z)`. alpha goes from 0 to 0.1 over the run. losses:
    `alpha L(s, l) + (1 - alpha) L(t, l)` of two dpo losses (the authors' ablation: alpha=0.5).
    When: to fuse other models' strengths without their vocabularies. Pairs of the policy's own
    answers bring the best of the others' as a column `source_chosen`.
    When not: sources no better than the policy.
    Limits: alpha = 0 is dpo on (t, l), alpha = 1 dpo on (s, l), far from the policy's own answers.
    Deviations: the sampling, scoring and SFT before it are yours to do. Source: Yang et al. 2024.
    """
    mixes: Literal["rewards", "losses"] = "rewards" if form == "paper" else "losses"
    return Offline(TwoWinners(alpha, beta, link=Logistic(label_smoothing), mixes=mixes))
