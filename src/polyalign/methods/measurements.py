"""Methods that measure: what alignment did to a policy, for ``polyalign evaluate --with``."""

from collections.abc import Callable
from typing import Literal

from polyalign.evaluation.bench import Bench, Measured
from polyalign.evaluation.overoptimisation import LikelihoodOveroptimisation
from polyalign.evaluation.pair_rankings import PreferenceRankings
from polyalign.evaluation.reference_sweep import ReferenceSweep
from polyalign.feedback.records import Pair, Prompt
from polyalign.recipe import Count, Names, Positive, Positives, Share, measure

Measurement = Callable[[Bench], Measured]


@measure(
    id="likelihood-overopt",
    arxiv="2410.11677",
    feedback=Prompt,
    tags=("overoptimisation", "diversity"),
)
def likelihood_overopt(
    k: Count = 10,
    positions: Literal["generated", "given"] = "generated",
    patience: Count = 2,
) -> Measurement:
    """Whether likelihood was optimised too far: mass and entropy of the likeliest tokens.

    Formula: over all positions, `M_k = mean sum_(i<=k) p_(i)`, `H_k = mean -sum_(i<=k) p_(i) log
    p_(i)` and the same renormalised to 1; p sorted. Both M_k and H_k falling while the margin grows
    says that probability leaves the likely tokens; H_k alone falling is sharpening. With pairs also
    the likelihood of better and worse answers, with a judge the score of the sampled ones. Of a run
    with held-out pairs, the first evaluation after which both fell `patience` times in a row.
    When: a margin that grows and answers that get worse; to choose a checkpoint.
    When not: instead of reading samples; the indicators have no threshold of their own.
    Limits: positions=generated compares each model on its own answers, given on the held-out
    chosen ones. The same stands in a run's advice when held-out pairs are given.
    Deviations: the paper's k is not known to us; its raw entropy is the indicator, the renormalised
    one stands beside it. Source: Shi et al. 2024.
    """
    return LikelihoodOveroptimisation(k, positions, patience)


@measure(
    id="preference-rankings",
    arxiv="2405.19534",
    feedback=Pair,
    aliases=("ranking-accuracy",),
    tags=("theory", "difficulty"),
)
def preference_rankings(
    betas: Positives = (0.01, 0.1, 1.0, 5.0, 10.0),
    agreement: str = "",
    unanimous: Share = 0.001,
    tie: Positive = 0.01,
) -> Measurement:
    """Ranking accuracy, what it could be at best, and which pairs are out of a loss's reach.

    Formula: right when `pi(y_w) >= pi(y_l)`; at best `[ref(y_w)/ref(y_l)] (a/(1-a))^(1/beta) > 1`,
    a the share of raters for y_w (column `agreement`; 1 without it, and `unanimous` stands for
    1-a where it is less); both also by mean log-probability. Difficulty
    `c = log ref(y_l) - log ref(y_w)`: a pair is right exactly when its DPO loss is at most
    `-logsig(beta c)`, with the run's beta. A rater tie (a = 1/2) is right when the probabilities
    differ by less than `tie`.
    When: to know whether a low accuracy is the method's or the reference's fault.
    When not: as a measure of answers; accuracy follows the win rate only near the reference.
    Limits: needs a reference; pairs only, no longer rankings. DPO's relative with a weight on
    the reference's gap is h-dpo with alpha=1/gamma and beta*gamma for beta.
    Deviations: the paper's formula where its code divides logarithms; a tie of the idealised
    ratio is wrong, as in the paper. Source: Chen et al. 2024.
    """
    return PreferenceRankings(betas, agreement, unanimous, tie)


@measure(
    id="reference-policies",
    arxiv="2407.13709",
    feedback=Pair,
    aliases=("reference-sweep",),
    tags=("strength", "theory"),
)
def reference_policies(
    betas: Positives = (0.1, 0.05, 0.02, 0.01, 0.005),
    references: Names = (),
    runs: Names = (),
) -> Measurement:
    """Which reference and how strong: pairs under several references, and runs side by side.

    Formula: `-logsig(rho_w - rho_l)` over betas with `rho = beta (log pi(y|x) - log q)`: q the
    start, 1 (posterior: no reference), the start's probability of the answer without its prompt
    (likelihood), and each model of `references`; for each its accuracy, least loss and beta,
    distance to the start a token, and KL from the policy. `runs`: runs trained at other strengths
    or references, each with accuracy, KL to its start and, with a judge, score.
    When: to choose beta, or to see whether a stronger reference would help (it does when it is
    near the start). When not: one run without pairs.
    Limits: the loss over betas is of this policy; what training at another beta gives is shown by
    `runs` only. A large beta keeps a policy at its reference, whatever it is.
    Deviations: no prompt means an empty user turn for chat models.
    Source: Liu et al. 2024.
    """
    return ReferenceSweep(betas, references, runs)
