"""Random numbers that objectives read, one for each step of a row.

They are functions of the row and of what the caller names (seed, epoch): policy and references,
micro-batches, processes and a resumed run all see the same ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from polyalign.feedback.units import seed_of
from polyalign.types import Batch, Needs, Rows


def length(rows: Rows, i: int) -> int:
    """Steps of row ``i`` up to its last own one."""
    used = rows.mask[i].nonzero()
    return int(used.max()) + 1 if len(used) else 0


def identities(rows: Rows) -> list[str]:
    """A hash of each row's context, steps and mask, independent of padding."""
    contexts = [hashlib.sha1(repr(_plain(context)).encode()).digest() for context in rows.contexts]
    out = []
    for i in range(len(rows)):
        t = length(rows, i)
        digest = hashlib.sha1(contexts[int(rows.context[i])])
        digest.update(rows.steps[i, :t].cpu().numpy().tobytes())
        digest.update(rows.mask[i, :t].cpu().numpy().tobytes())
        out.append(digest.hexdigest())
    return out


def _plain(context: object) -> object:
    return context.tolist() if isinstance(context, Tensor) else context


def draw(batch: Batch, needs: Needs, *parts: object) -> Batch:
    """The batch with ``needs.draws``: uniform numbers in [0, 1), [N, T], a function of
    (``parts``, name, row) alone.
    """
    if not needs.draws:
        return batch
    names = identities(batch.rows)
    drawn = dict(batch.draws)
    for draws in sorted(needs.draws):
        values = torch.zeros(batch.rows.mask.shape, dtype=torch.float64)
        for i, row in enumerate(names):
            t = length(batch.rows, i)
            generator = torch.Generator().manual_seed(seed_of(*parts, "draw", draws, row))
            values[i, :t] = torch.rand(t, generator=generator, dtype=torch.float64)
        drawn[draws] = values
    return replace(batch, draws=drawn)
