"""DPO that does not pay for length: by averaging, by discounting a tail, or by a margin."""

import warnings

from polyalign.errors import PolyalignWarning
from polyalign.feedback.records import Pair
from polyalign.objectives import (
    DiscountedLogRatio,
    LengthGap,
    MeanLogRatio,
    Pairwise,
    SumLogRatio,
)
from polyalign.recipe import Method, Offline, Positive, Probability, Real, method


@method(
    id="ln-dpo",
    arxiv="2407.15229",
    feedback=Pair,
    aliases=("length-normalized-dpo", "length-normalised-dpo"),
    tags=("length",),
    paper={"lr": 5e-7},
)
def ln_dpo(beta: Positive = 5.0) -> Method:
    """DPO on log-ratios averaged over the answer's tokens.

    Formula: `z = beta (h_w/n_w - h_l/n_l)`, `h = log pi - log ref` summed over the answer;
    `L = -logsig(z)`.
    When: answers of very different lengths, or models that have grown wordy under DPO.
    When not: length is itself what people prefer.
    Limits: beta is one to two orders above DPO's (DPO's times the answers' length).
    Deviations: none. Source: Ahrabian et al. 2024; the same loss as sigmoid-norm.
    """
    return Offline(Pairwise(MeanLogRatio(), scale=beta))


@method(
    id="sigmoid-norm",
    arxiv="2411.15124",
    feedback=Pair,
    aliases=("dpo-norm",),
    tags=("length",),
    paper={"lr": 5e-7},
)
def sigmoid_norm(beta: Positive = 5.0) -> Method:
    """The loss of ln-dpo under the name that Tulu 3 and TRL give it.

    Formula: `z = beta (h_w/n_w - h_l/n_l)`, `h = log pi - log ref` summed over the answer;
    `L = -logsig(z)`.
    When: to repeat Tulu 3 (beta 5). When not: length is itself what people prefer.
    Limits: beta is one to two orders above DPO's (DPO's times the answers' length).
    Deviations: none. Source: Lambert et al. 2024 (Tulu 3).
    """
    return ln_dpo(beta=beta)


@method(
    id="ld-dpo",
    arxiv="2409.06411",
    feedback=Pair,
    tags=("length",),
    paper={"lr": 5e-7},
)
def ld_dpo(beta: Positive = 0.1, alpha: Probability = 0.5) -> Method:
    """DPO in which what the longer answer says beyond the shorter one's length counts less.

    Formula: `z = beta (h~_w - h~_l)`, `h~ = sum_{t <= n} h_t + alpha sum_{t > n} h_t`,
    `n = min(n_w, n_l)`, `h_t = log pi - log ref` of a token; `L = -logsig(z)`.
    When: longer answers win for their length. The best alpha depends on the model (0.1 to 0.6).
    When not: what decides stands at the end of long answers.
    Limits: alpha = 1 is DPO, and so are pairs of equal length; alpha = 0 learns nothing from tails.
    Deviations: none known; no code of the authors' is public. alpha 0.5 is what TRL's paper index
    gives as the paper's suggested start, its best value depending on the model.
    Source: Liu et al. 2024, as TRL's trainer and paper index state it.
    """
    return Offline(Pairwise(DiscountedLogRatio(alpha), scale=beta))


@method(
    id="r-dpo",
    arxiv="2403.19159",
    feedback=Pair,
    aliases=("length-regularized-dpo", "length-regularised-dpo"),
    tags=("length",),
)
def r_dpo(beta: Positive = 0.1, alpha: Real = 0.01) -> Method:
    """DPO with a margin by length: pairs that the longer answer wins count less.

    Formula: `z = beta (h_w - h_l) + alpha (n_w - n_l)`, `h = log pi - log ref` summed over the
    answer, n its tokens; `L = -logsig(z)`.
    When: the labels pay about alpha a token for length: the optimum is that of `r - alpha n`.
    When not: answers of one length. Limits: alpha is in nats a token, whatever beta is.
    Deviations: none; where some papers print a minus, the derivation and equation 9 have a plus.
    No code of the authors' is public and their alpha was not found; SimPO's comparison searches
    0.05 to 1 with beta 0.01 to 0.1, others 0.005 to 0.02 with beta 0.1.
    Source: Park et al. 2024, equation 9.
    """
    if alpha < 0:
        warnings.warn(f"r-dpo: alpha={alpha:g} pays for length.", PolyalignWarning, stacklevel=2)
    return Offline(Pairwise(SumLogRatio(), scale=beta, margin=LengthGap(-alpha)))
