"""DPO with pairs, policy and reference, or kinds of pairs counting unequally."""

from typing import Literal

from polyalign.feedback.records import Pair
from polyalign.loops.two_kinds import BothKinds
from polyalign.objectives import Logistic, Pairwise, SumLogRatio
from polyalign.objectives.mixtures import TwoKinds
from polyalign.objectives.rewards import UnevenLogRatio
from polyalign.objectives.weights import LikelihoodWeight
from polyalign.recipe import Method, Offline, Positive, Probability, Records, Smoothing, method


@method(
    id="wpo",
    arxiv="2406.11827",
    feedback=Pair,
    tags=("off-policy", "example-weights"),
    paper={"lr": 1e-6, "batch": 128, "epochs": 1},
)
def wpo(
    alignment: Literal["sampled", "greedy", "none"] = "sampled",
    beta: Positive = 0.01,
    clip_max: Positive = 1.0,
    label_smoothing: Smoothing = 0.0,
) -> Method:
    """DPO that weighs each pair by how likely the policy itself is to say both answers.

    Formula: `L = -w logsig(beta (h_w - h_l))`, `w = min(clip_max, exp(a(y_w) + a(y_l)))` constant;
    `a(y)` is the mean over tokens of sampled `log p(y_t) - log sum_v p(v)^2`; greedy
    `log p(y_t) - log max_v p(v)`; none `log p(y_t)`. p is the policy as it is at the step.
    When: pairs from other models, which the policy would hardly say; mixtures with its own samples.
    When not: pairs that the policy sampled itself, where all weights are near one.
    Limits: weights are not renormalised, so far-off data train slowly (watch `weights`); they read
    the whole law at each token.
    Deviations: none; clip_max cuts the product, as the authors' code does.
    Source: Zhou et al. 2024.
    """
    return Offline(
        Pairwise(
            SumLogRatio(),
            scale=beta,
            link=Logistic(label_smoothing),
            weight=LikelihoodWeight(alignment, clip_max),
        )
    )


@method(
    id="h-dpo",
    arxiv="2411.07595",
    feedback=Pair,
    tags=("entropy", "divergence"),
    paper={"lr": 5e-7, "epochs": 1},
)
def h_dpo(alpha: Positive = 0.9, beta: Positive = 0.01) -> Method:
    """DPO under a KL whose entropy term is scaled, for a sharper or a flatter policy.

    Formula: `-logsig(alpha beta (lp_w - lp_l) - beta (rf_w - rf_l))`; the optimum is
    `ref^(1/alpha) exp(r / (alpha beta)) / Z`. alpha < 1 sharpens, alpha > 1 flattens, 1 is DPO.
    When: the answers' diversity has to be set apart from the strength of the preference.
    When not: you only want another beta; alpha acts on the policy's gap, never on the reference's.
    Limits: the loss does not start at log 2 unless alpha is 1 (the sharpened reference itself is a
    step away). Rewards in the metrics are `beta (alpha log pi - log ref)`.
    Deviations: the published numbers were not confirmed in the paper's own text.
    Source: Omura et al. 2024.
    """
    return Offline(Pairwise(UnevenLogRatio(alpha), scale=beta))


@method(
    id="bvpo",
    arxiv="2510.05095",
    feedback=Pair,
    tags=("reasoning", "variance"),
    paper={"lr": 5e-7},
)
def bvpo(a: Probability = 0.5, beta: Positive = 0.1) -> Method:
    """A mixture of DPO on pairs with a sampled reasoning trace and DPO on pairs without one.

    Formula: `L = a L_t + (1 - a) L_e`: L_t is the DPO loss averaged over pairs whose number `trace`
    is 1 (the answers hold trace and answer), L_e over those where it is 0 (answers after an empty
    trace). Trace sampling gives the gradient variance `a^2 Var(g_t)`.
    When: reasoning models, whose long traces make the gradient noisy.
    When not: answers without a trace to leave out. With a = 0 or 1 one kind has no effect.
    Limits: needs both kinds of pairs of the same prompts; a step that holds one kind moves by that
    kind alone, so use a batch that mixes them.
    Deviations: a is constant (`polyalign.objectives.mixtures.best_share` computes it from measured
    errors of the gradients). Reviews say that the paper never states the a of its experiments: 0.5
    and beta are defaults of ours.
    Source: Zhu et al. 2025.
    """
    dpo = Pairwise(SumLogRatio(), scale=beta)
    return Offline(
        TwoKinds(dpo, "trace", a, ("trace", "empty")),
        streams={"data": Records() >> BothKinds("trace")},
    )
