"""Methods that learn from scored answers by conditioning, filtering or weighting."""

from collections.abc import Sequence
from typing import Any, Literal

from polyalign.errors import OptionError
from polyalign.feedback.conditioning import Goals, RewardInPrompt
from polyalign.feedback.records import Pair, Scored
from polyalign.feedback.rewarded import (
    BestAnswer,
    EachAnswer,
    KeepBest,
    answers_each,
    one_of_them,
)
from polyalign.loops.scaling import StandardiseScores
from polyalign.objectives import Likelihood, Pairwise, SumLogRatio
from polyalign.objectives.likelihood import Reduction
from polyalign.objectives.reward_weighted import RewardWeighted
from polyalign.recipe import (
    DataStep,
    Method,
    Offline,
    Positive,
    Probability,
    Real,
    Share,
    Source,
    method,
)
from polyalign.types import Objective


@method(
    id="reward-augmented",
    arxiv="2410.08067",
    feedback=Pair,
    aliases=("reward-augmented-dpo",),
    tags=("conditioning", "strength"),
    paper={"lr": 5e-7, "epochs": 1},
)
def reward_augmented(
    beta: Positive = 0.01,
    low: Real = 1.0,
    high: Real = 10.0,
    goal: Real | None = None,
    filter_inconsistent: bool = True,
    place: Literal["system", "user"] = "system",
) -> Method:
    """DPO on each pair twice, asked for the score of either answer: good rejected answers are kept.

    Formula: a pair with scores r_w, r_l gives (x with goal r_w; y_w over y_l) and (x with goal r_l;
    y_l over y_w); DPO on the 2N pairs. Optimum, asked for g: `ref exp(-(g - r)^2 / beta) / Z`.
    When: pairs with absolute scores (columns score_chosen, score_rejected), rejected answers that
    are good themselves. When not: scores that say no more than which answer won.
    Limits: the goal is text (a sentence in the system message, or before the first user turn with
    place=user), so ask the trained policy in the same way: samples.jsonl shows how, for `goal`
    (the top of the scale unless said). Equal scores are left out with a warning.
    Deviations: the sentence is ours; both places swap the answers (one branch of the authors' code
    swaps the prompt instead). Source: Zhang et al. 2024.
    """
    if low >= high:
        raise OptionError(
            f"reward-augmented: the scale from {low:g} to {high:g} is empty.", "Use low < high."
        )
    goal = high if goal is None else goal
    if not low <= goal <= high:
        raise OptionError(
            f"reward-augmented: goal={goal:g} lies outside the scale from {low:g} to {high:g}.",
            "Ask for a score on the scale.",
        )
    goals = Goals(low, high, goal, place, filter_inconsistent)
    return Offline(
        Pairwise(SumLogRatio(), scale=beta), streams={"data": Source(steps=(goals,), share=2.0)}
    )


@method(
    id="offline-rlhf",
    arxiv="2308.12050",
    feedback=Scored,
    aliases=("conditional-sft", "filtered-mle", "reward-weighted-regression"),
    tags=("conditioning", "reference-free", "filtering"),
    paper={"lr": 5e-6, "batch": 128, "epochs": 1},
)
def offline_rlhf(
    form: Literal["dt", "filter", "rwr", "best"] = "dt",
    keep_ratio: Share = 0.2,
    per: Literal["all", "prompt"] = "all",
    temperature: Positive = 1.0,
    normalise: Literal["batch", "none"] = "batch",
    clip: Positive = 20.0,
    standardise: bool = True,
    target_quantile: Probability = 0.95,
    target: Real | None = None,
    reduction: Reduction = "token",
) -> Method:
    """Imitation of scored answers: conditioned on the reward, of the best ones, or weighted by it.

    Formula: dt `-log pi(y | x <rm_score>: R)`, R with two decimals at the prompt's end; filter
    `-log pi(y|x)` over the keep_ratio of answers with the highest R; best: of each prompt's best;
    rwr `-w log pi(y|x)`, `w = min(clip, e / mean e)`, `e = exp(R / temperature)` (the mean over the
    optimizer step, or none). Optima for answers drawn from mu: `mu 1[R(x,y) = R]`,
    `mu 1[R >= q] / Z`, `mu exp(R / temperature) / Z`. dt and rwr standardise R over all data.
    When: many scored answers and no wish for a reference or for sampling.
    When not: few answers a prompt, or scores that saturate. Limits: dt must be asked for a reward:
    samples.jsonl shows how, for `target` or the target_quantile of the rewards seen. Each answer is
    an example of its own. rwr with a small temperature is the step's best answer alone.
    Deviations: one blank stands before the reward in training and in asking (the code drops it in
    asking); standardised by the deviation of the whole set. keep_ratio, temperature and clip are
    ours: the authors' OpenRLHF has dt and best alone, and the paper's numbers were not found.
    Source: Hu et al. 2023; OpenRLHF (processor.py) before it dropped conditional SFT.
    """
    given = {
        "keep_ratio": (keep_ratio != 0.2, ("filter",)),
        "per": (per != "all", ("filter",)),
        "temperature": (temperature != 1.0, ("rwr",)),
        "normalise": (normalise != "batch", ("rwr",)),
        "clip": (clip != 20.0, ("rwr",)),
        "standardise": (not standardise, ("dt", "rwr")),
        "target_quantile": (target_quantile != 0.95, ("dt",)),
        "target": (target is not None, ("dt",)),
    }
    for name, (changed, forms) in given.items():
        if changed and form not in forms:
            raise OptionError(
                f"offline-rlhf: {name} has no place in form={form}.",
                f"Use form={' or '.join(forms)}, or leave it out.",
            )
    if target is not None and target_quantile != 0.95:
        raise OptionError(
            "offline-rlhf: target_quantile has no place beside target.", "Give one of them."
        )
    scaled: tuple[DataStep, ...] = (StandardiseScores(),) if standardise else ()
    objective: Objective = Likelihood(reduction, role="own")
    steps: Sequence[DataStep]
    match form:
        case "dt":
            ask = RewardInPrompt(quantile=target_quantile, target=target)
            steps = (*scaled, EachAnswer(), ask)
        case "filter":
            steps = (KeepBest(keep_ratio, per), EachAnswer())
        case "best":
            steps = (BestAnswer(), EachAnswer())
        case "rwr":
            steps = (*scaled, EachAnswer())
            objective = RewardWeighted(temperature, normalise, clip, reduction)
    share: Any = {"filter": keep_ratio, "best": one_of_them}.get(form, 1.0)
    source = Source(steps=tuple(steps), share=share, each=answers_each)
    return Offline(objective, streams={"data": source})
