"""A step's batch in micro-batches, by the places that are computed."""

from __future__ import annotations

import torch
from torch import Tensor

from polyalign.types import Batch


def cut(batch: Batch, budget: int | None) -> list[Tensor]:
    """Units in the fewest micro-batches of at most ``budget`` decisions each, of like size.

    A decision is a place to compute: a context counts once for all units of a micro-batch that
    share it, and such units stay together. A unit larger than the budget stands alone. None: one
    micro-batch.
    """
    count = len(batch)
    if budget is None or count <= 1:
        return [torch.arange(count)]
    sized: list[tuple[int, list[int]]] = []
    for shared, units in _sharing(batch).items():
        context = sum(_size(batch.rows.contexts[c]) for c in shared)
        size = context
        held: list[int] = []
        for unit, steps in units:
            if held and size + steps > budget:
                sized.append((size, held))
                size, held = context, []
            size, held = size + steps, [*held, unit]
        sized.append((size, held))
    sized.sort(key=lambda item: -item[0])
    total = sum(size for size, _ in sized)
    for parts in range(max(-(-total // budget), 1), len(sized) + 1):
        used = [0] * parts
        out: list[list[int]] = [[] for _ in used]
        for size, held in sized:
            least = used.index(min(used))
            used[least] += size
            out[least] += held
        if max(used) <= max(budget, sized[0][0]):
            break
    else:
        out = [held for _, held in sized]
    return [torch.tensor(part) for part in out if part]


def _sharing(batch: Batch) -> dict[tuple[int, ...], list[tuple[int, int]]]:
    """Units, and the steps of their rows, by the contexts that they need."""
    steps = batch.rows.mask.shape[1] - batch.rows.mask.flip(1).int().argmax(1)
    lengths = torch.where(batch.rows.mask.any(1), steps, 0).tolist()
    context_of = batch.rows.context.tolist()
    members = [index.reshape(len(batch), -1).tolist() for index in batch.roles.values()]
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for unit in range(len(batch)):
        rows = {i for role in members for i in role[unit] if i >= 0}
        contexts = tuple(sorted({context_of[i] for i in rows}))
        found.setdefault(contexts, []).append((unit, sum(lengths[i] for i in rows)))
    return found


def _size(context: object) -> int:
    return len(context) if isinstance(context, tuple) else 1


def decisions(part: Batch) -> int:
    """Places that a micro-batch computes: each context once, and its rows' own steps."""
    return sum(_size(context) for context in part.rows.contexts) + int(part.rows.mask.sum())
