"""What the losses of several of TRL's trainers share: which one is asked for, and its reference."""

from __future__ import annotations

from polyalign.errors import OptionError, nearest
from polyalign.methods.trl.flags import LOSSES, TRAINERS
from polyalign.methods.trl.translation import Translation, without

BY_STEP = (
    "the average is over the whole optimizer step; TRL averages each micro-batch first, so there "
    "it depends on how a step is cut."
)
IGNORED = "loss_type={} does not use it, here or in TRL."

_OTHER_LOSSES = {"sppo_hard": "sppo"}
"""Losses that differ from the methods of their names, with these methods' ids."""


def losses_of(t: Translation, default: str) -> list[str]:
    """The losses that are asked for; raises :class:`OptionError` for one that TRL has not."""
    losses = t.texts("loss_type") or [default]
    for loss in losses:
        if loss not in LOSSES[t.trainer]:
            owners = [other for other in TRAINERS if loss in LOSSES[other]]
            where = f" (it is one of {', '.join(owners)})" if owners else ""
            raise OptionError(
                f"TRL's {t.trainer} has no loss_type '{loss}'{where}.",
                nearest(loss, LOSSES[t.trainer]),
            )
    return losses


def loss_of(t: Translation, default: str) -> str:
    """The one loss that is asked for; several are a mixture, which no method here is."""
    losses = losses_of(t, default)
    if len(losses) > 1:
        raise OptionError(
            f"loss_type={','.join(losses)} mixes {len(losses)} losses, and a method here has one.",
            f"Keep the one that matters most, for example loss_type: {losses[0]}",
        )
    return losses[0]


def refused(t: Translation, loss: str) -> OptionError:
    """What is said of a loss that no method here is."""
    if loss == "kto_pair":
        return OptionError(
            "TRL removed loss_type=kto_pair.",
            "Import it as trainer kto: pairs are then taken as thumbs up and thumbs down.",
        )
    return OptionError(
        f"loss_type={loss} of TRL's {t.trainer} is a method of its own.",
        without(_OTHER_LOSSES.get(loss, loss), "loss_type"),
    )


def moving_reference(t: Translation, base: str | None, method: str) -> str:
    """The method where the reference follows the policy, else ``method``; ``base`` is tr-dpo's name
    of the loss, None where it has none.
    """
    if not t.boolean("sync_ref_model"):
        if "sync_ref_model" in t.flags:
            t.note("sync_ref_model")
        return method
    if base is None:
        t.other_method("sync_ref_model", "the reference follows the policy (TR-DPO)", "tr-dpo", ())
    t.hyper["base"] = base
    t.parameter("sync_ref_model", "form", "both")
    t.parameter("ref_model_mixup_alpha", "alpha", t.number("ref_model_mixup_alpha", 0.6))
    t.parameter("ref_model_sync_steps", "tau", t.count("ref_model_sync_steps", 512))
    return "tr-dpo"


def precomputed(t: Translation) -> None:
    """What became of the flag about cached references."""
    if "precompute_ref_log_probs" in t.flags:
        asked = t.boolean("precompute_ref_log_probs")
        t.note(
            "precompute_ref_log_probs",
            "the reference cache, always on",
            None if asked else "log-probabilities of the frozen reference are cached all the same.",
        )


def noted(t: Translation, flag: str) -> bool:
    """Whether something was said of a flag."""
    return any(note.flag == flag for note in t.notes)
