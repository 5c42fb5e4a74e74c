"""DPO with labels that may be wrong, or that say how much better the chosen answer is."""

from typing import Literal

from polyalign.feedback.records import Pair
from polyalign.objectives import Hinge, Pairwise, Robust, SumLogRatio
from polyalign.objectives.anchored import Toward
from polyalign.objectives.links import Link, Logistic
from polyalign.objectives.soft_labels import ScoreGap, SoftLogistic, Strength
from polyalign.recipe import Method, NonNegative, Offline, Positive, Smoothing, method


@method(
    id="robust-dpo",
    arxiv="2403.00409",
    feedback=Pair,
    aliases=("rdpo-robust",),
    tags=("label-noise", "theory"),
    paper={"lr": 1e-6, "epochs": 1},
)
def robust_dpo(
    eps: Smoothing = 0.1,
    beta: Positive = 0.1,
    loss: Literal["logistic", "squared", "hinge"] = "logistic",
) -> Method:
    """DPO with the loss that is unbiased when each label is flipped with a known probability.

    Formula: `[(1 - eps) l(z) - eps l(-z)] / (1 - 2 eps)`, `z = beta (h_w - h_l)`; `l(z)` logistic
    `-logsig(z)`; squared `(z - 1/2)^2`, IPO; hinge `max(0, 1 - z)`, SLiC.
    When: labels are flipped at random at a rate that you know or can tune on clean held-out pairs.
    When not: labels are wrong where the choice is hard, or soft already.
    Limits: logistic and hinge fall without bound on a pair that never occurs flipped: stop early.
    The variance grows like `1 / (1 - 2 eps)^2`. eps = 0 is the plain loss.
    Deviations: AdamW. The same as dpo loss=robust where loss is logistic.
    Source: Chowdhury et al. 2024, equation 11.
    """
    links: dict[str, Link] = {"logistic": Logistic(), "squared": Toward(0.5), "hinge": Hinge(1.0)}
    return Offline(Pairwise(SumLogRatio(), scale=beta, link=Robust(eps, links[loss])))


@method(
    id="mmpo",
    arxiv="2410.03145",
    feedback=Pair,
    tags=("strength", "calibration"),
    paper={"lr": 5e-7, "epochs": 1},
)
def mmpo(gamma: NonNegative = 2.2, beta: Positive = 0.01) -> Method:
    """DPO whose label is a probability made of both answers' scores, so margins match score gaps.

    Formula: `-p logsig(z) - (1 - p) logsig(-z)`, `z = beta (h_w - h_l)`,
    `p = sig(gamma (s_w - s_l))`; least where `z = gamma (s_w - s_l)`.
    When: pairs with graded quality (columns score_chosen and score_rejected).
    When not: scores on no common scale. Limits: gamma belongs to the scale of the scores
    (published: 2.2, 1.1 and 0.3); gamma = 0 keeps the reference. A pair whose rejected score is the
    higher one has p < 1/2 and is learnt that way round, as in the authors' code.
    Deviations: none. Source: Kim et al. 2024.
    """
    return Offline(Pairwise(SumLogRatio(), scale=beta, link=SoftLogistic(ScoreGap(gamma))))


@method(
    id="osp",
    arxiv="2405.14103",
    feedback=Pair,
    tags=("strength", "self-training"),
    paper={"lr": 1e-5},
)
def osp(beta: Positive = 0.1) -> Method:
    """DPO on pairs with a preference strength each, as the soft cross-entropy of that strength.

    Formula: `-p logsig(z) - (1 - p) logsig(-z)`, `z = beta (h_w - h_l)`; p is the pair's number
    `strength` in [0, 1]; least where `z = log(p / (1 - p))`. p = 1 is DPO, p = 1/2 keeps the
    reference's odds.
    When: something says how probably the chosen answer is better: the policy's own judgement in
    both orders, `p = (J(w, l) + 1 - J(l, w)) / 2`, shares of votes, a preference model.
    When not: hard labels only. Limits: this is the loss; sampling and self-judging in rounds are
    not part of it.
    Deviations: only the paper's abstract was read; that strength enters as a soft label is
    inferred from it.
    Source: Zhai et al. 2024.
    """
    return Offline(Pairwise(SumLogRatio(), scale=beta, link=SoftLogistic(Strength())))
