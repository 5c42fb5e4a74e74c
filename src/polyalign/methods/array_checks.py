"""What cards say to refuse or to warn of and only numbers show, for the numeric entry point."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from polyalign.errors import NumericsError, OptionError, PolyalignWarning
from polyalign.methods.array_sides import Side
from polyalign.objectives import Listwise, LogOdds, Match, PolicyGradient, Shares, Transport
from polyalign.recipe import Update
from polyalign.types import Needs, Objective, Scores


def check_sizes(id: str, updates: tuple[Update, ...], sides: Mapping[str, Side]) -> None:
    """Raise :class:`NumericsError` for sides that do not belong together."""
    sizes = {role: side.units for role, side in sides.items()}
    unpaired = any(
        isinstance(u.objective, Transport) and u.objective.form == "unpaired" for u in updates
    )
    if len(set(sizes.values())) > 1 and not unpaired:
        listed = ", ".join(f"{role} {size}" for role, size in sizes.items())
        raise NumericsError(
            f"{id} got sides of different sizes ({listed}).",
            "Give each side one row for each example.",
        )
    if min(sizes.values()) == 0:
        raise NumericsError(f"{id} got no examples.", "Give at least one.")


def refuse_numbers(id: str, part: Objective, scores: Scores) -> None:
    """What a card says must be refused and only numbers can show."""
    if part.needs.statistics and len(scores.weight) < 2:
        raise NumericsError(
            f"{id} measures its zero point over several examples, and there is one.",
            "Give at least two.",
        )
    if isinstance(getattr(part, "reward", None), LogOdds):
        for role in ("chosen", "rejected"):
            if bool((scores[role].mean() >= 0).any()):
                raise NumericsError(
                    f"{id}: an average {role} log-probability is not below 0, so it has no odds.",
                    "Probabilities must be below 1; compute them in float32 or better.",
                )
    loss = part.loss if isinstance(part, Listwise) and part.labels == "given" else None
    if isinstance(loss, Match) and isinstance(loss.target, Shares):
        none = scores.fields["reward"].sum(-1) <= 0
        if bool(none.any()):
            raise NumericsError(
                f"{id}: the labels of example {int(none.nonzero()[0, 0])} sum to 0, so they share "
                "nothing.",
                "Give at least one positive label in each list.",
            )
    if isinstance(part, PolicyGradient) and part.aggregation == "budget":
        longest = int(scores["own"].mask.sum(-1).max())
        if longest > part.budget:
            raise NumericsError(
                f"{id}: a completion has {longest} steps, more than L_max={part.budget}.",
                f"Use L_max of at least {longest}.",
            )
    if getattr(part, "level", None) == "step" and scores.segment is None:
        raise OptionError(
            f"{id} with level=step needs the array 'segment' [B, T].", "Number the steps' tokens."
        )


def warn_of_numbers(id: str, needs: Needs, scores: Scores, sides: Mapping[str, Side]) -> None:
    """What a card says must be warned of."""

    def warn(text: str) -> None:
        warnings.warn(f"{id}: {text}", PolyalignWarning, stacklevel=5)

    if needs.couples == "batch" and len(scores.weight) == 1:
        warn("one pair has nothing to sort against; the loss is DPO's.")
    if "label" in needs.fields:
        label = scores.fields["label"]
        if bool(((label != 0) & (label != 1)).any()):
            raise NumericsError("The array 'label' holds more than 0 and 1.", "Give booleans.")
        if len(set(label.tolist())) == 1:
            warn("all examples have one label, so only one side is learnt.")
    if "chosen" in sides and "rejected" in sides and needs.couples != "batch":
        w, l = sides["chosen"], sides["rejected"]  # noqa: E741
        if w.logp.shape == l.logp.shape and w.ref is not None and l.ref is not None:
            same = ((w.logp == l.logp) & (w.ref == l.ref) & (w.mask == l.mask)).all(-1)
            if bool(same.any()):
                row = int(same.nonzero()[0, 0])
                warn(f"chosen and rejected look identical in example {row}.")
