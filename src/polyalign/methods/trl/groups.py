"""TRL's grpo trainer: groups of sampled answers."""

from __future__ import annotations

from polyalign.errors import OptionError, nearest
from polyalign.methods.trl.losses import BY_STEP, loss_of, moving_reference, refused
from polyalign.methods.trl.translation import Translation, spell

_TEMPERATURE = "log-probabilities are at temperature 1; TRL divides the logits by the temperature."


def groups(t: Translation) -> str:
    """grpo and what its loss types make of it."""
    loss = loss_of(t, "dapo")
    if loss in ("sapo", "luspo", "vespo"):
        raise refused(t, loss)
    moving_reference(t, None, "grpo")
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
        differs = BY_STEP
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
