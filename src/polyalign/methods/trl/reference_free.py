"""TRL's trainers without a reference: orpo, cpo, tpo and sft."""

from __future__ import annotations

from polyalign.errors import OptionError
from polyalign.methods.trl.losses import BY_STEP, IGNORED, loss_of, refused
from polyalign.methods.trl.translation import Translation

_GAMMA = "the parameter here is the ratio gamma / beta = {:g} / {:g}; the margin is the same."


def odds(t: Translation) -> str:
    """orpo."""
    t.parameter(
        "beta",
        "lam",
        t.number("beta", 0.1),
        "TRL's likelihood term also covers the prompt's tokens, and its average is over each "
        "micro-batch; here it covers the chosen answer, over the whole optimizer step.",
    )
    return "orpo"


def contrastive(t: Translation) -> str:
    """TRL's cpo, of which simpo and alphapo are losses."""
    loss = loss_of(t, "sigmoid")
    if loss == "kto_pair":
        raise refused(t, loss)
    alpha = t.number("alpha", 0.0) or 0.0
    if loss == "alphapo" or (loss == "simpo" and alpha != 0):
        return _shaped(t, loss, alpha)
    t.other_method("alpha", "rewards of another shape (AlphaPO)", "alphapo", (0, 0.0, "0", "0.0"))
    if loss == "simpo":
        return _simple(t)
    t.hyper["form"] = "code"
    t.parameter("loss_type", "link", loss)
    t.parameter("beta", "beta", t.number("beta", 0.1))
    t.parameter("cpo_alpha", "alpha", t.number("cpo_alpha", 1.0), f"the likelihood: {BY_STEP}")
    t.unused("simpo_gamma", f"loss_type={loss} has no margin of its own.")
    if loss == "sigmoid":
        t.parameter("label_smoothing", "label_smoothing", t.number("label_smoothing", 0.0))
    else:
        t.unused("label_smoothing", IGNORED.format(loss))
    return "cpo"


def _shaped(t: Translation, loss: str, alpha: float) -> str:
    """alphapo: simpo's loss of another shape of reward."""
    t.note("loss_type", "method=alphapo")
    t.parameter("alpha", "alpha", alpha)
    t.parameter("beta", "beta", t.number("beta", 0.1))
    t.parameter("simpo_gamma", "gamma", t.number("simpo_gamma", 0.5))
    t.parameter("label_smoothing", "label_smoothing", t.number("label_smoothing", 0.0))
    if loss == "alphapo":
        t.unused("cpo_alpha", "loss_type=alphapo sets it to 0, in TRL too.")
    else:
        weight = t.number("cpo_alpha", 1.0)
        t.parameter("cpo_alpha", "sft_weight", weight, f"the likelihood: {BY_STEP}")
    return "alphapo"


def _simple(t: Translation) -> str:
    t.note("loss_type", "method=simpo")
    beta = t.number("beta", 0.1) or 0.1
    gamma = t.number("simpo_gamma", 0.5) or 0.0
    t.parameter("beta", "beta", beta)
    t.parameter("simpo_gamma", "gamma_beta_ratio", gamma / beta, _GAMMA.format(gamma, beta))
    t.parameter(
        "cpo_alpha",
        "sft_weight",
        t.number("cpo_alpha", 1.0),
        f"the likelihood of chosen answers: {BY_STEP} (SimPO itself has cpo_alpha=0.)",
    )
    t.parameter("label_smoothing", "label_smoothing", t.number("label_smoothing", 0.0))
    return "simpo"


def triple(t: Translation) -> str:
    """TRL's tpo: triple-po with the likelihood by token."""
    loss = loss_of(t, "sigmoid")
    if loss == "ipo":
        raise OptionError(
            "loss_type=ipo of TRL's tpo is no method here.", "Use loss_type: sigmoid or tpo-l."
        )
    if (t.number("label_smoothing", 0.0) or 0.0) > 0 and loss != "hinge":
        t.other_method("label_smoothing", "a smoothed TPO, which no method here is", "", ())
    t.hyper["form"] = "code"
    if loss == "tpo-l":
        t.parameter("loss_type", "loss", "tpo-l")
        t.parameter("tpo_l_gamma", "gamma", t.number("tpo_l_gamma", 0.5))
    else:
        t.parameter("loss_type", "link", loss)
        t.unused("tpo_l_gamma", "it belongs to loss_type=tpo-l.")
    t.parameter("beta", "beta", t.number("beta", 0.01))
    t.parameter("tpo_alpha", "alpha", t.number("tpo_alpha", 1.0), f"the likelihood: {BY_STEP}")
    t.unused("label_smoothing", IGNORED.format(loss))
    # TRL's data have the gold answer in a column of this name.
    t.options["columns"] = {"gold": "reference"}
    return "triple-po"


def supervised(t: Translation) -> str:
    """sft."""
    loss = loss_of(t, "nll")
    if loss == "dft":
        raise refused(t, loss)
    t.parameter("loss_type", "reduction", "token")
    turns = "with whole conversations TRL trains on every turn unless assistant_only_loss is set; "
    if t.boolean("assistant_only_loss"):
        t.option("assistant_only_loss", "assistant", "all")
    else:
        t.note(
            "assistant_only_loss",
            "assistant=last",
            turns + "here the last turn of the assistant is trained (assistant=all: each of them).",
        )
    if "completion_only_loss" in t.flags:
        whole = not t.off("completion_only_loss") or t.flags["completion_only_loss"] is None
        t.note(
            "completion_only_loss",
            "the mask by positions, always on",
            None if whole else "prompts are never trained on here.",
        )
    t.unused(
        "packing",
        "examples are not packed: batch counts examples here, and packed sequences of max_length "
        "tokens in TRL, so a step there sees more text.",
    )
    if "dataset_text_field" in t.flags:
        usual = t.text("dataset_text_field") in (None, "text")
        t.note(
            "dataset_text_field",
            None,
            None if usual else "columns are found by their names; map yours with columns.",
        )
    return "sft"
