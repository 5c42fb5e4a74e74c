"""Direct methods that judge one answer at a time: thumbs, anchored pairs, single scores."""

from dataclasses import replace
from typing import Literal

from polyalign.errors import OptionError
from polyalign.feedback.records import Binary, Pair, Scored
from polyalign.loops.scaling import StandardiseScores
from polyalign.objectives import (
    Anchored,
    Down,
    DroPolicy,
    DroValue,
    Listwise,
    Logistic,
    LogOdds,
    Miss,
    Mixed,
    Nll,
    NoiseContrast,
    Prospect,
    ShiftedBinary,
    ShiftedPair,
    Softmax,
    SumLogRatio,
    Toward,
)
from polyalign.recipe import (
    Method,
    Module,
    NonNegative,
    Offline,
    Positive,
    Records,
    Stage,
    Stages,
    Update,
    method,
)


@method(
    id="kto",
    arxiv="2402.01306",
    feedback=Binary,
    tags=("unpaired", "imbalance"),
    paper={"lr": 5e-7, "batch": 32, "epochs": 1},
)
def kto(
    beta: Positive = 0.1,
    lam_D: NonNegative = 1.0,
    lam_U: NonNegative = 1.0,
    zero_point: Literal["kl", "none"] = "kl",
) -> Method:
    """Prospect-theoretic value of single good or bad answers around the policy's own divergence.

    Formula: `h = log pi - log ref`; good: `lam_D (1 - sig(beta (h - z0)))`; bad:
    `lam_U (1 - sig(beta (z0 - h)))`; `z0 = max(0, mean h of mismatched answers)`, constant.
    zero_point=none: `z0 = 0`, apo-zero for thumbs.
    When: thumbs instead of pairs, also very imbalanced (keep lam_D n_D / (lam_U n_U) in [1, 4/3]).
    When not: clean pairs that you can use as such. Limits: it saturates on both sides, so very bad
    answers stop mattering; needs at least two prompts, and more than one example a step.
    Deviations: z0 is the mean over the whole optimizer step and the mismatched answer is fixed by
    (seed, epoch, example), so neither order nor micro-batches change the loss.
    Source: Ethayarajh et al. 2024, equation 8.
    """
    return Offline(Prospect(beta, lam_D, lam_U, zero_point))


@method(
    id="bco",
    arxiv="2404.04656",
    feedback=Binary,
    aliases=("binary-classifier-optimization",),
    tags=("unpaired", "imbalance", "shifted-prompts"),
    paper={"lr": 5e-7, "batch": 128},
)
def bco(
    beta: Positive = 0.01,
    form: Literal["paper", "code", "pair"] = "paper",
    matching: bool = False,
    w_min: Positive = 0.5,
    w_max: Positive = 10.0,
) -> Method:
    """Binary classification of good and bad answers by implicit reward, around its running mean.

    Formula: `rho = beta h`, `h = log pi - log ref`; good `-logsig(rho - delta)`; bad
    `-w logsig(delta - rho)`; delta constant, over all examples so far: paper
    `(mean over good + mean over bad) / 2`, code (TRL's trainer) the mean over all alike. matching:
    `w = clip(p/(1-p), w_min, w_max)`, p the number `p_desirable` of each example: how probably its
    prompt is one of the good examples'; else w = 1. pair, from pairs: `-logsig(rho_w - delta) -
    logsig(delta - rho_l)`, delta the mean over both answers of all pairs so far.
    When: thumbs up and down; with matching also when good and bad answers come from different kinds
    of prompts. When not: clean pairs whose difference matters (its pair loss only bounds DPO's).
    Limits: the first steps' delta rests on few examples; both classes must occur.
    Deviations: p comes with the data (a classifier of prompt embeddings is yours to fit). Without
    form=pair, pairs are taken as two thumbs: half the published pair loss. A held-out loss counts
    its own examples in delta. TRL's bco_pair has had no delta since 0.29: that is nca form=biased.
    Source: Jung et al. 2024, and TRL's bco trainer, which the authors wrote.
    """
    if form == "pair" and matching:
        raise OptionError("bco: matching has no place in form=pair.", "Use form=paper.")
    if not matching and (w_min, w_max) != (0.5, 10.0):
        raise OptionError("bco: w_min and w_max are read with matching=true only.", "Add it.")
    if w_min > w_max:
        raise OptionError(f"bco: w_min={w_min:g} exceeds w_max={w_max:g}.", "Swap them.")
    if form == "pair":
        return replace(Offline(ShiftedPair(beta)), feedback=Pair)
    shift: Literal["classes", "pooled"] = "classes" if form == "paper" else "pooled"
    return Offline(ShiftedBinary(beta, shift, matching, w_min, w_max))


