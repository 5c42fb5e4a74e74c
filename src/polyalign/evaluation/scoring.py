"""Scoring many rows: batches of similar length, without gradient, in the order given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from polyalign.protocols import Policy
from polyalign.types import Row, Rows

Progress = Callable[[str, int, int], None]
"""Told (what, done, total) after each batch."""

BUDGET = 8192
"""Decisions (context and steps, padding included) in one batch."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def batches(rows: Sequence[Row], budget: int = BUDGET) -> list[list[int]]:
    """Indices of rows, the longest first, rows of one context together.

    Longest first, so that what does not fit into memory fails at once; together, so that a policy
    may compute a shared context once.
    """
    groups: dict[object, list[int]] = {}
    for i, row in enumerate(rows):
        key = id(row.context) if isinstance(row.context, Tensor) else row.context
        groups.setdefault(key, []).append(i)
    size = {key: max(rows[i].cost for i in group) for key, group in groups.items()}
    order = sorted(groups, key=lambda key: (-size[key], groups[key][0]))
    out: list[list[int]] = []
    width = 0
    for key in order:
        for i in groups[key]:
            if out and width * (len(out[-1]) + 1) <= budget:
                out[-1].append(i)
            else:
                out.append([i])
                width = size[key]
    return out


@torch.no_grad()
def log_probabilities(
    policy: Policy,
    rows: Sequence[Row],
    *,
    budget: int = BUDGET,
    progress: Progress = silent,
    what: str = "scoring",
) -> list[Tensor]:
    """Log-probabilities of each row's own steps, float64 [T of the row], in the rows' order."""
    out: dict[int, Tensor] = {}
    progress(what, 0, len(rows))
    for part in batches(rows, budget):
        collated = Rows.collate([rows[i] for i in part])
        logp = policy.score(collated).logp.double().cpu()
        for at, i in enumerate(part):
            out[i] = logp[at, : rows[i].mask.shape[0]][rows[i].mask.cpu()]
        progress(what, len(out), len(rows))
    return [out[i] for i in range(len(rows))]
