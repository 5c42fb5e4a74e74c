"""Direct methods from pairs: DPO and its first relatives, as reward x margin x link, with anchors.

    z = scale (reward(chosen) - reward(rejected)) - margin;    L = weight link(z) + anchors

DPO takes summed log-ratios, no margin and the logistic link. What the others change stands in the
names of the files beside this one: how an answer's length or its tokens count (``direct_lengths``,
``direct_tokens``), the shape of the reward (``direct_shapes``), the margin or the loss of it
(``direct_margins``), soft labels (``direct_soft``), weights (``direct_weighted``), a likelihood
beside (``direct_anchors``), a third answer (``direct_third_answers``).
"""

import warnings
from collections.abc import Callable
from typing import Literal

from polyalign.errors import OptionError, PolyalignWarning
from polyalign.feedback.records import Pair, Quadruple
from polyalign.objectives import (
    Constant,
    GroupPreference,
    Hinge,
    Logistic,
    LogOdds,
    MeanLogp,
    MeanLogRatio,
    Mixed,
    Nll,
    Pairwise,
    ReverseKl,
    Robust,
    Squared,
    SumLogp,
    SumLogRatio,
    Toward,
)
from polyalign.objectives.likelihood import imitation
from polyalign.objectives.links import Link
from polyalign.recipe import Method, NonNegative, Offline, Positive, Real, Smoothing, method


@method(
    id="dpo",
    arxiv="2305.18290",
    feedback=Pair,
    tags=("baseline", "label-noise"),
    paper={"lr": 1e-6, "batch": 64, "epochs": 1},
)
def dpo(
    beta: Positive = 0.1,
    loss: Literal["dpo", "cdpo", "robust"] = "dpo",
    label_smoothing: Smoothing = 0.0,
) -> Method:
    """Logistic loss on the difference of implicit rewards, the log-ratios to a frozen reference.

    Formula: `z = beta (h_w - h_l)`, `h = log pi - log ref` summed over the answer.
    dpo `-logsig(z)`; cdpo `-(1-eps) logsig(z) - eps logsig(-z)`;
    robust `[-(1-eps) logsig(z) + eps logsig(-z)] / (1 - 2 eps)`.
    When: clean pairs near the policy's own distribution. cdpo or robust (eps about 0.1) when labels
    are flipped at random. When not: one-sided or length-biased pairs (see ipo, simpo).
    Limits: the chosen answer's likelihood can fall while the margin grows (watch logps/chosen);
    robust is unbounded below on a pair that never occurs flipped.
    Deviations: AdamW (the paper used RMSprop). `label_smoothing` with loss=dpo is refused.
    Source: Rafailov et al. 2023, equation 7; cdpo: Mitchell 2023; robust: arXiv 2403.00409.
    """
    if loss == "dpo" and label_smoothing > 0:
        raise OptionError(
            "dpo: label_smoothing has no place in loss=dpo.",
            "Use loss=cdpo (smoothed) or loss=robust (unbiased under flips), or leave it out.",
        )
    if loss != "dpo" and label_smoothing == 0:
        warnings.warn(
            f"dpo: loss={loss} is plain DPO without label_smoothing; give the share of flipped "
            "labels, about 0.1.",
            PolyalignWarning,
            stacklevel=2,
        )
    link = Robust(label_smoothing) if loss == "robust" else Logistic(label_smoothing)
    return Offline(Pairwise(SumLogRatio(), scale=beta, link=link))


@method(
    id="ipo",
    arxiv="2310.12036",
    feedback=Pair,
    tags=("overfitting", "theory"),
    paper={"lr": 1e-6, "batch": 64, "epochs": 1},
)
def ipo(tau: Positive = 0.1, length_average: bool = True) -> Method:
    """Regression of the log-ratio gap to 1/(2 tau), which stays finite on one-sided preferences.

    Formula: `(D - 1/(2 tau))^2`, `D = h_w - h_l`; with `length_average` `h/n` instead of `h`.
    When: near-deterministic labels, where DPO drifts to a greedy policy.
    When not: graded preferences whose strength matters to you.
    Limits: the averaged form (default, the one behind published numbers) needs a smaller tau than
    the paper's summed equation 17; for exact worlds use length_average=false.
    Deviations: none from the named forms. Source: Azar et al. 2023, equation 17.
    """
    reward = MeanLogRatio() if length_average else SumLogRatio()
    return Offline(Pairwise(reward, margin=Constant(1.0 / (2.0 * tau)), link=Squared()))


@method(
    id="slic",
    arxiv="2305.10425",
    feedback=Pair,
    aliases=("slic-hf",),
    tags=("hinge",),
    paper={"lr": 1e-4, "batch": 512, "epochs": 1},
)
def slic(
    form: Literal["paper", "hinge-norm"] = "paper",
    delta: Positive = 1.0,
    lam: NonNegative = 0.1,
    beta: Positive = 0.05,
) -> Method:
    """Hinge loss on the gap of sequence log-probabilities, anchored to the target's likelihood.

    Formula: paper `max(0, delta - lp_w + lp_l) - lam lp_t` (sums; the target is the data's column
    `gold`, or else the chosen answer); hinge-norm `max(0, 1 - beta D)` on log-ratios to a reference
    (TRL's "hinge"; uses beta only).
    When: cheap alignment without a reference. When not: pairs of very unequal length.
    Limits: delta is a margin on whole sequences; without lam the policy drifts from its start.
    Deviations: without a column `gold`, the chosen answer stands for the paper's SFT target.
    Source: Zhao et al. 2023, section 2.1; hinge-norm: Liu et al. 2023 (RSO).
    """
    if form == "hinge-norm":
        if (delta, lam) != (1.0, 0.1):
            name = "delta" if delta != 1.0 else "lam"
            raise OptionError(
                f"slic: {name} has no place in form=hinge-norm.", "Use beta, or form=paper."
            )
        return Offline(Pairwise(SumLogRatio(), scale=beta, link=Hinge(1.0)))
    if beta != 0.05:
        raise OptionError(
            "slic: beta has no place in form=paper.", "Use delta and lam, or form=hinge-norm."
        )
    anchors = imitation(lam, "target", "sum")
    return Offline(Pairwise(SumLogp(), link=Hinge(delta), anchors=anchors))


