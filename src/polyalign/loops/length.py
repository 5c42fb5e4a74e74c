"""How many optimizer steps a stage takes: one rule, for loops and for plans."""

from __future__ import annotations

import math

from polyalign.loops.session import Settings
from polyalign.recipe import Stage


def per_epoch(stage: Stage, records: int, settings: Settings) -> int:
    """Optimizer batches (or rollouts) in one pass over the records or prompts."""
    source = stage.streams["data"]
    size = settings.batch
    if source.kind == "rollouts":
        size = max(1, settings.batch // int(source.options["n"]))
    return math.ceil(records / size)


def steps_of(stage: Stage, records: int, settings: Settings) -> int:
    """Optimizer steps of a stage; every pass ends with a smaller step if need be."""
    if stage.streams["data"].kind == "environment":
        return settings.max_steps or 0
    passes = 1
    if stage.streams["data"].kind == "rollouts":
        passes = max(update.epochs for update in stage.updates)
    epochs = settings.epochs * stage.share
    steps = passes * max(1, math.ceil(per_epoch(stage, records, settings) * epochs - 1e-9))
    return steps if settings.max_steps is None else min(steps, settings.max_steps)
