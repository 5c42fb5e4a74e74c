"""DPO whose log-ratios count the tokens of an answer unequally."""

from typing import Literal

from polyalign.errors import OptionError
from polyalign.feedback.records import Pair
from polyalign.objectives import Pairwise, SumLogRatio
from polyalign.objectives.rewards import Reward
from polyalign.objectives.token_functionals import (
    AveragedLogRatio,
    DifferenceWeightedLogRatio,
    SampledLogRatio,
)
from polyalign.recipe import (
    Count,
    Method,
    NonNegative,
    Positive,
    Reference,
    Stage,
    Stages,
    Update,
    method,
)


@method(
    id="sampo",
    arxiv="2406.10957",
    feedback=Pair,
    tags=("length", "token-level"),
    paper={"lr": 4e-7, "epochs": 3},
)
def sampo(
    form: Literal["paper", "averaged"] = "paper",
    beta: Positive = 0.1,
    keep_eos: bool = False,
    shared_mask: bool = True,
    iterations: Count = 1,
) -> Method:
    """DPO in which the longer answer counts through as many random tokens as the shorter one has.

    Formula: `-logsig(beta (sum_{S_w} d_t - sum_{S_l} d_t))`, `d_t = log pi - log ref` of a token;
    `|S| = min(n_w, n_l)` tokens drawn without replacement, anew in each epoch; averaged:
    `(n_w + n_l) / 2 (mean d(y_w) - mean d(y_l))`.
    When: answers of unequal length, where DPO learns to prefer length.
    When not: pairs of equal length (there it is DPO), or length is what people meant.
    Limits: the longer answer's last token is usually dropped and the shorter one's always kept,
    which can push the end of answers down: keep_eos keeps it. shared_mask=false draws other tokens
    for the reference, as the authors' code does. iterations: that many stages share the epochs,
    each with the last one's policy as reference (the paper's iterative form).
    Deviations: none from the named forms. Source: Lu et al. 2024.
    """
    if form == "averaged" and (keep_eos or not shared_mask):
        raise OptionError(
            "sampo: keep_eos and shared_mask have no place in form=averaged.",
            "Use form=paper, or leave them out.",
        )
    reward = AveragedLogRatio() if form == "averaged" else SampledLogRatio(keep_eos, shared_mask)
    updates = (Update(Pairwise(reward, scale=beta, shown=SumLogRatio())),)
    weights = ["start", *["previous"] * (iterations - 1)]
    return Stages(
        *(
            Stage(updates, references={"ref": Reference(which)}, share=1.0 / iterations)
            for which in weights
        )
    )


@method(
    id="bmc",
    arxiv="2408.07471",
    feedback=Pair,
    tags=("token-level", "differences"),
    paper={"lr": 5e-7, "epochs": 1},
)
def bmc(
    form: Literal["paper", "code"] = "paper",
    beta: Positive = 0.01,
    delta: NonNegative = 1.5,
    exclude_stopwords: bool = True,
) -> Method:
    """DPO that weighs tokens in which the two answers differ, the more the less likely they are.

    Formula: `h_B = sum_t lam_t d_t`, `d_t = log pi - log ref`, `lam_t = 1 + m_t min(1/pi_t, delta)`
    constant, m_t = 1 on tokens that are inserted, replaced or deleted between the answers (longest
    common blocks of the tokens); `L = -logsig(beta (h_B(y_w) - h_B(y_l)))`. form=code weighs the
    reference by the reference's own probabilities.
    When: the chosen answer is an edit of the rejected one (the paper lets a model rewrite it; bring
    pairs that are edited so).
    When not: answers that share few tokens, where nearly all are weighted alike.
    Limits: delta was 3 for questions, 2.5 for mathematics. exclude_stopwords leaves function words
    of English at weight 1. Ties between blocks are broken in a fixed order, so that swapping the
    answers swaps their masks.
    Deviations: the list of function words is ours. Source: Jiang et al. 2024.
    """
    reward: Reward = DifferenceWeightedLogRatio(delta, exclude_stopwords, apart=form == "code")
    return Stages(Stage((Update(Pairwise(reward, scale=beta, shown=SumLogRatio())),)))