@method(
    id="simpo",
    arxiv="2405.14734",
    feedback=Pair,
    tags=("reference-free", "length"),
    paper={"lr": 1e-6, "batch": 128, "epochs": 1},
)
def simpo(
    beta: Positive = 2.5,
    gamma_beta_ratio: Real = 0.55,
    label_smoothing: Smoothing = 0.0,
    sft_weight: NonNegative = 0.0,
    link: Literal["sigmoid", "hinge"] = "sigmoid",
) -> Method:
    """DPO on mean log-probabilities, without a reference, with a target margin.

    Formula: `z = beta (lp_w/n_w - lp_l/n_l) - gamma`, `gamma = beta * gamma_beta_ratio`;
    `L = -(1-eps) logsig(z) - eps logsig(-z) + sft_weight NLL_w`; hinge: `max(0, 1 - z)`.
    When: pairs from the policy's own samples; one forward pass, half the memory of DPO.
    When not: long training without an anchor. Limits: very sensitive to the learning rate; without
    a reference the divergence is unbounded, so stop early or give sft_weight.
    Deviations: the ratio gamma/beta is the parameter, as in the authors' code; NLL_w is by token.
    Source: Meng et al. 2024, equation 6.
    """
    if gamma_beta_ratio < 0:
        warnings.warn(
            f"simpo: gamma_beta_ratio={gamma_beta_ratio:g} asks chosen answers to be worse.",
            PolyalignWarning,
            stacklevel=2,
        )
    if link == "hinge" and label_smoothing > 0:
        raise OptionError(
            "simpo: label_smoothing has no place in link=hinge.",
            "Use link=sigmoid, or leave it out.",
        )
    return Offline(
        Pairwise(
            MeanLogp(),
            scale=beta,
            margin=Constant(beta * gamma_beta_ratio),
            link=Logistic(label_smoothing) if link == "sigmoid" else Hinge(1.0),
            anchors=imitation(sft_weight),
        )
    )


@method(
    id="orpo",
    arxiv="2403.07691",
    feedback=Pair,
    tags=("reference-free", "one-stage"),
    paper={"lr": 5e-6, "batch": 64, "epochs": 5},
)
def orpo(lam: NonNegative = 0.1) -> Method:
    """Imitation of chosen answers with a logistic penalty on the odds of rejected ones.

    Formula: `NLL_w + lam * mean(-logsig(lo(a_w) - lo(a_l)))`, `a = lp/n`,
    `lo(a) = a - log(1 - exp(a))`, `NLL_w = -sum lp_w / sum n_w` over the whole step.
    When: one stage from a base model, without SFT or a reference.
    When not: a model already tuned, whose answers you want to keep.
    Limits: lam is a weight of the loss and no temperature (TRL calls it beta).
    Deviations: the likelihood covers the answer only; the authors' code adds the prompt's tokens.
    Source: Hong et al. 2024, equations 6 and 7.
    """
    return Offline(Pairwise(LogOdds(), coefficient=lam, anchors=(Nll(),)))


@method(
    id="iopo",
    arxiv="2411.06208",
    feedback=Quadruple,
    tags=("instructions", "inputs"),
    paper={"lr": 1e-4, "epochs": 3},
)
def iopo(
    beta: Positive = 0.1,
    label_smoothing: Smoothing = 0.0,
    link: Literal["sigmoid", "robust", "exo", "hinge", "ipo"] = "sigmoid",
) -> Method:
    """Preference between two prompts' right pairings with two answers and their wrong pairings.

    Formula: `z = beta (r_11 + r_22 - r_12 - r_21)`, `r_ij = log pi(y_j|x_i) - log ref(y_j|x_i)`;
    `L = -(1-eps) logsig(z) - eps logsig(-z)`: two DPO margins inside one sigmoid. The authors' code
    has other losses of z: robust (dpo loss=robust), exo (form=pref), hinge `max(0, 1 - z)`, ipo
    `(z / beta - 1/(2 beta))^2`; eps is label_smoothing.
    When: complex instructions whose constraints change what is right.
    When not: plain pairs; the quadruple must be wrong both ways.
    Limits: four rows a unit. Deviations: exo asks for eps, where the code takes 0.001 without a
    word. Source: Zhang et al. 2024, equation 9, and their trainer.
    """
    if link in ("hinge", "ipo") and label_smoothing > 0:
        raise OptionError(
            f"iopo: label_smoothing has no place in link={link}.", "Use link=sigmoid or robust."
        )
    if link == "exo" and label_smoothing == 0:
        raise OptionError(
            "iopo: link=exo needs label_smoothing above 0.", "Give label_smoothing=0.001."
        )
    links: dict[str, Callable[[], Link]] = {
        "sigmoid": lambda: Logistic(label_smoothing),
        "robust": lambda: Robust(label_smoothing),
        "exo": lambda: ReverseKl(label_smoothing),
        "hinge": lambda: Hinge(1.0),
        "ipo": lambda: Mixed(1.0 / beta**2, 0.0, Toward(0.5)),
    }
    return Offline(GroupPreference(SumLogRatio(), scale=beta, link=links[link]()))