@method(
    id="apo-zero",
    arxiv="2408.06266",
    feedback=Pair,
    tags=("anchored", "likelihood"),
    paper={"lr": 2e-7, "batch": 64, "epochs": 18},
)
def apo_zero(beta: Positive = 0.1) -> Method:
    """Chosen answers are pushed up and rejected ones down, each from its own reference likelihood.

    Formula: `(1 - sig(beta h_w)) + sig(beta h_l)`, `h = log pi - log ref`.
    When: chosen answers better than what the model would say now. When not: worse ones (apo-down).
    Limits: bounded, and flat far from the reference on both sides: it needs more epochs or a
    larger learning rate than DPO. Thumbs instead of pairs: kto with zero_point=none.
    Deviations: AdamW (the paper used RMSprop); the constant 1 is kept, so the loss lies in [0, 2].
    Source: D'Oosterlinck et al. 2024.
    """
    return Offline(Anchored(SumLogRatio(), scale=beta, chosen=Miss(), rejected=Down(Miss())))


@method(
    id="apo-down",
    arxiv="2408.06266",
    feedback=Pair,
    tags=("anchored", "likelihood"),
    paper={"lr": 2e-7, "batch": 64},
)
def apo_down(beta: Positive = 0.1) -> Method:
    """Both answers are pushed down, the rejected one faster: for chosen answers below the model's.

    Formula: `sig(beta h_w) + (1 - sig(beta (h_w - h_l)))`, `h = log pi - log ref`.
    When: chosen answers worse than what the model would say now. When not: better ones (apo-zero).
    Limits: what takes the probability is not said; watch the samples.
    Deviations: AdamW (the paper used RMSprop); the constant 1 is kept, so the loss lies in [0, 2].
    Source: D'Oosterlinck et al. 2024.
    """
    return Offline(Anchored(SumLogRatio(), scale=beta, chosen=Down(Miss()), gap=Miss()))


@method(
    id="asft",
    arxiv="2409.10571",
    feedback=Pair,
    tags=("reference-free", "one-stage", "likelihood"),
    paper={"lr": 5e-6},
)
def asft(lam: NonNegative = 0.1) -> Method:
    """Imitation of chosen answers, with each answer's own odds as the target of a classifier.

    Formula: `-a_w + lam (-logsig(lo(a_w)) - logsig(-lo(a_l)))`, `a = lp/n`,
    `lo(a) = a - log(1 - exp(a))`: likelihood and unlikelihood,
    `-(1+lam) a_w - lam log(1 - exp(a_l))`.
    When: one stage from a base or tuned model without a reference, where ORPO's comparison of odds
    drops the rejected answer faster than it lifts the chosen one. When not: small corrections.
    Limits: the rejected answer's force exceeds the chosen one's where its average token has
    probability above (1+lam)/(1+2 lam). lam=0 is SFT.
    Deviations: lam and the learning rate are those of public re-implementations (turbo-alignment:
    lam 0.1 first, 1 later); the paper's own were not found. Another method of this name
    (anchored SFT, 2025) is not meant. Source: Wang et al. 2024, arXiv 2409.10571.
    """
    return Offline(
        Anchored(
            LogOdds(),
            chosen=Logistic(),
            rejected=Down(Logistic()),
            coefficient=lam,
            anchors=(Nll(by="sequence"),),
        )
    )


