"""How rows are laid out for one forward pass of the model.

"plain" gives every row its own sequence. "shared" lays rows of one context out as one sequence,
``[context, completion 1, completion 2, ...]``, in which each completion sees the context and
itself, and positions restart after the context: the context is computed once. "packed" puts such
groups behind one another into one sequence, without any padding; see
:mod:`~polyalign.policies.language.attention`.

Axes: N rows, T steps, G sequences, S places of a sequence, M own steps of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyalign.policies.language.attention import Group, Packed
from polyalign.types import Rows

Kind = Literal["plain", "shared", "packed"]
_PAD = -1


@dataclass(frozen=True)
class Laid:
    """Sequences for one forward pass.

    ``ids``, ``positions`` [G, S]; ``block`` [G, S] is 0 on a context, k on its k-th completion,
    -1 on padding; ``where`` [M] is the place in the flattened [G * S] whose state predicts each own
    step, in the order of ``own`` [M], indices into the flattened [N * T]. ``row`` says what lies
    in a packed sequence.
    """

    ids: Tensor
    positions: Tensor
    block: Tensor
    where: Tensor
    own: Tensor
    kind: Kind
    row: Packed | None = None

    def to(self, device: torch.device) -> Laid:
        """The same on another device."""
        return Laid(
            self.ids.to(device),
            self.positions.to(device),
            self.block.to(device),
            self.where.to(device),
            self.own.to(device),
            self.kind,
            self.row,
        )

    def sees(self, window: int | None = None) -> Tensor:
        """Which place attends to which, [G, 1, S, S]; ``window`` bounds how far back."""
        query, key = self.block.unsqueeze(2), self.block.unsqueeze(1)
        size = self.ids.shape[1]
        order = torch.arange(size, device=self.ids.device)
        before = order.unsqueeze(1) >= order.unsqueeze(0)
        sees = before & ((key == query) | (key == 0))
        if window is not None:
            sees = sees & (self.positions.unsqueeze(2) - self.positions.unsqueeze(1) < window)
        # Padding looks at itself: a query without any key would give NaN.
        return (sees | torch.eye(size, dtype=torch.bool, device=sees.device)).unsqueeze(1)


def lay(rows: Rows, kind: Kind, index: Sequence[int] | None = None) -> Laid:
    """Lay out the rows at ``index`` (default all).

    A row's last own step is not laid out: nothing is predicted from it.
    """
    n_rows, t = rows.mask.shape
    chosen = range(n_rows) if index is None else index
    mask = rows.mask.cpu()
    steps = rows.steps.cpu()
    context_of = rows.context.tolist()
    members: dict[int, list[int]] = {}
    for i in chosen:
        members.setdefault(i if kind == "plain" else context_of[i], []).append(i)
    ids: list[list[int]] = []
    positions: list[list[int]] = []
    block: list[list[int]] = []
    groups: list[Group] = []
    where: list[tuple[int, Tensor]] = []
    own: list[Tensor] = []
    begin = 0
    for g, inside in enumerate(members.values()):
        context = list(rows.contexts[context_of[inside[0]]])
        n = len(context)
        seq, pos, blk = list(context), list(range(n)), [0] * n
        lengths = []
        for k, i in enumerate(inside, 1):
            mine = mask[i].nonzero().flatten()
            if len(mine) == 0:
                continue
            laid = int(mine[-1])
            start = len(seq)
            seq += steps[i, :laid].tolist()
            pos += range(n, n + laid)
            blk += [k] * laid
            lengths.append(laid)
            # Step 0 is predicted at the context's last place, step t at the place of step t - 1.
            where.append((g, torch.where(mine == 0, n - 1, start + mine - 1)))
            own.append(i * t + mine)
        ids.append(seq)
        positions.append(pos)
        block.append(blk)
        groups.append(Group(begin, n, tuple(length for length in lengths if length)))
        begin += len(seq)
    packed = kind == "packed"
    if packed:
        ids, positions, block = (_joined(lists) for lists in (ids, positions, block))
    size = max((len(seq) for seq in ids), default=0)
    first = [group.start if packed else g * size for g, group in enumerate(groups)]
    empty = torch.zeros(0, dtype=torch.long)
    return Laid(
        _pad(ids, size, 0),
        _pad(positions, size, 0),
        _pad(block, size, _PAD),
        torch.cat([first[g] + place for g, place in where]) if where else empty,
        torch.cat(own) if own else empty,
        kind,
        Packed(tuple(groups)) if packed else None,
    )


def _joined(lists: list[list[int]]) -> list[list[int]]:
    return [[x for one in lists for x in one]]


def _pad(lists: list[list[int]], size: int, value: int) -> Tensor:
    return torch.tensor([x + [value] * (size - len(x)) for x in lists], dtype=torch.long).reshape(
        len(lists), size
    )


def passes(rows: Rows, kind: Kind, waste: float = 0.1, most: int = 8192) -> list[list[int]]:
    """Rows cut into forward passes of at most ``most`` places, unless one sequence is longer.

    Rows of one context stay together but under "plain". Padding is at most the share ``waste`` of
    a pass's places; "packed" has none.
    """
    last = rows.mask * torch.arange(1, rows.mask.shape[1] + 1, device=rows.mask.device)
    if rows.mask.shape[1] == 0:
        return []
    lengths = (last.max(-1).values - 1).clamp(min=0).tolist()
    owns = rows.mask.any(-1).tolist()
    members: dict[int, list[int]] = {}
    for i, c in enumerate(rows.context.tolist()):
        members.setdefault(i if kind == "plain" else c, []).append(i)
    sized = []
    for group in members.values():
        context = len(rows.contexts[int(rows.context[group[0]])])
        if any(owns[i] for i in group):
            sized.append((context + sum(int(lengths[i]) for i in group), group))
    sized.sort(key=lambda item: -item[0])
    if kind == "packed":
        return _evenly(sized, most)
    out: list[list[int]] = []
    longest = used = count = 0
    for size, group in sized:
        places = longest * (count + 1)
        if out and places <= most and places - (used + size) <= waste * places:
            out[-1] += group
            used, count = used + size, count + 1
        else:
            out.append(list(group))
            longest, used, count = size, size, 1
    return out


def _evenly(sized: list[tuple[int, list[int]]], most: int) -> list[list[int]]:
    """Groups, longest first, each into the emptiest of the fewest passes that hold them."""
    total = sum(size for size, _ in sized)
    for count in range(max(-(-total // most), 1), len(sized) + 1):
        used = [0] * count
        out: list[list[int]] = [[] for _ in used]
        for size, group in sized:
            k = used.index(min(used))
            used[k] += size
            out[k] += group
        if max(used) <= max(most, sized[0][0]):
            return out
    return [list(group) for _, group in sized]
