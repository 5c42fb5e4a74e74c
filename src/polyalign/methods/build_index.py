"""Write ``index.json``, from which ``methods`` and shell completion read: no torch needed then.

Run ``python -m polyalign.methods.build_index`` after changing a declaration.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import polyalign.methods
from polyalign.methods.array_names import told
from polyalign.methods.numeric import imitated_by
from polyalign.methods.taxonomy import describe
from polyalign.recipe import REGISTRY, Declaration, Header, Update, kind_name
from polyalign.types import Needs

NO_DECLARATIONS = {"arrays", "build_index", "lists", "numeric", "taxonomy", "transitions"}
INDEX = Path(__file__).with_name("index.json")


def declarations() -> dict[str, Declaration]:
    """Every method of this package that trains by id, in the order of ids."""
    return {id: d for id, d in headers().items() if isinstance(d, Declaration)}


def headers() -> dict[str, Header]:
    """Every method of this package by id, of all kinds, in the order of ids."""
    names = [m.name for m in pkgutil.iter_modules(polyalign.methods.__path__) if not m.ispkg]
    for name in names:
        if name not in NO_DECLARATIONS:
            importlib.import_module(f"polyalign.methods.{name}")
    own = {
        id: d for id, d in REGISTRY.items() if d.make.__module__.startswith("polyalign.methods.")
    }
    return dict(sorted(own.items()))


def entry(declared: Header) -> dict[str, Any]:
    """One method's entry: plain JSON."""
    hints = declared.hints()
    return {
        "title": declared.title,
        "arxiv": declared.arxiv,
        "aliases": list(declared.aliases),
        "tags": list(declared.tags),
        "feedback": kind_name(declared.feedback),
        "family": declared.family,
        "kind": declared.kind,
        "hyper": {
            name: {"default": _plain(parameter.default), **TypeAdapter(hints[name]).json_schema()}
            for name, parameter in declared.schema.items()
        },
        "doc": declared.doc,
        "taxonomy": describe(declared),
        **(_trained(declared) if isinstance(declared, Declaration) else {}),
    }


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default


def _trained(declared: Declaration) -> dict[str, Any]:
    """What an entry says of training: needs of all stages together, and their number."""
    stages = declared().stages
    total = _needs(update for stage in stages for update in stage.updates)
    first = stages[0].updates
    return {
        "needs": {
            **{
                name: sorted(getattr(total, name))
                for name in ("roles", "references", "signals", "fields", "modules", "statistics")
            },
            "old": total.old,
            "couples": total.couples,
        },
        "stages": len(stages),
        "arrays": [list(row) for row in told(_needs(first), imitated_by(first))],
    }


def _needs(updates: Iterable[Update]) -> Needs:
    """What several updates' losses need together."""
    total = Needs()
    for update in updates:
        total = total | update.objective.needs
    return total


def text() -> str:
    """The whole index as it should stand in the file."""
    index = {id: entry(declared) for id, declared in headers().items()}
    return json.dumps(index, indent=1, ensure_ascii=False, sort_keys=False) + "\n"


if __name__ == "__main__":
    INDEX.write_text(text(), encoding="utf-8")
    print(f"{len(headers())} methods in {INDEX}")