@method(
    id="cal-dpo",
    arxiv="2412.14516",
    feedback=Pair,
    tags=("calibration", "likelihood"),
    paper={"lr": 5e-7},
)
def cal_dpo(beta: Positive = 0.001, cal_weight: NonNegative = 1.0) -> Method:
    """DPO whose log-ratios also have values to take: plus and minus 1/(2 beta).

    Formula: `-logsig(h_w - h_l) + c [(h_w - 1/(2 beta))^2 + (h_l + 1/(2 beta))^2]`,
    `h = log pi - log ref`, c = cal_weight.
    When: chosen answers lose likelihood under DPO, or rewards should have a scale.
    When not: long answers with a small beta that must not move 1/(2 beta) nats.
    Limits: beta stands in the targets alone; 0.001 asks for 500 nats. cal_weight=0 is DPO at
    beta 1. Deviations: weight 1 is the paper's equation as turbo-alignment's trainer writes it too;
    the authors' trainer has cal_weight=0.5, and their script beta=0.001 at a rate of 5e-7.
    Source: Xiao et al. 2024; tengxiao1/Cal-DPO, scripts/dpo_trainer.py and run/.
    """
    target = Toward(1.0 / (2.0 * beta))
    return Offline(
        Anchored(
            SumLogRatio(),
            chosen=Mixed(cal_weight, 0.0, target),
            rejected=Down(target, cal_weight),
            gap=Logistic(),
        )
    )


@method(
    id="nca",
    arxiv="2402.05369",
    feedback=Scored,
    aliases=("noise-contrastive-alignment",),
    tags=("listwise", "likelihood", "scores"),
    paper={"lr": 5e-6, "batch": 32, "epochs": 1},
)
def nca(
    form: Literal["paper", "code", "pair", "biased"] = "paper",
    beta: Positive = 0.01,
    T: Positive = 1e-4,
) -> Method:
    """Each answer is told from noise of the reference, weighted by its score: absolute likelihoods.

    Formula: `R = beta (log pi - log ref)`, `p = softmax(r/T)` over a prompt's K answers;
    `-sum p_k logsig(R_k) - (1/K) sum logsig(-R_k)`; code adds 0.01 to the first answer's score.
    On pairs: pair `-logsig(R_w) - logsig(-R_w)/2 - logsig(-R_l)/2` (p = [1, 0]), biased
    `-logsig(R_w) - logsig(-R_l)`.
    When: several scored answers a prompt, or pairs, and the best answer's likelihood must not fall.
    When not: only differences between answers matter (infonca, dpo).
    Limits: the optimum `R = log(K p)` is a normalised policy only for beta 1; with the default T
    the scores say which answer is best and little else.
    Deviations: none; the 0.01 of the authors' code is in form=code alone.
    Source: Chen et al. 2024; pair forms: the authors' code.
    """
    if form in ("pair", "biased"):
        if T != 1e-4:
            raise OptionError(f"nca: T has no place in form={form}.", "Use form=paper.")
        chosen, half = (Mixed(1.0, 0.5), 0.5) if form == "pair" else (Logistic(), 1.0)
        pair = Anchored(SumLogRatio(), scale=beta, chosen=chosen, rejected=Down(Logistic(), half))
        return replace(Offline(pair), feedback=Pair)
    bonus = 0.01 if form == "code" else 0.0
    return Offline(Listwise(NoiseContrast(Softmax(T, bonus)), scale=beta))


@method(
    id="dro",
    arxiv="2405.19107",
    feedback=Scored,
    aliases=("dro-v", "direct-reward-optimisation"),
    tags=("scores", "value", "unpaired"),
    paper={"lr": 1e-4, "batch": 32},
)
def dro(
    tau: Positive = 1.0,
    values: Literal["token", "prompt"] = "token",
    standardise: bool = True,
) -> Method:
    """Policy and value learn together that a single answer's score, value and log-ratio agree.

    Formula: `e = r - V - tau (log pi(y|x) - log ref(y|x))`; value `e^2/2`, policy `e^2/(2 tau)`,
    each with the other constant. values=token: V and e at every step of the answer, averaged;
    prompt: one value, of the prompt (the theory). standardise: scores of mean 0, variance 1 over
    the training data.
    When: one answer a prompt with a number: ratings, thumbs. When not: pairs, or several answers a
    prompt (infonca, which needs no value).
    Limits: a separate value network; with a poor value the policy is biased, not just noisy. Scores
    ask for moves of about 1/tau nats of a whole answer: a learning rate that suits dpo overshoots.
    Deviations: AdamW (the paper used Adafactor); the regulariser has tau/2, as its loss says
    (Algorithm 1 prints 1/2; the same at tau 1).
    Source: Richemond et al. 2024, equation 8.
    """
    source = Records() >> StandardiseScores() if standardise else Records()
    return Stages(
        Stage(
            (
                Update(DroValue(tau, values), trains=("value",)),
                Update(DroPolicy(tau, values)),
            ),
            streams={"data": source},
            modules={"value": Module("value")},
            together=True,
        )
    )
