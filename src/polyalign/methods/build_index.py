"""Write ``index.json``, from which ``methods`` and shell completion read: no torch needed then.

Run ``python -m polyalign.methods.build_index`` after changing a declaration.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import polyalign.methods
from polyalign.recipe import REGISTRY, Declaration, kind_name
from polyalign.types import Needs

NO_DECLARATIONS = {"arrays", "build_index", "lists", "numeric", "taxonomy", "transitions"}
INDEX = Path(__file__).with_name("index.json")


def declarations() -> dict[str, Declaration]:
    """Every declaration of this package by id, in the order of ids."""
    names = [m.name for m in pkgutil.iter_modules(polyalign.methods.__path__) if not m.ispkg]
    for name in names:
        if name not in NO_DECLARATIONS:
            importlib.import_module(f"polyalign.methods.{name}")
    own = {
        id: d for id, d in REGISTRY.items() if d.make.__module__.startswith("polyalign.methods.")
    }
    return dict(sorted(own.items()))


def entry(declared: Declaration) -> dict[str, Any]:
    """One method's entry: plain JSON."""
    hints = declared.hints()
    method = declared()
    total = Needs()
    for stage in method.stages:
        for update in stage.updates:
            total = total | update.objective.needs
    return {
        "title": declared.title,
        "arxiv": declared.arxiv,
        "aliases": list(declared.aliases),
        "tags": list(declared.tags),
        "feedback": kind_name(declared.feedback),
        "family": declared.family,
        "verb": "train",
        "hyper": {
            name: {"default": parameter.default, **TypeAdapter(hints[name]).json_schema()}
            for name, parameter in declared.schema.items()
        },
        "doc": declared.doc,
        "needs": {
            **{
                name: sorted(getattr(total, name))
                for name in ("roles", "references", "signals", "fields", "modules", "statistics")
            },
            "old": total.old,
            "couples": total.couples,
        },
        "stages": len(method.stages),
    }


def text() -> str:
    """The whole index as it should stand in the file."""
    index = {id: entry(declared) for id, declared in declarations().items()}
    return json.dumps(index, indent=1, ensure_ascii=False, sort_keys=False) + "\n"


if __name__ == "__main__":
    INDEX.write_text(text(), encoding="utf-8")
    print(f"{len(declarations())} methods in {INDEX}")
