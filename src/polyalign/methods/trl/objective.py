"""What TRL's trainer, loss_type and their flags make as a method with hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable

from polyalign.errors import OptionError, nearest
from polyalign.methods.trl.flags import LOSSES, TRAINERS
from polyalign.methods.trl.translation import Translation, spell, without

_BY_STEP = (
    "the average is over the whole optimizer step; TRL averages each micro-batch first, so there "
    "it depends on how a step is cut."
)
_TEMPERATURE = "log-probabilities are at temperature 1; TRL divides the logits by the temperature."

_OTHER_LOSSES = {
    "bco_pair": "bco",
    "bco": "bco",
    "sppo_hard": "sppo",
    "alphapo": "alphapo",
}
"""Losses that differ from the methods of their names, with these methods' ids."""

_OWN_METHODS = {
    "apo_zero": ("apo-zero", "beta", None),
    "apo_down": ("apo-down", "beta", None),
    "sigmoid_norm": ("sigmoid-norm", "beta", None),
    "discopop": ("discopop", "beta", None),
    "exo_pair": ("exo", "beta_pi", "pref"),
    "nca_pair": ("nca", "beta", "pair"),
}
"""TRL's dpo losses that are methods of their own here: id, what beta is called, the form."""


def objective(t: Translation) -> str:
    """The method's id; fills ``t.hyper``. Raises :class:`OptionError` where there is none."""
    return _TRAINERS[t.trainer](t)


def loss_of(t: Translation, default: str) -> str:
    """The one loss that is asked for; several are a mixture, which no method here is."""
    losses = t.texts("loss_type") or [default]
    if len(losses) > 1:
        raise OptionError(
            f"loss_type={','.join(losses)} mixes {len(losses)} losses, and a method here has one.",
            f"Keep the one that matters most, for example loss_type: {losses[0]}",
        )
    loss = losses[0]
    if loss not in LOSSES[t.trainer]:
        owners = [other for other in TRAINERS if loss in LOSSES[other]]
        where = f" (it is one of {', '.join(owners)})" if owners else ""
        raise OptionError(
            f"TRL's {t.trainer} has no loss_type '{loss}'{where}.", nearest(loss, LOSSES[t.trainer])
        )
    return loss


def _refuse(t: Translation, loss: str) -> OptionError:
    if loss == "kto_pair":
        return OptionError(
            "TRL removed loss_type=kto_pair.",
            "Import it as trainer kto: pairs are then taken as thumbs up and thumbs down.",
        )
    method = _OTHER_LOSSES.get(loss, loss)
    return OptionError(
        f"loss_type={loss} of TRL's {t.trainer} is a method of its own.",
        without(method, "loss_type"),
    )


def _reference(t: Translation) -> None:
    if t.boolean("sync_ref_model"):
        t.other_method("sync_ref_model", "the reference follows the policy (TR-DPO)", "tr-dpo", ())
    elif "sync_ref_model" in t.flags:
        t.note("sync_ref_model")
    if "precompute_ref_log_probs" in t.flags:
        asked = t.boolean("precompute_ref_log_probs")
        t.note(
            "precompute_ref_log_probs",
            "the reference cache, always on",
            None if asked else "log-probabilities of the frozen reference are cached all the same.",
        )


def _preference(t: Translation) -> str:
    """TRL's dpo, whose losses are several of our methods."""
    loss = loss_of(t, "sigmoid")
    _reference(t)
    t.other_method("use_weighting", "pairs weighted by their probability (WPO)", "wpo", ())
    t.other_method(
        "ld_alpha", "the part beyond the shared length is discounted", "ld-dpo", (1, 1.0)
    )
    t.other_method(
        "f_divergence_type",
        "another divergence from the reference",
        "f-dpo",
        ("reverse_kl", "FDivergenceType.REVERSE_KL"),
    )
    t.other_method("rpo_alpha", "the chosen answer's likelihood is added", "rpo", ())
    t.other_method("reference_free", "the reference is taken as uniform", "cpo", ())
    t.unused("loss_weights", "there is one loss, and a constant factor of it is the learning rate.")
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
            t.parameter("loss_type", "form", form)
        t.parameter("beta", name, beta)
        if loss == "exo_pair":
            # TRL's loss is undefined at 0, where it takes this value.
            t.parameter("label_smoothing", "eps", smoothing or 1e-3)
        if loss == "discopop":
            t.parameter("discopop_tau", "tau", t.number("discopop_tau", 0.05))
    else:
        raise _refuse(t, loss)
    if not _noted(t, "label_smoothing"):
        t.unused("label_smoothing", f"loss_type={loss} does not use it, here or in TRL.")
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


