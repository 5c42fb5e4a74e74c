"""Batch-coupled methods: optimal transport between laws of rewards."""

from typing import Literal

from polyalign.errors import OptionError
from polyalign.feedback.records import Pair
from polyalign.objectives import Logistic, PowerHinge, Transport
from polyalign.recipe import Method, NonNegative, Offline, Positive, Smoothing, method


@method(
    id="aot",
    arxiv="2406.05882",
    feedback=Pair,
    tags=("distributional", "batch"),
    paper={"lr": 5e-7},
)
def aot(
    beta: Positive = 0.01,
    label_smoothing: Smoothing = 0.0,
    form: Literal["paired", "unpaired"] = "paired",
    cost: Literal["logistic", "hinge"] = "logistic",
    margin: NonNegative = 0.0,
    power: Positive = 1.0,
) -> Method:
    """Rewards of chosen answers dominate those of rejected ones as distributions, by quantile.

    Formula: paired `mean_i c(P_(i) - Q_(i))`, `P = lp_w - lp_l`, `Q = rf_w - rf_l`; unpaired
    `mean_i c(U_(i) - V_(i))`, `U = h_w`, `V = h_l`, sorted over the step;
    `c(t)` logistic `-(1-eps) logsig(beta t) - eps logsig(-beta t)`, hinge `max(0, margin - beta
    t)^power`. When: noisy pairs, or good and bad answers without pairing (form=unpaired); large
    steps. When not: tiny steps (one pair is exactly DPO) or pair labels that must each hold.
    Limits: the estimate depends on the step's size; all scores of a step are held at once.
    Deviations: hard sort only (the paper also tries a soft one); sorted over the whole optimizer
    step, where TRL sorts each micro-batch; unequal weights go through quantile functions.
    Source: Melnyk et al. 2024, equations 5 to 8.
    """
    if cost == "hinge":
        if label_smoothing > 0:
            raise OptionError(
                "aot: label_smoothing has no place in cost=hinge.", "Use cost=logistic."
            )
        if power < 1:
            raise OptionError(f"aot: power={power:g} is not convex.", "Use power >= 1.")
        return Offline(Transport(beta, form, PowerHinge(margin, power)))
    if margin > 0 or power != 1:
        raise OptionError("aot: margin and power belong to cost=hinge.", "Use cost=hinge.")
    return Offline(Transport(beta, form, Logistic(label_smoothing)))
