"""TRL's kto and bco trainers: thumbs."""

from __future__ import annotations

from polyalign.errors import OptionError
from polyalign.methods.trl.losses import loss_of, moving_reference, precomputed, refused
from polyalign.methods.trl.translation import Translation


def prospect(t: Translation) -> str:
    """kto, or tr-dpo with its loss."""
    loss = loss_of(t, "kto")
    if loss not in ("kto", "apo_zero_unpaired"):
        raise refused(t, loss)
    precomputed(t)
    if loss == "kto":
        t.note(
            "loss_type",
            "method=kto",
            "the reference point is the mean over the whole optimizer step and the mismatched "
            "answer is fixed for each example; TRL takes both from the micro-batch.",
        )
    else:
        t.parameter("loss_type", "zero_point", "none")
    t.parameter("beta", "beta", t.number("beta", 0.1))
    moved = moving_reference(t, "kto" if loss == "kto" else None, "kto")
    for flag, name in (("desirable_weight", "lam_D"), ("undesirable_weight", "lam_U")):
        weight = t.number(flag, 1.0)
        if moved == "kto":
            t.parameter(flag, name, weight)
        elif weight != 1:
            raise OptionError(
                f"{flag}={weight:g} together with sync_ref_model is no method here: tr-dpo weighs "
                "both classes alike.",
                f"Remove {flag} or sync_ref_model.",
            )
        elif flag in t.flags:
            t.note(flag)
    return moved


def classifier(t: Translation) -> str:
    """bco as its trainer computes it."""
    precomputed(t)
    t.hyper["form"] = "code"
    t.parameter("beta", "beta", t.number("beta", 0.1))
    for flag in ("prompt_sample_size", "min_density_ratio", "max_density_ratio"):
        t.unused(
            flag,
            "prompts are matched by a column p_desirable of yours: matching=true, with w_min and "
            "w_max.",
        )
    return "bco"
