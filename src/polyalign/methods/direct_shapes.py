"""DPO and SimPO with another reward: log-ratios or log-probabilities bent by a function."""

from typing import Annotated, Literal

from pydantic import Field

from polyalign.errors import OptionError
from polyalign.feedback.records import Pair
from polyalign.objectives import (
    AlphaPower,
    Anchored,
    Constant,
    JensenShannon,
    Logistic,
    LogOdds,
    MeanLogp,
    MeanLogRatio,
    Pairwise,
    Shaped,
    SumLogRatio,
)
from polyalign.objectives.anchored import Down
from polyalign.objectives.likelihood import imitation
from polyalign.objectives.reward_shapes import Shape
from polyalign.objectives.rewards import Reward
from polyalign.recipe import Method, NonNegative, Offline, Positive, Real, Smoothing, method

Between = Annotated[float, Field(gt=0, lt=1)]


@method(
    id="f-dpo",
    arxiv="2309.16240",
    feedback=Pair,
    tags=("divergence", "diversity"),
    paper={"lr": 1e-6, "batch": 64},
)
def f_dpo(
    divergence: Literal["js", "forward_kl", "alpha", "reverse_kl"] = "js",
    beta: Positive = 0.1,
    alpha: Between | None = None,
) -> Method:
    """DPO for another divergence from the reference than the reverse KL.

    Formula: `z = beta (s(h_w) - s(h_l))`, `L = -logsig(z)`, `h = log pi - log ref` summed over the
    answer and s = f'(exp h): reverse_kl `h`; forward_kl `-exp(-h)`; js `log 2 + logsig(h)`;
    alpha `(1 - exp(-alpha h)) / alpha` (0.5 unless said).
    When: you want the answers that the reference knows kept alive: coverage at equal reward rises
    in the order reverse_kl, alpha 0.3, js and alpha 0.5, forward_kl.
    When not: long answers with forward_kl or a large alpha, whose slope `exp(-alpha h)` explodes
    once an answer has become unlikely.
    Limits: js is half as strong near the reference, to be compared at twice the beta; reverse_kl is
    dpo.
    Deviations: forward_kl's metrics are higher by beta; exponents are cut at 60. TRL's
    f_alpha_divergence_coef is 1 - alpha. Source: Wang et al. 2023.
    """
    if alpha is not None and divergence != "alpha":
        raise OptionError(
            f"f-dpo: alpha has no place in divergence={divergence}.",
            "Use divergence=alpha, or leave it out.",
        )
    shapes: dict[str, Shape] = {
        "reverse_kl": AlphaPower(0.0),
        "forward_kl": AlphaPower(1.0),
        "js": JensenShannon(),
        "alpha": AlphaPower(0.5 if alpha is None else alpha),
    }
    return Offline(Pairwise(Shaped(SumLogRatio(), shapes[divergence]), scale=beta))


@method(
    id="alphapo",
    arxiv="2501.03884",
    feedback=Pair,
    tags=("reference-free", "length", "likelihood-displacement"),
    paper={"lr": 7e-7},
)
def alphapo(
    alpha: Real = 0.25,
    beta: Positive = 2.5,
    gamma: NonNegative = 0.25,
    label_smoothing: Smoothing = 0.0,
    sft_weight: NonNegative = 0.0,
) -> Method:
    """SimPO with a power of the average token's probability as reward, in place of its logarithm.

    Formula: `z = beta (s(a_w) - s(a_l)) - gamma`, `a = lp/n`,
    `s(a) = (1 - exp(-alpha a)) / alpha`, and a itself at alpha = 0;
    `L = -(1-eps) logsig(z) - eps logsig(-z) + sft_weight NLL_w`, both 0 in the paper.
    When: simpo that lowers chosen answers too much or overfits; alpha from -0.5 to 0.5.
    When not: very unlikely answers with a large alpha, whose slope `exp(-alpha a)` explodes.
    Limits: alpha > 0 weighs improbable answers more, alpha < 0 less; alpha = 0 is simpo with
    `gamma_beta_ratio = gamma/beta`. Very sensitive to the learning rate, as simpo is.
    Deviations: gamma stands outside beta; the exponent is cut at 60. alpha, beta and the learning
    rate are those of the paper's Table 3 for Mistral-Instruct as TRL's paper index quotes it; gamma
    is 0.1 there, read here as gamma/beta (SimPO's setting of that model), unconfirmed.
    Source: Gupta et al. 2025.
    """
    return Offline(
        Pairwise(
            Shaped(MeanLogp(), AlphaPower(alpha)),
            scale=beta,
            margin=Constant(gamma),
            link=Logistic(label_smoothing),
            anchors=imitation(sft_weight),
        )
    )


@method(
    id="daa-blur",
    arxiv="2502.01237",
    feedback=Pair,
    tags=("reference-free", "length", "comparison"),
    paper={"lr": 7e-7, "batch": 128, "epochs": 1},
)
def daa_blur(
    link: Literal["pairwise", "pointwise"] = "pairwise",
    reward: Literal["odds", "ratio", "normalised-ratio", "average"] = "odds",
    beta: Positive = 1.0,
    sft_weight: NonNegative = 0.0,
) -> Method:
    """ORPO's and ASFT's losses as a second stage, with a temperature, and their relatives.

    Formula: pairwise `-logsig(s_w - s_l)`, pointwise `-logsig(s_w) - logsig(-s_l)`, both plus
    `sft_weight * mean(-a_w)`; s is beta times the odds `a - log(1 - exp(a))` of `a = lp/n`, the
    log-ratio h (summed), `h/n`, or the average `a`.
    When: to compare losses on a common footing: SFT first, one grid of beta and rates for each.
    When not: as one stage (see orpo and asft); one stage was worse throughout the paper.
    Limits: beta is to be searched: 0.05 to 2 for odds, 0.001 to 0.1 for ratio, 0.05 to 5 for
    average. Pointwise is never below pairwise, and has its gradient as beta goes to 0.
    Deviations: none; a likelihood's weight here is relative to the preference's.
    Source: Gorbatovski et al. 2025.
    """
    rewards: dict[str, Reward] = {
        "odds": LogOdds(),
        "ratio": SumLogRatio(),
        "normalised-ratio": MeanLogRatio(),
        "average": MeanLogp(),
    }
    anchors = imitation(sft_weight, by="sequence")
    if link == "pairwise":
        return Offline(Pairwise(rewards[reward], scale=beta, anchors=anchors))
    good, bad = Logistic(), Down(Logistic())
    return Offline(Anchored(rewards[reward], beta, chosen=good, rejected=bad, anchors=anchors))
