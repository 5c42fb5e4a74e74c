"""Reference log-probabilities that need computing once only.

A value belongs to (weights, encoded row): the cache is made for one frozen reference, and a row is
known by a hash of its context, steps and mask. Moving references must not use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from polyalign.engine import sharding
from polyalign.feedback.draws import identities, length
from polyalign.protocols import Policy
from polyalign.types import Batch


class Cache:
    """Per-step log-probabilities of one frozen reference, by row."""

    def __init__(self, reference: Policy) -> None:
        self.reference = reference
        self.rows: dict[str, Tensor] = {}

    def fill(
        self, batch: Batch, cut: Callable[[Batch], list[Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """[N, T] for the batch's rows, and the rows that were computed for it now.

        Rows that are missing are scored in the micro-batches that ``cut`` makes of the whole batch,
        so that what is computed does not depend on what was known.
        """
        names = identities(batch.rows)
        new: dict[str, Tensor] = {}
        parts = cut(batch) if any(name not in self.rows for name in names) else []
        if sharding.in_lockstep(self.reference):
            parts += [torch.tensor([0])] * sharding.missing(parts)
        if parts:
            for units in parts:
                part = batch.take(units)
                with torch.no_grad():
                    logp = self.reference.score(part.rows, frozenset(), part.draws).logp.cpu()
                for i, name in enumerate(identities(part.rows)):
                    if name not in self.rows:
                        new[name] = self.rows[name] = logp[i][: length(part.rows, i)].clone()
        first = self.rows[names[0]]
        out = torch.zeros(batch.rows.mask.shape, dtype=first.dtype)
        for i, name in enumerate(names):
            values = self.rows[name]
            out[i, : len(values)] = values
        return out, new

    def restore(self, rows: Mapping[str, Tensor]) -> None:
        """Take rows that an earlier process computed."""
        self.rows.update(rows)
