"""TRL's dpo trainer, whose losses and flags are several of our methods."""

from __future__ import annotations

from collections.abc import Callable

from polyalign.errors import OptionError
from polyalign.methods.trl.losses import (
    BY_STEP,
    IGNORED,
    losses_of,
    moving_reference,
    noted,
    precomputed,
    refused,
)
from polyalign.methods.trl.translation import Translation, spell

_OWN_METHODS = {
    "apo_zero": ("apo-zero", "beta", None),
    "apo_down": ("apo-down", "beta", None),
    "sigmoid_norm": ("sigmoid-norm", "beta", None),
    "discopop": ("discopop", "beta", None),
    "exo_pair": ("exo", "beta_pi", "pref"),
    "nca_pair": ("nca", "beta", "pair"),
    "bco_pair": ("nca", "beta", "biased"),
}
"""Losses that are methods of their own here: id, what beta is called, the form."""

_SHIFTED = (
    "TRL up to 0.28 shifted both rewards by their running mean, as bco form=pair does; from 0.29 "
    "it does not, as here."
)
_UNCUT = 1e9
"""A bound that no weight reaches."""


def preference(t: Translation) -> str:
    """The method's id; fills ``t.hyper``."""
    losses = losses_of(t, "sigmoid")
    precomputed(t)
    if sorted(losses) == ["sft", "sigmoid"] and len(losses) == 2:
        return _with_likelihood(t, losses)
    if len(losses) > 1:
        raise OptionError(
            f"loss_type={','.join(losses)} mixes {len(losses)} losses, and a method here has one.",
            f"Keep the one that matters most, for example loss_type: {losses[0]}",
        )
    loss = losses[0]
    t.unused("loss_weights", "there is one loss, and a constant factor of it is the learning rate.")
    method = _of_flag(t, loss)
    if method is None and t.boolean("sync_ref_model"):
        method = _moving(t, loss)
    else:
        method = moving_reference(t, None, method or _plain(t, loss))
    if not noted(t, "label_smoothing"):
        t.unused("label_smoothing", IGNORED.format(loss))
    return method


def _moving(t: Translation, loss: str) -> str:
    base = {"sigmoid": "dpo", "ipo": "ipo"}.get(loss)
    method = moving_reference(t, base, loss)
    t.note("loss_type", f"method=tr-dpo base={base}")
    t.parameter("beta", "beta", t.number("beta", 0.1))
    return method


def _of_flag(t: Translation, loss: str) -> str | None:
    """The method that a flag makes of plain DPO, None where none does."""
    divergence = (t.text("f_divergence_type", "reverse_kl") or "reverse_kl").lower()
    divergence = divergence.removeprefix("fdivergencetype.")
    makes: dict[str, tuple[bool, Callable[[Translation], str]]] = {
        "use_weighting": (t.boolean("use_weighting"), _weighted),
        "ld_alpha": (not t.off("ld_alpha") and t.number("ld_alpha") != 1, _discounted),
        "f_divergence_type": (divergence != "reverse_kl", lambda t: _divergence(t, divergence)),
        "rpo_alpha": (not t.off("rpo_alpha") and t.number("rpo_alpha") != 0, _regularised),
        "reference_free": (t.boolean("reference_free"), _free),
    }
    asked = [flag for flag, (on, _) in makes.items() if on]
    for flag in makes:
        if flag in t.flags and flag not in asked:
            t.note(flag)
    if not asked:
        return None
    if len(asked) > 1:
        raise OptionError(
            f"{asked[0]} and {asked[1]} make two different methods of it.",
            f"Remove one of them, {asked[1]} for example.",
        )
    flag = asked[0]
    if loss != "sigmoid":
        raise OptionError(
            f"{flag}={spell(t.flags[flag])} together with loss_type={loss} is no method here.",
            f"Use loss_type: sigmoid, or remove {flag}.",
        )
    method = makes[flag][1](t)
    if not noted(t, "loss_type"):
        t.note("loss_type", f"method={method}")
    if method != "f-dpo":
        t.unused("f_alpha_divergence_coef", "it belongs to a form that is not chosen.")
    return method


def _weighted(t: Translation) -> str:
    t.parameter("beta", "beta", t.number("beta", 0.1))
    t.hyper["clip_max"] = _UNCUT
    t.note(
        "use_weighting",
        f"method=wpo clip_max={_UNCUT:g}",
        "TRL does not cut the weights; the paper and its code cut their product at 1 (clip_max=1).",
    )
    return "wpo"


def _discounted(t: Translation) -> str:
    t.parameter("beta", "beta", t.number("beta", 0.1))
    t.parameter("ld_alpha", "alpha", t.number("ld_alpha"))
    return "ld-dpo"


def _divergence(t: Translation, name: str) -> str:
    t.parameter("beta", "beta", t.number("beta", 0.1))
    if name in ("forward_kl", "js_divergence"):
        t.parameter("f_divergence_type", "divergence", name.removesuffix("_divergence"))
        t.unused("f_alpha_divergence_coef", "it belongs to alpha_divergence.")
        return "f-dpo"
    if name != "alpha_divergence":
        raise OptionError(
            f"TRL has no f_divergence_type '{name}'.",
            "Use reverse_kl, forward_kl, js_divergence or alpha_divergence.",
        )
    coefficient = t.number("f_alpha_divergence_coef", 0.5)
    assert coefficient is not None
    if not 0 <= coefficient < 1:
        raise OptionError(
            f"f_alpha_divergence_coef={coefficient:g} is no divergence of f-dpo, whose alpha is 1 "
            "minus it and lies in (0, 1].",
            "Use a coefficient from 0 to below 1 (1 is f_divergence_type=reverse_kl).",
        )
    if coefficient == 0:
        t.parameter("f_divergence_type", "divergence", "forward_kl")
        t.note("f_alpha_divergence_coef", "divergence=forward_kl")
        return "f-dpo"
    t.parameter("f_divergence_type", "divergence", "alpha")
    t.parameter(
        "f_alpha_divergence_coef",
        "alpha",
        1.0 - coefficient,
        "alpha here is the exponent of the paper, 1 minus TRL's coefficient.",
    )
    return "f-dpo"


