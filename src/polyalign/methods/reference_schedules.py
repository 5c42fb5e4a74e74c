"""Methods whose reference moves: by steps, by stages over data, by stages over objectives."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from polyalign.errors import OptionError, PolyalignWarning
from polyalign.feedback.records import Binary, Pair
from polyalign.loops.parts import Chunk, Group
from polyalign.methods.direct_pairwise import dpo, ipo
from polyalign.methods.direct_pointwise import kto
from polyalign.objectives import Constant, Hinge, Logistic, Pairwise, SumLogRatio
from polyalign.objectives import Field as Column
from polyalign.objectives.margins import Margin
from polyalign.objectives.reference_gaps import ReferenceGap, Sum
from polyalign.recipe import (
    Count,
    Method,
    Names,
    NonNegatives,
    Positive,
    Positives,
    Records,
    Reference,
    Share,
    Stage,
    Stages,
    Update,
    listed,
    method,
)


@method(
    id="tr-dpo",
    arxiv="2404.09656",
    feedback=Pair,
    tags=("trust-region", "overfitting"),
    paper={"lr": 1e-6, "epochs": 1},
)
def tr_dpo(
    form: Literal["soft", "hard", "both"] = "soft",
    alpha: Share | None = None,
    tau: Count | None = None,
    base: Literal["dpo", "ipo", "kto"] = "dpo",
    beta: Positive = 0.05,
) -> Method:
    """A direct loss whose reference follows the policy, a little each step or whole now and then.

    Formula: the loss of `base` (ipo: its tau is beta) with the reference phi, after step s: soft
    `phi <- alpha theta + (1 - alpha) phi`; hard, if `s mod tau = 0`, `phi <- theta`; both (TRL): if
    `s mod tau = 0`, the soft rule. alpha is 0.6 and tau 512 unless said.
    When: long training that a fixed reference holds back, or that drifts in likelihood.
    When not: the divergence from the start has to stay small; nothing holds it here.
    Limits: the reference's log-probabilities are computed at each step, none is cached; a large
    alpha acts as a smaller beta. After a hard update the loss is back at its start.
    Deviations: base=kto learns from thumbs. A run shorter than tau steps never updates.
    Source: Gorbatovski et al. 2024, as the authors and TRL state the updates.
    """
    if form == "soft" and tau is not None:
        raise OptionError("tr-dpo: tau has no place in form=soft.", "Use form=both, or leave it.")
    if form == "hard" and alpha is not None:
        raise OptionError("tr-dpo: alpha has no place in form=hard.", "Use form=both, or leave it.")
    fixed = {"dpo": dpo(beta=beta), "ipo": ipo(tau=beta), "kto": kto(beta=beta)}[base]
    every = 1 if form == "soft" else tau or 512
    mix = 1.0 if form == "hard" else alpha or 0.6
    stage = replace(fixed.stages[0], references={"ref": Reference(every=every, mix=mix)})
    return replace(Stages(stage), feedback=Binary if base == "kto" else Pair)


@method(
    id="sdpo",
    arxiv="2403.19270",
    feedback=Pair,
    tags=("curriculum",),
    paper={"epochs": 1},
)
def sdpo(
    stages: Count = 2,
    cut: Literal["easy-first", "given", "random"] = "easy-first",
    by: str = "",
    beta: Positive = 0.1,
) -> Method:
    """DPO in stages over parts of the data, each against the model that the last stage left.

    Formula: stage t on its part: `-logsig(beta (h_w - h_l))`, `h = log pi - log pi_(t-1)`, begun at
    `pi_(t-1)`; `pi_0` is the start. Parts go from easy to hard by the start's own ranking: of one
    data set by `log ref(y_w) - log ref(y_l)`, or the values of the column `by`.
    When: several sets, or a policy that must learn easy pairs first. When not: few pairs.
    Limits: the pull to the start weakens with each stage (same reward each time: beta/stages), so
    compare with dpo at that beta; the loss jumps back to log 2 when a stage begins.
    Deviations: how one data set is cut is not in the paper, which orders ready-made sets
    by the share of pairs that a reference ranks rightly (`by`). The run's epochs count for each
    part. Not the segment-level method of the same name.
    Source: Kim et al. 2024.
    """
    if by and cut == "random":
        raise OptionError("sdpo: cut=random has no place beside by.", "Leave one of them out.")
    parts = [
        Group(by, stages, t, easy_first=cut == "easy-first") if by else Chunk(stages, t, cut)
        for t in range(stages)
    ]
    return Stages(*(_against_previous(beta, part, 1.0 / stages) for part in parts))


def _against_previous(beta: float, part: Chunk | Group, share: float) -> Stage:
    return Stage(
        (Update(Pairwise(SumLogRatio(), scale=beta)),),
        streams={"data": replace(Records(), share=share) >> part},
        references={"ref": Reference("previous")},
    )


@method(
    id="spo-sequential",
    arxiv="2405.12739",
    feedback=Pair,
    tags=("multi-objective",),
    paper={"epochs": 1},
)
def spo_sequential(
    rounds: Count = 2,
    by: str = "dimension",
    dimensions: Names = (),
    beta: Positives = (0.1,),
    lam: NonNegatives = (0.1,),
) -> Method:
    """DPO in rounds over preference dimensions that keeps what the earlier rounds learnt.

    Formula: round n on the pairs of dimension n: `-logsig(beta_n (h_w - h_l) - sum_j lam_j G_j)`,
    `h = log pi - log pi_(n-1)`, `G_j = R_j(y_w) - R_j(y_l)` for each earlier round j,
    `R_n = beta_n log(pi_n / pi_(n-1)) - sum_j lam_j R_j`. The column `by` names a pair's dimension,
    `dimensions` their order (that of appearance). beta: one for all or one a round; lam: one for
    all or one for each round but the last.
    When: helpful first, harmless then (or the reverse), without forgetting the first.
    When not: one set of weights over all dimensions at once (see modpo).
    Limits: at a given beta, lam trades the new dimension for the old ones; the earlier policies'
    log-probabilities are needed in every round. With lam=0 stages forget as sdpo's do.
    Deviations: the loss is re-derived from the constrained problem; lam_j is the same in each
    round. Source: Lou et al. 2024.
    """
    betas = _each("spo-sequential", "beta", beta, rounds)
    lams = _each("spo-sequential", "lam", lam, rounds - 1)
    if dimensions and len(dimensions) != rounds:
        raise OptionError(
            f"spo-sequential: {len(dimensions)} dimensions for rounds={rounds}.",
            "Name one dimension a round.",
        )
    stages: list[Stage] = []
    rewards: list[dict[int, float]] = []
    for n in range(rounds):
        kept = _combine([(lams[j], rewards[j]) for j in range(n)])
        rewards.append(_combine([(betas[n], {n + 1: 1.0, n: -1.0}), (-1.0, kept)]))
        # pi_n is the reference itself; the earlier policies stand beside it.
        name = {k: "ref" if k == n else f"pi{k}" for k in kept}
        gap = ReferenceGap(tuple((name[k], c) for k, c in sorted(kept.items())))
        margin: Margin = gap if kept else Constant()
        objective = Pairwise(SumLogRatio(), scale=betas[n], margin=margin)
        source = replace(Records(), share=1.0 / rounds) >> Group(by, rounds, n, dimensions)
        stages.append(
            Stage(
                (Update(objective),),
                streams={"data": source},
                references={"ref": Reference("previous")}
                | {name[k]: Reference(f"stage-{k}") for k in kept if k != n},
            )
        )
    return Stages(*stages)


def _each(id: str, name: str, given: Sequence[float] | float, count: int) -> tuple[float, ...]:
    """One number for each of ``count``; one alone stands for all."""
    values = (given,) if isinstance(given, (int, float)) else tuple(given)
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise OptionError(f"{id}: {name} has {len(values)} numbers.", f"Give one, or {count}.")
    return values


def _combine(parts: Sequence[tuple[float, Mapping[int, float]]]) -> dict[int, float]:
    """A linear combination of linear combinations of log-probabilities, by policy."""
    total: dict[int, float] = {}
    for factor, coefficients in parts:
        for key, value in coefficients.items():
            total[key] = total.get(key, 0.0) + factor * value
    return {key: value for key, value in total.items() if value != 0.0}


LEAST_WEIGHT = 1e-3
"""Below it the own objective's 1/w0 lets the other objectives' rewards run away."""

OwnFirst = Annotated[tuple[float, ...], Field(min_length=1), BeforeValidator(listed)]


@method(
    id="modpo",
    arxiv="2310.03708",
    feedback=Pair,
    tags=("multi-objective",),
    paper={"lr": 5e-4},
)
def modpo(
    w: OwnFirst = (0.5, 0.5),
    rewards: Names = (),
    policies: Names = (),
    beta: Positive = 0.1,
    policies_beta: Positive | None = None,
    link: Literal["logistic", "hinge"] = "logistic",
) -> Method:
    """DPO on one objective's pairs whose margin carries the other objectives' rewards.

    Formula: `z = (1/w_0) [beta (h_w - h_l) - sum_j w_j (m_j(y_w) - m_j(y_l))]`, loss `-logsig(z)`
    (hinge: `max(0, 1 - z)`). w: the weight of the pairs' own objective, then one for each other
    objective: first the columns NAME_w and NAME_l for each NAME of `rewards` ("m" when nothing is
    named), then the trained models or runs `policies`, rewarding by
    `policies_beta log(pi_j / ref)` (beta unless said).
    When: one trade-off of several objectives (a policy for each w), one of them as pairs.
    When not: no rewards for the others (see spo-sequential).
    Limits: rewards must be in nats times beta, the scale of the own implicit reward.
    Deviations: weights need not add up to 1, as in the authors' code, with a warning; w_0 of at
    least 0.001. Source: Zhou et al. 2023, and their code.
    """
    if w[0] < LEAST_WEIGHT:
        raise OptionError(
            f"modpo: the pairs' own objective has weight {w[0]:g}.",
            f"Give it at least {LEAST_WEIGHT:g}; it stands first in w.",
        )
    if min(w) < 0:
        raise OptionError(f"modpo: the weight {min(w):g} is negative.", "Weights are >= 0.")
    if not rewards and not policies and len(w) > 1:
        rewards = ("m",)
    if len(w) != 1 + len(rewards) + len(policies):
        raise OptionError(
            f"modpo: w has {len(w)} weights for {1 + len(rewards) + len(policies)} objectives.",
            "Give one for the pairs' own objective, then one for each of rewards and policies.",
        )
    if policies_beta is not None and not policies:
        raise OptionError("modpo: policies_beta has no effect without policies.", "Leave it out.")
    if abs(sum(w) - 1) > 1e-6:
        warnings.warn(
            f"modpo: the weights add up to {sum(w):g}, not to 1.", PolyalignWarning, stacklevel=2
        )
    own, others = w[0], [v / w[0] for v in w[1:]]
    margins: list[Margin] = []
    for name, weight in zip(rewards, others, strict=False):
        margins += [Column(f"{name}_w", weight), Column(f"{name}_l", -weight)]
    references = {f"policy{i}": Reference(f"model:{name}") for i, name in enumerate(policies, 1)}
    if references:
        scale = beta if policies_beta is None else policies_beta
        weights = [scale * weight for weight in others[len(rewards) :]]
        gap = (*zip(references, weights, strict=True), ("ref", -sum(weights)))
        margins.append(ReferenceGap(gap))
    objective = Pairwise(
        SumLogRatio(),
        scale=beta / own,
        margin=Sum(tuple(margins)),
        link=Logistic() if link == "logistic" else Hinge(1.0),
    )
    return Stages(Stage((Update(objective),), references=references))