def _noted(t: Translation, flag: str) -> bool:
    return any(note.flag == flag for note in t.notes)


def _prospect(t: Translation) -> str:
    loss = loss_of(t, "kto")
    if loss not in ("kto", "apo_zero_unpaired"):
        raise _refuse(t, loss)
    _reference(t)
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
    t.parameter("desirable_weight", "lam_D", t.number("desirable_weight", 1.0))
    t.parameter("undesirable_weight", "lam_U", t.number("undesirable_weight", 1.0))
    return "kto"


def _odds(t: Translation) -> str:
    t.parameter(
        "beta",
        "lam",
        t.number("beta", 0.1),
        "TRL's likelihood term also covers the prompt's tokens, and its average is over each "
        "micro-batch; here it covers the chosen answer, over the whole optimizer step.",
    )
    return "orpo"


def _contrastive(t: Translation) -> str:
    """TRL's cpo, of which simpo is one loss."""
    loss = loss_of(t, "sigmoid")
    if loss != "simpo":
        if loss in ("alphapo", "kto_pair"):
            raise _refuse(t, loss)
        raise OptionError(
            f"loss_type={loss} of TRL's cpo is contrastive preference optimization.",
            without("cpo", "loss_type") + " With loss_type: simpo it becomes simpo.",
        )
    t.other_method("alpha", "rewards of another shape (AlphaPO)", "alphapo", (0, 0.0, "0", "0.0"))
    t.note("loss_type", "method=simpo")
    beta = t.number("beta", 0.1) or 0.1
    gamma = t.number("simpo_gamma", 0.5) or 0.0
    t.parameter("beta", "beta", beta)
    t.parameter(
        "simpo_gamma",
        "gamma_beta_ratio",
        gamma / beta,
        f"the parameter here is the ratio gamma / beta = {gamma:g} / {beta:g}; the margin is the "
        "same.",
    )
    t.parameter(
        "cpo_alpha",
        "sft_weight",
        t.number("cpo_alpha", 1.0),
        f"the likelihood of chosen answers: {_BY_STEP} (SimPO itself has cpo_alpha=0.)",
    )
    t.parameter("label_smoothing", "label_smoothing", t.number("label_smoothing", 0.0))
    return "simpo"


def _supervised(t: Translation) -> str:
    loss = loss_of(t, "nll")
    if loss == "dft":
        raise _refuse(t, loss)
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


def _groups(t: Translation) -> str:
    loss = loss_of(t, "dapo")
    if loss in ("sapo", "luspo", "vespo"):
        raise _refuse(t, loss)
    _reference(t)
    for flag, what, neutral in (
        ("top_entropy_quantile", "only the least certain tokens are trained", (1, 1.0, "1.0")),
        ("entropy_coef", "an entropy bonus is added", (0, 0.0, "0.0")),
        ("use_adaptive_entropy", "an adaptive entropy bonus is added", ()),
        ("off_policy_mask_threshold", "rows far from the policy are masked", ()),
        ("multi_objective_aggregation", "rewards are normalised apart", ("sum_then_normalize",)),
    ):
        t.other_method(flag, what, "", neutral)
    t.parameter("num_generations", "G", t.count("num_generations", 8))
    beta = t.number("beta", 0.0) or 0.0
    t.parameter("beta", "beta", beta)
    _clipping(t, loss)
    scale = t.flags.get("scale_rewards", "group")
    scales = {"true": "group", "group": "group", "false": "none", "none": "none"}
    if str(scale).lower() not in scales:
        raise OptionError(
            f"scale_rewards={spell(scale)} has no counterpart: advantages are scaled by their "
            "group or not at all.",
            "Use scale_rewards: group or none.",
        )
    t.parameter("scale_rewards", "scale", scales[str(scale).lower()])
    length = t.count("max_completion_length", 512) or 512
    t.hyper["L_max"] = length
    t.option("max_completion_length", "max_new_tokens", length)
    t.parameter("num_iterations", "inner_epochs", t.count("num_iterations", 1))
    if "mask_truncated_completions" in t.flags:
        dropped = t.boolean("mask_truncated_completions")
        t.parameter("mask_truncated_completions", "drop_truncated", dropped)
    if beta > 0:
        corrected = t.boolean("use_bias_correction_kl", True)
        t.parameter("use_bias_correction_kl", "kl_correction", corrected)
    else:
        t.unused("use_bias_correction_kl", "without beta there is no divergence to correct.")
    t.unused(
        "steps_per_generation",
        "each optimizer step draws its own samples (num_iterations repeats them).",
    )
    _sampling(t)
    _rewards(t)
    return "grpo"


