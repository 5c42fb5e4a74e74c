"""Online methods that weigh completions of one prompt against each other."""

from typing import Annotated, Literal

from pydantic import Field

from polyalign.credit import GroupCredit
from polyalign.errors import OptionError
from polyalign.feedback.records import Prompt
from polyalign.objectives import PolicyGradient
from polyalign.recipe import (
    Count,
    Method,
    NonNegative,
    Positive,
    Rollouts,
    Stage,
    Stages,
    Update,
    method,
)

AGGREGATIONS: dict[str, Literal["rows", "steps", "budget"]] = {
    "grpo": "rows",
    "gspo": "rows",
    "dapo": "steps",
    "dr_grpo": "budget",
}
"""What the published names of aggregation mean."""


@method(
    id="grpo",
    arxiv="2402.03300",
    feedback=Prompt,
    tags=("online", "verifier"),
    paper={"lr": 1e-6},
)
def grpo(
    G: Annotated[int, Field(ge=2)] = 8,
    beta: NonNegative = 0.04,
    eps_low: Annotated[float, Field(ge=0, lt=1)] = 0.2,
    eps_high: NonNegative = 0.2,
    eps_std: NonNegative = 1e-4,
    scale: Literal["group", "none"] | None = None,
    aggregation: Literal["grpo", "dapo", "dr_grpo", "gspo"] = "grpo",
    level: Literal["token", "sequence", "sequence-token"] = "token",
    surrogate: Literal["clip", "cispo"] = "clip",
    eps_max: Positive = 5.0,
    delta: Positive | None = None,
    L_max: Count = 256,
    L_cache: Annotated[int, Field(ge=0)] = 0,
    drop_truncated: bool = False,
    dynamic_sampling: bool = False,
    kl_correction: bool = False,
    inner_epochs: Count = 1,
) -> Method:
    """Clipped policy gradient whose baseline is the mean reward of the same prompt's samples.

    Formula: `A_i = (r_i - mean r) / (std r + eps_std)` (scale=none: no std; the default of
    dr_grpo); `l_t = -min(rho A, clip(rho, 1-eps_low, 1+eps_high) A) + beta k3_t`; averaged over
    each row's tokens then rows (grpo), over all tokens (dapo), summed over `N L_max` (dr_grpo), or
    with one ratio a row (level=sequence, aggregation=gspo). surrogate=cispo: `-sg[min(rho,
    eps_max)] A logp`. delta bounds rho where A < 0; L_cache > 0 adds DAPO's overlong punishment;
    drop_truncated masks unfinished rows; dynamic_sampling gives groups without spread no weight.
    When: a verifier or reward model and prompts that are neither hopeless nor solved.
    When not: pairs without a judge (see dpo). Limits: with one pass (inner_epochs=1) rho is 1 and
    clipping idle; L_max is the sampling budget and must hold the longest completion.
    Deviations: G is 8 (paper 64); beta is the paper's 0.04 (0 in DAPO, Dr. GRPO, GSPO);
    dynamic sampling weighs groups out and does not refill the step; std has ddof=1.
    Source: Shao et al. 2024, equation 3; Dr. GRPO 2503.20783; DAPO 2503.14476; GSPO 2507.18071.
    """
    if aggregation == "gspo" and level == "token":
        raise OptionError("grpo: aggregation=gspo needs one ratio a row.", "Add level=sequence.")
    if surrogate == "cispo" and delta is not None:
        raise OptionError("grpo: delta has no place in surrogate=cispo.", "Use eps_max.")
    if delta is not None and delta <= 1 + eps_high:
        raise OptionError(
            f"grpo: delta={delta:g} would cut ratios that eps_high={eps_high:g} allows.",
            f"Use delta > {1 + eps_high:g}.",
        )
    if L_cache > L_max:
        raise OptionError(f"grpo: L_cache={L_cache} exceeds L_max={L_max}.", "Lower L_cache.")
    if scale is None:
        scale = "none" if aggregation == "dr_grpo" else "group"
    objective = PolicyGradient(
        beta=beta,
        eps_low=eps_low,
        eps_high=eps_high,
        level=level,
        aggregation=AGGREGATIONS[aggregation],
        surrogate=surrogate,
        budget=L_max,
        delta=delta,
        eps_max=eps_max,
        kl_correction=kl_correction,
        drop_truncated=drop_truncated,
    )
    return Stages(
        Stage(
            (Update(objective, epochs=inner_epochs),),
            streams={"data": Rollouts(n=G, max_steps=L_max)},
            credit=GroupCredit(scale, eps_std, L_max, L_cache, dynamic_sampling),
        )
    )
