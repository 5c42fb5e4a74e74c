"""``polyalign import-config``: from a TRL configuration to a training configuration of ours."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polyalign.errors import OptionError, nearest
from polyalign.methods.trl.flags import LOSSES, OTHER_TRAINERS, OWN, TRAINERS, UNUSED, known
from polyalign.methods.trl.objective import objective
from polyalign.methods.trl.reading import read
from polyalign.methods.trl.run import options
from polyalign.methods.trl.translation import Note, Translation


@dataclass(frozen=True)
class Imported:
    """A TRL configuration as ours.

    ``options`` is a configuration for ``polyalign train`` (with ``method`` and ``hyper``), as far
    as the flags said something; ``model``, ``data`` and ``output`` may be missing. ``notes`` say of
    each flag what it became and what differs; first the given flags in their order, then TRL's
    defaults that were carried over.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


def import_config(source: Any, trainer: str | None = None) -> Imported:
    """Read a TRL configuration and say what each flag became and what differs.

    ``source``: the path of a YAML or JSON file as for ``trl dpo --config FILE``, a command line
    (``"trl dpo --beta 0.1 …"``), a mapping of flags, or a configuration object of TRL's.
    ``trainer`` ("dpo", "kto", "bco", "orpo", "cpo", "tpo", "sft", "grpo") may be left out where the
    command, the flags or the file's name tell. Raises :class:`OptionError` for an unknown flag
    (naming the nearest), for a trainer or loss without a counterpart, and for a value of the wrong
    type.
    """
    flags, hints = read(source)
    name = _trainer(trainer, hints, flags, source)
    _check(flags, name)
    translation = Translation(flags, name)
    method = objective(translation)
    options(translation)
    noted = {note.flag for note in translation.notes}
    for flag in flags:
        if flag not in noted:
            translation.unused(flag, UNUSED[flag])
    order = {flag: place for place, flag in enumerate(flags)}
    notes = sorted(translation.notes, key=lambda note: order.get(note.flag, len(order)))
    result = {"method": method, "hyper": translation.hyper, **translation.options}
    return Imported(method, result, notes)


def _trainer(asked: str | None, hints: list[str], flags: Mapping[str, Any], source: Any) -> str:
    """Which of TRL's trainers: as asked, else by command, by flags, by file name."""
    if asked is None and dataclasses.is_dataclass(source):
        asked = type(source).__name__.removesuffix("Config").lower()
    if asked is not None:
        return _valid(asked)
    if hints and hints[0] == "command":
        return _valid(hints[1])
    fitting = [
        name for name in TRAINERS if set(flags) <= known(name) and _losses(flags) <= LOSSES[name]
    ]
    if len(fitting) == 1:
        return fitting[0]
    named = [
        name
        for hint in hints
        for name in (*TRAINERS, *OTHER_TRAINERS)
        if re.search(rf"(?<![a-z]){name}(?![a-z])", hint.lower())
    ]
    if len(set(named)) == 1 and (named[0] in fitting or not fitting):
        return _valid(named[0])
    if fitting:
        raise OptionError(
            f"The flags fit several of TRL's trainers: {', '.join(fitting)}.",
            "Say which: --trainer dpo (or call the file dpo.yaml).",
        )
    every = set().union(*(known(name) for name in TRAINERS))
    for flag in flags:
        if flag not in every:
            raise _unknown(flag, every)
    owners = {
        flag: [name for name in TRAINERS if flag in OWN[name]]
        for flag in flags
        if flag not in UNUSED
    }
    apart = ", ".join(f"{flag} ({', '.join(names)})" for flag, names in owners.items() if names)
    raise OptionError(
        f"No trainer of TRL has all of these flags: {apart}.",
        "Say which is meant (--trainer NAME) and remove the others' flags.",
    )


def _losses(flags: Mapping[str, Any]) -> set[str]:
    value = flags.get("loss_type") or []
    return {value} if isinstance(value, str) else {str(item) for item in value}


def _valid(name: str) -> str:
    folded = name.lower().replace("-", "_").removesuffix("config").removesuffix("trainer")
    if folded in TRAINERS:
        return folded
    if folded in OTHER_TRAINERS or folded.replace("_", "") in [
        other.replace("_", "") for other in OTHER_TRAINERS
    ]:
        raise OptionError(
            f"TRL's trainer '{name}' has no counterpart in this version.",
            f"Those of {', '.join(TRAINERS)} are read; see polyalign methods for what there is.",
        )
    raise OptionError(f"TRL has no trainer '{name}'.", nearest(folded, TRAINERS))


def _check(flags: Mapping[str, Any], trainer: str) -> None:
    valid = known(trainer)
    for flag in flags:
        if flag in valid:
            continue
        owners = [name for name in TRAINERS if flag in OWN[name]]
        if owners:
            raise OptionError(
                f"{flag} is a flag of TRL's {' and '.join(owners)}, not of {trainer}.",
                f"Remove it, or import as {owners[0]} (--trainer {owners[0]}).",
            )
        raise _unknown(flag, valid)


def _unknown(flag: str, valid: set[str]) -> OptionError:
    mend = nearest(flag, valid).partition(" (valid")[0]
    if mend.startswith("Valid"):
        mend = "Only TRL's configurations are read; see https://huggingface.co/docs/trl."
    return OptionError(f"TRL has no flag '{flag}'.", mend)
