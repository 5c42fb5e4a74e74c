"""What tests of TRL's configurations share."""

from __future__ import annotations

from polyalign.methods.trl import Imported, import_config


def note(imported: Imported, flag: str):
    """What was said of a flag, once."""
    found = [note for note in imported.notes if note.flag == flag]
    assert len(found) == 1, found
    return found[0]


def dpo(**flags):
    return import_config(flags, trainer="dpo")


def grpo(**flags):
    return import_config(flags, trainer="grpo")
