"""Methods: declarations by family, and how they are found.

``catalogue`` reads a generated index, so looking around loads neither torch nor a declaration.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyalign.errors import OptionError, nearest

if TYPE_CHECKING:
    from polyalign.recipe import Declaration, Header, Measure

GROUP = "polyalign.methods"
"""Entry-point group in which other packages offer declarations."""


@dataclass(frozen=True)
class Kind:
    """One kind of method: what it does to a policy, in the third person, and its command."""

    does: str
    infinitive: str
    command: str


KINDS = {
    "train": Kind(
        "trains a policy", "train", "polyalign train {id} --model MODEL --data FILE --output RUN"
    ),
    "measure": Kind(
        "measures a policy", "measure", "polyalign evaluate RUN_OR_MODEL --data FILE --with {id}"
    ),
}
"""The kinds of methods by name, each with the command that uses it."""


def usage(id: str, entry: Mapping[str, Any]) -> str:
    """The command that uses a method."""
    return KINDS[entry["kind"]].command.format(id=id)


AMBIGUOUS = {
    "aotpair": ("aot", "aot with form=unpaired (what TRL up to 0.27 called aot_pair)"),
    "dapo": ("dapo-advantage", "grpo with aggregation=dapo eps_high=0.28"),
    "rdpo": ("r-dpo", "rdpo-refined", "robust-dpo"),
    "sdpo": ("sdpo (stepwise references)", "sdpo-segment"),
    "tpo": ("triple-po", "tree-po"),
    "spo": ("spo-sequential", "spo-self", "spo-minimax", "spo-diffusion"),
}
"""Names that mean several methods, folded, with what each may mean."""

OPTIONS = {
    "aotunpaired": ("aot", "form=unpaired"),
    "apozerounpaired": ("kto", "zero_point=none"),
    "asftbeta": ("daa-blur", "link=pointwise"),
    "biasednca": ("nca", "form=biased"),
    "cdpo": ("dpo", "loss=cdpo label_smoothing=0.1"),
    "cispo": ("grpo", "surrogate=cispo aggregation=dapo beta=0"),
    "drgrpo": ("grpo", "aggregation=dr_grpo scale=none beta=0"),
    "exopair": ("exo", "form=pref"),
    "exopref": ("exo", "form=pref"),
    "gspo": ("grpo", "level=sequence aggregation=gspo eps_low=0.0003 eps_high=0.0004 beta=0"),
    "hinge": ("slic", "form=hinge-norm"),
    "jsdpo": ("f-dpo", "divergence=js"),
    "ncapair": ("nca", "form=pair"),
    "orpobeta": ("daa-blur", "link=pairwise"),
    "rewardconditionedsft": ("offline-rlhf", "form=dt"),
    "rwr": ("offline-rlhf", "form=rwr"),
    "tdpo1": ("tdpo", "variant=tdpo1"),
    "tdpo2": ("tdpo", "variant=tdpo2"),
    "tpol": ("triple-po", "loss=tpo-l"),
    "tripo": ("tr-dpo", "base=ipo"),
    "trkto": ("tr-dpo", "base=kto"),
}
"""Names that are a method at certain options, folded: method and options."""

NOT_TRAINED = {
    "bestofn": (
        "does not train: it chooses among answers",
        "polyalign evaluate RUN --data FILE --judge JUDGE --n 4 (its best_of_n)",
    ),
    "bon": (
        "does not train: it chooses among answers",
        "polyalign evaluate RUN --data FILE --judge JUDGE --n 4 (its best_of_n)",
    ),
    "dposurvey": (
        "does not train: it is the taxonomy of the methods",
        "polyalign methods --by concern (or another of its dimensions)",
    ),
    "merge": (
        "does not train: it folds an adapter into its model",
        "polyalign model merge RUN --output FOLDER",
    ),
}
"""Names that people look for among the methods, folded: what they are, and the command."""


def fold(name: str) -> str:
    """A name without case, hyphens, underscores and spaces.

    >>> fold("Sim_PO") == fold("simpo")
    True
    """
    return "".join(c for c in name.lower() if c not in "-_ ")


@cache
def _index() -> dict[str, Any]:
    path = files("polyalign.methods").joinpath("index.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def catalogue() -> dict[str, dict[str, Any]]:
    """What is known of every method by id, without importing any.

    Each entry has ``title``, ``arxiv``, ``aliases``, ``tags``, ``feedback``, ``family``, ``kind``,
    ``hyper`` (name to type, bounds, default), ``doc`` and ``taxonomy``; one that trains has
    ``needs`` and ``stages``. Methods of other packages have ``title`` and ``kind`` only until they
    are loaded.
    """
    found = {name: dict(entry) for name, entry in _index().items()}
    for name, point in _entry_points().items():
        found.setdefault(name, {"title": f"(from {point.value})", "kind": "train", "aliases": []})
    return found


def get(name: str) -> Declaration:
    """The method that trains, of an id, an alias (case and underscores do not matter) or
    ``FILE.py:function``.

    Raises :class:`OptionError` as :func:`named` does, and for a method of another kind.
    """
    from polyalign.recipe import Declaration

    found = find(name, "train")
    assert isinstance(found, Declaration)
    return found


def measurement(name: str) -> Measure:
    """The method that measures, by the same names and with the same errors as :func:`get`."""
    from polyalign.recipe import Measure

    found = find(name, "measure")
    assert isinstance(found, Measure)
    return found


def find(name: str, kind: str) -> Header:
    """The method of a name and one of :data:`KINDS`."""
    if ".py:" in name:
        found = _from_file(name)
    else:
        id, entry = named(name)
        if entry["kind"] != kind and "family" in entry:
            raise _other_kind(name, kind, id, entry["kind"])
        found = _load(id)
    if found.kind != kind:
        raise _other_kind(name, kind, name if ".py:" in name else found.id, found.kind)
    return found


def _other_kind(name: str, wanted: str, id: str, kind: str) -> OptionError:
    use = KINDS[kind].command.format(id=id)
    return OptionError(
        f"'{name}' does not {KINDS[wanted].infinitive}: it {KINDS[kind].does}.", f"Use: {use}"
    )


def named(name: str) -> tuple[str, dict[str, Any]]:
    """The id and the catalogue's entry of an id or alias, without importing the method.

    Raises :class:`OptionError` for an unknown name (naming the nearest), a name that means several
    methods (listing them) and a method's option taken for a method.
    """
    entries = catalogue()
    names = {fold(id): id for id in entries}
    for id, entry in entries.items():
        for alias in entry.get("aliases", ()):
            names.setdefault(fold(alias), id)
    key = fold(name)
    if key in AMBIGUOUS and name not in entries:
        raise OptionError(
            f"'{name}' means several methods.", f"Say which: {'; '.join(AMBIGUOUS[key])}."
        )
    if key in OPTIONS and key not in names:
        base, options = OPTIONS[key]
        raise OptionError(f"'{name}' is {base} at certain options.", f"Use: {base} {options}")
    if key in NOT_TRAINED and key not in names:
        what, use = NOT_TRAINED[key]
        raise OptionError(f"'{name}' {what}.", f"Use: {use}")
    if key not in names:
        listed = [*entries, *(a for entry in entries.values() for a in entry.get("aliases", ()))]
        raise OptionError(f"There is no method '{name}'.", nearest(name, listed))
    return names[key], entries[names[key]]


def _load(id: str) -> Header:
    entry = _index().get(id)
    if entry is None:
        return _checked(id, _entry_points()[id].load())
    module = importlib.import_module(f"polyalign.methods.{entry['family']}")
    from polyalign.recipe import REGISTRY

    return _checked(f"{module.__name__}:{id}", REGISTRY[id])


def _from_file(name: str) -> Header:
    where, _, attribute = name.rpartition(":")
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise OptionError(f"There is no file {where}.", "Give FILE.py:function, relative to here.")
    label = f"polyalign_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(label, path)
    if spec is None or spec.loader is None:
        raise OptionError(f"{where} is not a Python file.", "Give FILE.py:function.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module
    try:
        spec.loader.exec_module(module)
    except OptionError:
        raise
    except Exception as error:
        raise OptionError(
            f"{where} could not be loaded: {type(error).__name__}: {error}.",
            "Run it with python to see where.",
        ) from error
    if not hasattr(module, attribute):
        raise OptionError(
            f"{where} has no '{attribute}'.",
            nearest(attribute, [n for n in vars(module) if n[0] != "_"]),
        )
    return _checked(name, getattr(module, attribute))


def _checked(name: str, found: Any) -> Header:
    from polyalign.recipe import Header

    if not isinstance(found, Header):
        raise OptionError(
            f"{name} is a {type(found).__name__} and no method.",
            "Decorate it with @polyalign.method(...).",
        )
    return found
