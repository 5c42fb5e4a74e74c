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
    from polyalign.feedback.checks import check
    from polyalign.feedback.conversion import AUTOMATIC, convert
    from polyalign.feedback.fixing import Fixed, fix
    from polyalign.feedback.pairing import RULES, pair
    from polyalign.feedback.reading import read
    from polyalign.feedback.report import CheckReport, Finding
    from polyalign.feedback.rowstore import Reject
    from polyalign.feedback.splitting import split
    from polyalign.feedback.statistics import Stats, agreement, length_bias, stats
    from polyalign.feedback.table import FeedbackSet
    from polyalign.feedback.writing import own_rows, to_trl, write, write_rejects

_HOMES = {
    "AUTOMATIC": "conversion",
    "CheckReport": "report",
    "FeedbackSet": "table",
    "Finding": "report",
    "Fixed": "fixing",
    "RULES": "pairing",
    "Reject": "rowstore",
    "Stats": "statistics",
    "agreement": "statistics",
    "check": "checks",
    "convert": "conversion",
    "fix": "fixing",
    "length_bias": "statistics",
    "own_rows": "writing",
    "pair": "pairing",
    "read": "reading",
    "split": "splitting",
    "stats": "statistics",
    "to_trl": "writing",
    "write": "writing",
    "write_rejects": "writing",
}

__all__ = [
    "AUTOMATIC",
    "KINDS",
    "RULES",
    "Binary",
    "CheckReport",
    "Demonstration",
    "FeedbackSet",
    "Finding",
    "Fixed",
    "Message",
    "Pair",
    "Payload",
    "Prompt",
    "Quadruple",
    "Record",
    "Reject",
    "Scored",
    "Stats",
    "Steps",
    "Votes",
    "agreement",
    "check",
    "convert",
    "fix",
    "kind_name",
    "length_bias",
    "own_rows",
    "pair",
    "read",
    "split",
    "stats",
    "to_trl",
    "write",
    "write_rejects",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"polyalign.feedback.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
