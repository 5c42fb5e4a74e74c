"""What TRL's trainer, loss_type and their flags make as a method with hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable

from polyalign.methods.trl.groups import groups
from polyalign.methods.trl.preference import preference
from polyalign.methods.trl.reference_free import contrastive, odds, supervised, triple
from polyalign.methods.trl.thumbs import classifier, prospect
from polyalign.methods.trl.translation import Translation

_TRAINERS: dict[str, Callable[[Translation], str]] = {
    "dpo": preference,
    "kto": prospect,
    "bco": classifier,
    "orpo": odds,
    "cpo": contrastive,
    "tpo": triple,
    "sft": supervised,
    "grpo": groups,
}


def objective(t: Translation) -> str:
    """The method's id; fills ``t.hyper``. Raises :class:`OptionError` where there is none."""
    return _TRAINERS[t.trainer](t)
