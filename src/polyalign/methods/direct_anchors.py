"""DPO beside the likelihood of chosen answers: without a reference, or against overoptimization."""

from typing import Literal

from polyalign.errors import OptionError
from polyalign.feedback.records import Pair
from polyalign.objectives import (
    Constant,
    Hinge,
    Logistic,
    MeanLogp,
    Pairwise,
    Squared,
    SumLogp,
    SumLogRatio,
)
from polyalign.objectives.likelihood import imitation
from polyalign.recipe import Method, NonNegative, Offline, Positive, Smoothing, method


@method(
    id="cpo",
    arxiv="2401.08417",
    feedback=Pair,
    aliases=("contrastive-preference-optimization",),
    tags=("reference-free", "translation"),
    paper={"lr": 1e-4, "epochs": 1},
)
def cpo(
    form: Literal["paper", "code"] = "paper",
    link: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
    beta: Positive = 0.1,
    alpha: NonNegative = 1.0,
    label_smoothing: Smoothing = 0.0,
) -> Method:
    """DPO with a uniform reference, held in place by the likelihood of chosen answers.

    Formula: sigmoid `z = beta (lp_w - lp_l)`, `-(1-eps) logsig(z) - eps logsig(-z) + alpha NLL_w`;
    hinge `max(0, 1 - z) + …`; ipo `(lp_w/n_w - lp_l/n_l - 1/(2 beta))^2 + …`. NLL_w is the mean of
    `-lp_w` in form=paper, and the mean over all tokens, `-sum lp_w / sum n_w`, in form=code.
    When: good answers and nearly as good ones (translations); half the memory of DPO.
    When not: pairs of very unequal length, since the gap is of sums.
    Limits: in form=paper alpha weighs a sum over tokens, in form=code an average.
    Deviations: none; the authors' present code is ARPO, another method. The links simpo and alphapo
    of TRL's cpo are methods of their own. Source: Xu et al. 2024.
    """
    if link != "sigmoid" and label_smoothing > 0:
        raise OptionError(
            f"cpo: label_smoothing has no place in link={link}.",
            "Use link=sigmoid, or leave it out.",
        )
    by: Literal["sum", "token"] = "sum" if form == "paper" else "token"
    anchors = imitation(alpha, by=by)
    if link == "ipo":
        margin = Constant(1.0 / (2.0 * beta))
        return Offline(Pairwise(MeanLogp(), margin=margin, link=Squared(), anchors=anchors))
    loss = Logistic(label_smoothing) if link == "sigmoid" else Hinge(1.0)
    return Offline(Pairwise(SumLogp(), scale=beta, link=loss, anchors=anchors))


@method(
    id="rpo",
    arxiv="2405.16436",
    feedback=Pair,
    aliases=("regularized-preference-optimization",),
    tags=("overoptimization", "theory"),
    paper={"lr": 5e-7, "epochs": 1},
)
def rpo(
    form: Literal["paper", "trl"] = "paper",
    beta: Positive = 0.01,
    eta: NonNegative = 0.005,
    baseline: Literal["chosen", "gold"] = "chosen",
) -> Method:
    """DPO with the likelihood of a baseline's answers, which provably limits overoptimization.

    Formula: `-logsig(beta (h_w - h_l)) - eta beta lp_b`, `h = log pi - log ref`, sums over answers;
    form=trl `… + eta NLL_b` with the mean over all tokens, whatever beta is.
    When: pairs that cover only a part of what the policy may say.
    When not: chosen answers that are themselves poor; give better ones as `gold`.
    Limits: at its defaults the likelihood's weight is 5e-5 on a sum over tokens: small by intent.
    Deviations: the baseline's answer b is the chosen one, as in the authors' code, or with
    baseline=gold the data's column `gold`. Two other methods are called RPO: reward-aware
    preference optimization, and the likelihood of chosen answers in iterative reasoning.
    Source: Liu et al. 2024.
    """
    weight = eta if form == "trl" else eta * beta
    anchors = imitation(weight, baseline, "token" if form == "trl" else "sum")
    return Offline(Pairwise(SumLogRatio(), scale=beta, anchors=anchors))
