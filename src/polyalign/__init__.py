"""polyalign: turn feedback into a better policy.

Importing it loads nothing heavy; each public name brings what it needs on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "PolyalignError": "polyalign.errors:PolyalignError",
    "catalogue": "polyalign.methods:catalogue",
    "check": "polyalign.feedback:check",
    "evaluate": "polyalign.api:evaluate",
    "method": "polyalign.recipe:method",
    "objective": "polyalign.methods.numeric:objective",
    "read": "polyalign.feedback:read",
    "sample": "polyalign.api:sample",
    "train": "polyalign.api:train",
}
"""Where each public name lives, as ``module:attribute``. None may be named like a room: importing
the room would put the module in its place."""

__all__ = [
    "PolyalignError",
    "__version__",
    "catalogue",
    "check",
    "evaluate",
    "method",
    "objective",
    "read",
    "sample",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name].split(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