def _regularised(t: Translation) -> str:
    t.hyper["form"] = "trl"
    t.parameter("beta", "beta", t.number("beta", 0.1))
    t.parameter("rpo_alpha", "eta", t.number("rpo_alpha"), f"the likelihood: {BY_STEP}")
    return "rpo"


def _free(t: Translation) -> str:
    t.hyper["alpha"] = 0.0
    t.parameter("beta", "beta", t.number("beta", 0.1))
    smoothing = t.number("label_smoothing", 0.0) or 0.0
    t.parameter("label_smoothing", "label_smoothing", smoothing)
    t.note("reference_free", "method=cpo alpha=0")
    return "cpo"


def _with_likelihood(t: Translation, losses: list[str]) -> str:
    """The mixture of the sigmoid loss and imitation, which is rpo's form=trl."""
    for flag in ("use_weighting", "ld_alpha", "f_divergence_type", "rpo_alpha", "reference_free"):
        neutral = (1, 1.0, "reverse_kl", "FDivergenceType.REVERSE_KL")
        t.other_method(flag, "it changes one of the two losses alone", "", neutral)
    moving_reference(t, None, "rpo")
    given = t.texts("loss_weights")
    weights = [float(w) for w in given] if len(given) == 2 else [1.0, 1.0]
    by = dict(zip(losses, weights, strict=True))
    if by["sigmoid"] <= 0 or by["sft"] < 0:
        raise OptionError(
            f"loss_weights={spell(weights)} leaves nothing of the preference.",
            "Give both losses a positive weight.",
        )
    t.hyper["form"] = "trl"
    t.note("loss_type", "method=rpo form=trl", f"the likelihood: {BY_STEP}")
    scaled = "the weight of sigmoid is 1 here: a factor of the whole loss is the learning rate's."
    share = by["sft"] / by["sigmoid"]
    t.parameter("loss_weights", "eta", share, None if by["sigmoid"] == 1 else scaled)
    t.parameter("beta", "beta", t.number("beta", 0.1))
    t.unused("label_smoothing", IGNORED.format("sigmoid"))
    return "rpo"


def _plain(t: Translation, loss: str) -> str:
    smoothing = t.number("label_smoothing", 0.0) or 0.0
    beta = t.number("beta", 0.1)
    if loss in ("sigmoid", "robust"):
        method = "dpo"
        t.parameter("beta", "beta", beta)
        if loss == "robust":
            t.parameter("loss_type", "loss", "robust")
            t.parameter("label_smoothing", "label_smoothing", smoothing)
        elif smoothing > 0:
            t.parameter("loss_type", "loss", "cdpo")
            t.parameter(
                "label_smoothing",
                "label_smoothing",
                smoothing,
                "TRL up to 0.27 smoothed as this does (cdpo); TRL 1.x ignores label_smoothing with "
                "loss_type=sigmoid and trains plain dpo.",
            )
        else:
            t.parameter("loss_type", "loss", "dpo")
    elif loss == "ipo":
        method = "ipo"
        t.note("loss_type", "method=ipo length_average=true")
        t.hyper["length_average"] = True
        t.parameter("beta", "tau", beta)
    elif loss == "hinge":
        method = "slic"
        t.parameter("loss_type", "form", "hinge-norm")
        t.parameter("beta", "beta", beta)
    elif loss in ("aot", "aot_pair", "aot_unpaired"):
        method = "aot"
        _transport(t, loss)
        t.parameter("beta", "beta", beta)
        t.parameter("label_smoothing", "label_smoothing", smoothing)
    elif loss == "sft":
        method = "sft"
        t.note(
            "loss_type",
            "method=sft reduction=token",
            "the chosen answers are taken as demonstrations; rejected ones are not read.",
        )
        t.hyper["reduction"] = "token"
        t.unused("beta", "imitation has no temperature.")
    elif loss in _OWN_METHODS:
        method, name, form = _OWN_METHODS[loss]
        if form is None:
            t.note("loss_type", f"method={method}")
        else:
            differs = _SHIFTED if loss == "bco_pair" else None
            t.parameter("loss_type", "form", form, differs)
        t.parameter("beta", name, beta)
        if loss == "exo_pair":
            # TRL's loss is undefined at 0, where it takes this value.
            t.parameter("label_smoothing", "eps", smoothing or 1e-3)
        if loss == "discopop":
            t.parameter("discopop_tau", "tau", t.number("discopop_tau", 0.05))
    else:
        raise refused(t, loss)
    return method


def _transport(t: Translation, loss: str) -> None:
    differs = "rewards are sorted over the whole optimizer step; TRL sorts each micro-batch."
    if loss == "aot_pair":
        differs = (
            "TRL up to 0.27 called the unpaired form aot_pair; from 0.28 it is aot_unpaired. "
            + differs[0].upper()
            + differs[1:]
        )
    t.parameter("loss_type", "form", "paired" if loss == "aot" else "unpaired", differs)