def _clipping(t: Translation, loss: str) -> None:
    """Aggregation and clipping: what loss_type, the epsilons and the level say together."""
    low = t.number("epsilon", 0.2) or 0.0
    high = t.number("epsilon_high", None)
    sequence = t.text("importance_sampling_level", "token") or "token"
    if sequence not in ("token", "sequence"):
        raise OptionError(
            f"importance_sampling_level={sequence} is neither token nor sequence.",
            nearest(sequence, ("token", "sequence")),
        )
    differs = None
    if loss == "bnpo":
        differs = _BY_STEP
    aggregation = {"bnpo": "dapo", "cispo": "dapo"}.get(loss, loss)
    t.parameter("loss_type", "aggregation", aggregation, differs)
    t.parameter("importance_sampling_level", "level", sequence)
    if loss == "cispo":
        t.hyper["surrogate"] = "cispo"
        cap = low if high is None else high
        t.parameter(
            "epsilon_high", "eps_max", cap, "TRL's epsilon_high is the bound of the ratio itself."
        )
        t.unused("epsilon", "cispo bounds the ratio from above only.")
        t.other_method("delta", "cispo has no second bound", "", ())
        return
    t.parameter("epsilon", "eps_low", low)
    t.parameter("epsilon_high", "eps_high", low if high is None else high)
    if "delta" in t.flags:
        t.parameter("delta", "delta", t.number("delta"))


def _sampling(t: Translation) -> None:
    temperature = t.number("temperature", 1.0)
    t.option("temperature", "temperature", temperature, None if temperature == 1 else _TEMPERATURE)
    if "top_p" in t.flags:
        t.option("top_p", "top_p", t.number("top_p"))
    if "top_k" in t.flags:
        t.option("top_k", "top_k", t.count("top_k") or 0)


def _rewards(t: Translation) -> None:
    model, functions = t.text("reward_model_name_or_path"), t.texts("reward_funcs")
    one = len(functions) + (model is not None) == 1
    several = "one judge is asked here: combine the rewards in one function, FILE.py:function."
    if "reward_model_name_or_path" in t.flags and model is not None:
        if one:
            t.option(
                "reward_model_name_or_path", "judge", model, "the folder must be on this machine."
            )
        else:
            t.note("reward_model_name_or_path", None, several)
    elif "reward_model_name_or_path" in t.flags:
        t.note("reward_model_name_or_path")
    if not functions:
        if "reward_funcs" in t.flags:
            t.note("reward_funcs")
        return
    place, _, name = functions[0].rpartition(".")
    if one and place:
        t.option(
            "reward_funcs",
            "judge",
            f"{place.replace('.', '/')}.py:{name}",
            "the function is given prompts and completions; check that its arguments fit.",
        )
    elif one:
        t.note(
            "reward_funcs",
            None,
            f"TRL's own {functions[0]} is not here: write it as judge FILE.py:function.",
        )
    else:
        t.note("reward_funcs", None, several)


_TRAINERS: dict[str, Callable[[Translation], str]] = {
    "dpo": _preference,
    "kto": _prospect,
    "orpo": _odds,
    "cpo": _contrastive,
    "sft": _supervised,
    "grpo": _groups,
}
