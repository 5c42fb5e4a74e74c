"""Direct methods from several scored answers to one prompt: a target law, or an order."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from polyalign.errors import OptionError
from polyalign.feedback.records import Pair, Scored
from polyalign.objectives import (
    BestNll,
    Classification,
    Hinge,
    Listwise,
    LogRatioTo,
    Match,
    OrderedPairs,
    Pairwise,
    PenalisedLogp,
    PlackettLuce,
    Posterior,
    Regression,
    ReverseKl,
    Shares,
    Softmax,
    SumLogRatio,
    TemperedPlackettLuce,
)
from polyalign.objectives.list_targets import Direction
from polyalign.objectives.listwise import ListLoss
from polyalign.recipe import Method, NonNegative, Offline, Positive, method


@method(
    id="infonca",
    arxiv="2402.05369",
    feedback=Scored,
    tags=("listwise", "scores"),
    paper={"lr": 5e-6, "batch": 32, "epochs": 1},
)
def infonca(
    form: Literal["paper", "code"] = "paper", beta: Positive = 0.01, T: Positive = 1e-3
) -> Method:
    """DPO with K scored answers: which is best is a softmax over implicit rewards.

    Formula: `q = softmax(beta (log pi - log ref))`, `p = softmax(r/T)`, both over a prompt's K
    answers; `-sum p_k log q_k`, least at q = p. code adds 0.01 to the first answer's score.
    K = 2 and T -> 0: dpo.
    When: several scored answers a prompt. When not: the best answer's likelihood must not fall
    (nca); one answer a prompt (dro).
    Limits: only differences within a list count; T is in the scores' unit, and the default says
    little else than which answer is best (ties share).
    Deviations: none; the 0.01 of the authors' code, which breaks ties, is in form=code alone.
    Source: Chen et al. 2024.
    """
    return Offline(Listwise(Match(Softmax(T, 0.01 if form == "code" else 0.0)), scale=beta))


@method(
    id="exo",
    arxiv="2402.00856",
    feedback=Scored,
    aliases=("exo-rw",),
    tags=("listwise", "scores", "mode-seeking"),
    paper={"lr": 1e-6, "batch": 64},
)
def exo(
    form: Literal["rw", "pref"] = "rw",
    beta_pi: Positive = 0.1,
    beta_r: Positive = 0.1,
    eps: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3,
) -> Method:
    """KL from the policy's law over a list to the scores': mode-seeking, where DPO covers mass.

    Formula: `q = softmax(beta_pi (log pi - log ref))`; `sum q_k (log q_k - log p_k)`, rw
    `p = softmax(r/beta_r)` over a prompt's K answers; pref, from pairs, `p = [1 - eps, eps]`.
    When: the policy cannot represent every good answer and should commit to some.
    When not: a single pair per prompt and no wish for another pressure than DPO's.
    Limits: scores count in units of beta_r; overall strength is beta_r times beta_pi.
    Deviations: pref normalises p, as the paper does (the authors' code has log p = [0, -10]).
    Source: Ji et al. 2024.
    """
    if form == "pref":
        if beta_r != 0.1:
            raise OptionError("exo: beta_r has no place in form=pref.", "Use form=rw, or eps.")
        pair = Pairwise(SumLogRatio(), scale=beta_pi, link=ReverseKl(eps))
        return replace(Offline(pair), feedback=Pair)
    if eps != 1e-3:
        raise OptionError("exo: eps has no place in form=rw.", "Use form=pref, or beta_r.")
    return Offline(Listwise(Match(Softmax(beta_r), "reverse"), scale=beta_pi))


Variant = Literal[
    "lambda",
    "list-mle",
    "softmax",
    "pair-logistic",
    "pair-hinge",
    "point-mse",
    "point-sigmoid",
]


@method(
    id="lipo",
    arxiv="2402.01878",
    feedback=Scored,
    aliases=("lipo-lambda",),
    tags=("listwise", "ranking", "scores"),
    paper={"lr": 1e-5, "batch": 32},
)
def lipo(
    variant: Variant = "lambda",
    beta: Positive = 0.05,
    labels: Literal["given", "wins"] = "given",
    pair_reduction: Literal["sum", "mean"] = "sum",
) -> Method:
    """Learning to rank on implicit rewards: by default pairs weighted by what swapping them costs.

    Formula: `s = beta (log pi - log ref)`, labels r: the scores, or with labels=wins the share of
    the other answers that each one beats. lambda: `sum over r_i > r_j of
    |2^r_i - 2^r_j| |1/log(1+t_i) - 1/log(1+t_j)| softplus(s_j - s_i)`, t the rank of s;
    pair-logistic, pair-hinge: the same pairs, unweighted, with softplus(-z) or max(0, 1-z);
    list-mle: Plackett-Luce in the labels' order; softmax: `-sum r_i/(sum r) log softmax(s)_i`;
    point-mse: `sum (r - s)^2`; point-sigmoid: `-sum [r logsig(s) + (1-r) logsig(-s)]`.
    When: lists of several graded answers. When not: pairs (pair-logistic is then dpo).
    Limits: labels should lie in [0, 1], as win rates do (labels=wins makes them of any scores or
    ranks): gains are 2^r, point-sigmoid refuses others, softmax negative ones. Equal labels make
    no pair.
    Deviations: where s are equal, lambda takes the mean over their orders, so that a list's order
    says nothing; list-mle treats tied labels by Efron's rule. pair_reduction=mean divides by the
    number of pairs, which others do. beta and the rate are the card's reading: no code is public,
    and the paper's text with them was not found.
    Source: Liu et al. 2024, equations 7 and 8.
    """
    pairs: dict[str, ListLoss] = {
        "lambda": OrderedPairs(lambda_weights=True, reduction=pair_reduction),
        "pair-logistic": OrderedPairs(reduction=pair_reduction),
        "pair-hinge": OrderedPairs(Hinge(1.0), reduction=pair_reduction),
    }
    lists: dict[str, ListLoss] = {
        "list-mle": PlackettLuce(),
        "softmax": Match(Shares()),
        "point-mse": Regression(),
        "point-sigmoid": Classification(),
    }
    if variant in lists and pair_reduction != "sum":
        raise OptionError(
            f"lipo: pair_reduction has no place in variant={variant}.",
            f"It is read by {', '.join(pairs)}.",
        )
    return Offline(Listwise({**pairs, **lists}[variant], scale=beta, labels=labels))


@method(
    id="pro",
    arxiv="2306.17492",
    feedback=Scored,
    aliases=("preference-ranking-optimization",),
    tags=("listwise", "ranking", "reference-free"),
    paper={"lr": 5e-6, "batch": 112, "epochs": 2},
)
def pro(
    form: Literal["paper", "plackett-luce"] = "paper", sft_weight: NonNegative = 0.05
) -> Method:
    """The best answer against the rest, the second against what remains, and so on, plus imitation.

    Formula: `p = lp/n`, answers by falling score r; `sum_k [log(exp(T_kk p_k) + sum_{i>k}
    exp(T_ki p_i)) - T_kk p_k] - w (K-1)^2 lp_1`, `T_ki = r_k - r_i`, `T_kk = max_i T_ki`,
    w = sft_weight; plackett-luce: all T = 1, scores only order.
    When: ranked lists of several answers, one stage, no reference. When not: scores of a wide scale
    (they are inverse temperatures; bring them to [0, 1], as the authors do).
    Limits: imitation is a sum over tokens and ranking a mean, hence the small weight.
    Deviations: lists need not come sorted. Equal scores: the mean over their orders, and over the
    best ones in imitation; in plackett-luce Efron's rule. The logarithm has no 1e-10 inside.
    Source: Song et al. 2023.
    """
    loss = TemperedPlackettLuce() if form == "paper" else PlackettLuce()
    anchor = BestNll(sft_weight, by="sum", grows=True) if sft_weight > 0 else None
    return Offline(Listwise(loss, PenalisedLogp(), anchor=anchor))


@method(
    id="rrhf",
    arxiv="2304.05302",
    feedback=Scored,
    tags=("listwise", "ranking", "reference-free"),
    paper={"lr": 2e-5, "batch": 64, "epochs": 3},
)
def rrhf(
    rrhf_weight: NonNegative = 1.0,
    length_penalty: NonNegative = 1.0,
    nll: Literal["sum", "mean"] = "sum",
) -> Method:
    """Pairs of a list whose average log-probabilities are out of order, plus imitation of the best.

    Formula: `p = lp/n^length_penalty`; `rrhf_weight * sum over r_i < r_j of max(0, p_i - p_j)
    - lp_best`, or with nll=mean `- lp_best/n_best`.
    When: ranked answers from several sources, no reference, no value. When not: the best answer is
    not worth imitating.
    Limits: no margin, so what is in order is left alone; scores only order.
    Deviations: the authors' code is nearest to rrhf_weight=100 nll=mean (its mean also counts
    padding, which this does not). Several best answers are averaged.
    Source: Yuan et al. 2023.
    """
    return Offline(
        Listwise(
            OrderedPairs(Hinge(0.0)),
            PenalisedLogp(length_penalty),
            coefficient=rrhf_weight,
            anchor=BestNll(by=nll),
        )
    )


@method(
    id="brain",
    arxiv="2402.02479",
    feedback=Scored,
    tags=("listwise", "scores", "posterior"),
    paper={"lr": 1e-6, "epochs": 1},
)
def brain(
    form: Literal["paper", "dpg", "gdc++"] = "paper",
    g: Positive = 0.5,
    proposal: Literal["ref", "given"] = "ref",
) -> Method:
    """The law of answers given that they are good, distilled from scored samples of a proposal.

    Formula: `a = softmax(log ref + r/g - log q')`, `b = softmax(log pi - log q')` over a prompt's
    samples; `-sum a log b`, with the gradient `-sum (a - b) grad log pi`; dpg: `-sum a log pi`,
    without the baseline b; gdc++: `-sum a log pi + mean pi/q'`, whose baseline is not normalised
    over the samples: gradient `-sum (a - pi/(n q')) grad log pi`. The optimum is `ref exp(r/g)/Z`.
    When: several samples a prompt, scored by a reward model; you want its KL-optimal policy.
    When not: scores with no scale, or pairs (K = 2, hard labels, q' = ref is dpo at beta 1).
    Limits: q' must be the law that really drew, temperature and truncation included: proposal=given
    reads it as `proposal`, one log-probability an answer, beside its score (an aspect);
    proposal=ref takes the start. Self-normalising biases short lists.
    Deviations: the estimator with given samples; refreshing q' is up to you. dpg and gdc++ are what
    the authors' comparison of estimators has beside theirs, with the target normalised over the
    prompt's samples (there its constant is known). Source: Pandey et al. 2024, and their code.
    """
    name = "proposal" if proposal == "given" else None
    directions: dict[str, Direction] = {
        "paper": "forward",
        "dpg": "unnormalised",
        "gdc++": "absolute",
    }
    return Offline(
        Listwise(
            Match(Posterior(g, name), directions[form]),
            SumLogRatio() if name is None else LogRatioTo(name),
        )
    )
