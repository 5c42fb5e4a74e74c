"""Feedback: reading, checking, splitting, converting and pairing what people said.

Nothing here knows a model. Names are loaded when first used, so importing this is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from polyalign.feedback.records import (
    KINDS,
    Binary,
    Demonstration,
    Message,
    Pair,
    Payload,
    Prompt,
    Quadruple,
    Record,
    Scored,
    Steps,
    Votes,
    kind_name,
)

if TYPE_CHECKING:
    from polyalign.feedback.reading import read
    from polyalign.feedback.rowstore import Reject
    from polyalign.feedback.table import FeedbackSet

_HOMES = {
    "FeedbackSet": "table",
    "Reject": "rowstore",
    "read": "reading",
}

__all__ = [
    "KINDS",
    "Binary",
    "Demonstration",
    "FeedbackSet",
    "Message",
    "Pair",
    "Payload",
    "Prompt",
    "Quadruple",
    "Record",
    "Reject",
    "Scored",
    "Steps",
    "Votes",
    "kind_name",
    "read",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"polyalign.feedback.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
