"""DPO with another loss of its margin, or with more that the margin has to exceed."""

from polyalign.feedback.records import Pair
from polyalign.objectives import (
    ChosenShortfall,
    LogRatioModulated,
    MeanLogp,
    Pairwise,
    SoftReferenceGap,
    SumLogRatio,
)
from polyalign.recipe import Method, NonNegative, Offline, Positive, method


@method(
    id="discopop",
    arxiv="2406.08414",
    feedback=Pair,
    aliases=("lrml",),
    tags=("discovered", "non-convex"),
    paper={"lr": 5e-7, "batch": 64, "epochs": 1},
)
def discopop(beta: Positive = 0.05, tau: Positive = 0.05) -> Method:
    """DPO's margin under a blend of logistic and exponential loss that a language model proposed.

    Formula: `z = beta (h_w - h_l)`, `h = log pi - log ref` summed over the answer,
    `m = sig(z / tau)`; `L = (1 - m) softplus(-z) + m exp(-z)`, gradient through m.
    When: clean pairs, as a stronger push on pairs that are nearly right.
    When not: you want every pair ranked: for small tau the loss rises around z = 0 (at tau 0.05
    from -0.119 to +0.072), so at the start each step lowers the margin, and pairs may stay there.
    Limits: not convex. beta acts through z and, with z / tau, through the width of the blend.
    Deviations: the exponent is cut at 60, which matters only for tau above 1.
    Source: Lu et al. 2024, where it is called LRML (log-ratio modulated loss).
    """
    return Offline(Pairwise(SumLogRatio(), scale=beta, link=LogRatioModulated(tau)))


@method(
    id="dpop",
    arxiv="2402.13228",
    feedback=Pair,
    aliases=("dpo-positive", "smaug"),
    tags=("likelihood-displacement",),
    paper={"lr": 5e-5},
)
def dpop(beta: Positive = 0.3, lam: NonNegative = 50.0) -> Method:
    """DPO that also charges whatever likelihood the chosen answer has lost to the reference.

    Formula: `z = beta (h_w - h_l - lam max(0, -h_w))`, `h = log pi - log ref` summed over the
    answer; `L = -logsig(z)`.
    When: pairs that differ in a few tokens, where DPO lowers both answers (watch logps/chosen).
    When not: chosen answers that are not worth keeping likely.
    Limits: while `h_w < 0` the pull on the chosen answer is 1 + lam times the push on the rejected
    one, close to SFT; lam = 0 is DPO. At the start (`h_w = 0`) the gradient is DPO's.
    Deviations: none; some libraries put the penalty outside beta or outside the sigmoid. The
    authors' repository holds no trainer; beta 0.3 and lam 50 are what re-implementations that set
    out to repeat the paper use, and lam 50 is the default of PaddleNLP's.
    Source: Pal et al. 2024, equation 3.
    """
    return Offline(Pairwise(SumLogRatio(), scale=beta, margin=ChosenShortfall(beta * lam)))


@method(
    id="mipo",
    arxiv="2409.17545",
    feedback=Pair,
    tags=("length", "reference-strength"),
    paper={"lr": 5e-7, "batch": 128, "epochs": 1},
)
def mipo(beta: Positive = 20.0) -> Method:
    """SimPO with a margin of each pair that is large where the reference already gets it right.

    Formula: `z = beta (lp_w/n_w - lp_l/n_l - softplus(K))`, `K = rf_w/n_w - rf_l/n_l`;
    `L = -logsig(z)`.
    When: data of which the reference gets a part wrong: there (K far below 0) it is left behind as
    by simpo, elsewhere (K far above 0) kept as by ln-dpo.
    When not: a reference that ranks most pairs wrongly only because of their lengths.
    Limits: harder than both of these on each pair; the loss at the start is above log 2.
    Deviations: none. Source: Jang et al. 2024; the authors find 5 to 25 to work for beta.
    """
    return Offline(Pairwise(MeanLogp(), scale=beta, margin=SoftReferenceGap(beta)))
