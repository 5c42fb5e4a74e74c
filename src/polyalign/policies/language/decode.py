"""Decoding many rows at once, each context's keys and values kept once for all its rows.

A row attends to its context and to its own steps. The context's part is one product for all rows
of a context, the own part one for each row, and the two are merged by their log-sum-exp. Rows that
have ended leave, others come in their place. The function is registered with `transformers`'
attention interface and used only while rows are decoded; the first use with a model compares it
to the model's own forward pass, and where they differ the model's own cache is used instead.

Axes: R rows being decoded, C contexts, K rows of a context (the most), H key heads, G query heads
a key head, S places of a context, T own steps, D features of a head.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from polyalign.policies.language.own_cache import recurrent
from polyalign.policies.language.trunk import Trunk

log = logging.getLogger(__name__)

NAME = "polyalign_decode"
"""Under which the function is registered with `transformers`."""
PLACES = 4096
"""Places of contexts computed in one pass."""
WASTE = 0.25
"""The share of padding that contexts computed together may have."""


class Prefix:
    """The keys and values of contexts that were computed together, [C, H, S, D] a layer."""

    def __init__(self, trunk: Trunk, contexts: Sequence[tuple[int, ...]]) -> None:
        self.lengths = torch.tensor([len(c) for c in contexts], device=trunk.device)
        size = max(len(c) for c in contexts)
        ids = torch.tensor([[*c, *[0] * (size - len(c))] for c in contexts], device=trunk.device)
        cache = DynamicCache()
        place = torch.arange(size, device=trunk.device)
        # Padding is on the right, where causal attention never looks.
        sequence = _forward(trunk, ids, place.expand(len(contexts), -1), cache)
        self.states = sequence[torch.arange(len(contexts)), self.lengths - 1]
        self.keys: list[Tensor] = [layer.keys for layer in cache.layers]
        self.values: list[Tensor] = [layer.values for layer in cache.layers]
        self.after = _after(self.lengths, size, self.states.dtype)

    @property
    def place_bytes(self) -> int:
        """Memory of one place of one row."""
        return sum(x[0, :, 0].nbytes for x in (*self.keys, *self.values))

    def keep(self, contexts: Tensor) -> None:
        """Only these contexts from now on."""
        self.keys = [x[contexts] for x in self.keys]
        self.values = [x[contexts] for x in self.values]
        self.lengths = self.lengths[contexts]
        self.after = None if self.after is None else self.after[contexts]


class Rows(Cache):
    """Rows being decoded, at most ``room`` of them and ``steps`` steps each.

    ``home`` holds for each row its prefix and its context's index there; ``count`` [R] the own
    steps whose keys are kept.
    """

    def __init__(self, trunk: Trunk, room: int, steps: int) -> None:
        super().__init__(layers=[])
        self.trunk = trunk
        self.room, self.steps = room, steps
        self.home: list[tuple[Prefix, int]] = []
        self.count = torch.zeros(0, dtype=torch.long, device=trunk.device)
        self.start = self.count
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._layer = 0

    def __len__(self) -> int:
        return len(self.home)

    def add(self, prefix: Prefix, contexts: Sequence[int]) -> None:
        """One more row of each of these contexts (indices into the prefix)."""
        self.home += [(prefix, c) for c in contexts]
        self.count = torch.cat([self.count, self.count.new_zeros(len(contexts))])
        self.start = torch.cat([self.start, prefix.lengths[list(contexts)]])
        self._arrange()

    def keep(self, alive: Tensor) -> Tensor:
        """Drop the rows that are not ``alive`` [R]; where each row that is left stood before.

        The last rows move into the places that come free, so little is copied.
        """
        left = int(alive.sum())
        order = torch.arange(len(alive), device=alive.device)
        holes = order[:left][~alive[:left]]
        moved = order[left:][alive[left:]]
        most = int(self.count[moved].max()) if len(moved) else 0
        if most:
            for buffer in (*self.keys.values(), *self.values.values()):
                buffer[holes, :, :most] = buffer[moved, :, :most]
        order[holes] = moved
        order = order[:left]
        self.home = [self.home[i] for i in order.tolist()]
        self.count, self.start = self.count[order], self.start[order]
        self._arrange()
        return order

    def _arrange(self) -> None:
        """For each prefix the rows of each of its contexts, [C, K], and where each row is found."""
        groups: dict[int, tuple[Prefix, list[list[int]]]] = {}
        for row, (prefix, c) in enumerate(self.home):
            rows = groups.setdefault(id(prefix), (prefix, [[] for _ in prefix.lengths]))[1]
            rows[c].append(row)
        for prefix, rows in groups.values():
            used = [c for c, members in enumerate(rows) if members]
            if len(used) <= len(rows) / 2:
                prefix.keep(torch.tensor(used, device=self.count.device))
                rows[:] = [rows[c] for c in used]
                for c, members in enumerate(rows):
                    for row in members:
                        self.home[row] = (prefix, c)
        place = [0] * len(self.home)
        self.groups: list[tuple[Prefix, Tensor]] = []
        at = 0
        for prefix, rows in groups.values():
            most = max(len(members) for members in rows)
            for c, members in enumerate(rows):
                for k, row in enumerate(members):
                    place[row] = at + c * most + k
            table = [members + [0] * (most - len(members)) for members in rows]
            self.groups.append((prefix, torch.tensor(table, device=self.count.device)))
            at += len(rows) * most
        self.place = torch.tensor(place, device=self.count.device)

    def forward(self, tokens: Tensor) -> Tensor:
        """The states [R, ...] after one more token [R] of each row (or its logits)."""
        self.at = self.count.clamp(max=self.steps - 1)
        self.longest = int(self.at.max()) + 1
        self.even = bool((self.at == self.longest - 1).all())
        self.after: Tensor | None = None
        with _decoding(self.trunk.config, self):
            sequence = _forward(
                self.trunk, tokens.unsqueeze(1), (self.start + self.at).unsqueeze(1), self
            )
        self.count = self.at + 1
        return sequence[:, -1]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values [R, H, 1, D] of a layer; its attention finds them here."""
        for kept, new in ((self.keys, key_states), (self.values, value_states)):
            if layer_idx not in kept:
                # Zeros: what lies behind a row's steps weighs nothing, but 0 times NaN is NaN.
                kept[layer_idx] = new.new_zeros(self.room, new.shape[1], self.steps, new.shape[3])
            if self.even:
                kept[layer_idx][: len(new), :, self.longest - 1] = new[:, :, 0]
            else:
                rows = torch.arange(len(new), device=new.device)
                kept[layer_idx][rows, :, self.at] = new[:, :, 0]
        self._layer = layer_idx
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> int:
        """Places before the new one in the longest row."""
        return int((self.start + self.at).max())

    def attend(self, query: Tensor, scaling: float, softcap: float | None) -> Tensor:
        """What each row's query [R, H * G, 1, D] reads, [R, H * G, D]."""
        n, layer, longest = len(query), self._layer, self.longest
        keys = self.keys[layer][:n, :, :longest]
        values = self.values[layer][:n, :, :longest]
        if not self.even and self.after is None:
            self.after = _after(self.at + 1, longest, query.dtype)
        query = (query * scaling).view(n, keys.shape[1], -1, query.shape[-1])
        own = _part(query, keys, values, self.after, softcap)
        found = []
        for prefix, rows in self.groups:
            c, k = rows.shape
            mine = query[rows.flatten()].unflatten(0, (c, k)).transpose(1, 2).flatten(2, 3)
            parts = _part(mine, prefix.keys[layer], prefix.values[layer], prefix.after, softcap)
            found.append([x.unflatten(2, (k, -1)).transpose(1, 2).flatten(0, 1) for x in parts])
        context = [torch.cat(column)[self.place] for column in zip(*found)]
        return _merge(own, (context[0], context[1], context[2])).flatten(1, 2)


def _after(lengths: Tensor, size: int, dtype: torch.dtype) -> Tensor | None:
    """-inf on the places behind each length, [B, 1, 1, S]; None where there are none."""
    behind = torch.arange(size, device=lengths.device) >= lengths.unsqueeze(1)
    if not bool(behind.any()):
        return None
    wide = torch.promote_types(dtype, torch.float32)
    none = torch.zeros(behind.shape, dtype=wide, device=lengths.device)
    return none.masked_fill_(behind, -torch.inf)[:, None, None]


def _part(
    query: Tensor, keys: Tensor, values: Tensor, after: Tensor | None, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum [.., M, D], total weight and largest score [.., M, 1] of queries [.., M, D]."""
    score = query @ keys.transpose(-1, -2)
    score = score.to(torch.promote_types(score.dtype, torch.float32))
    if softcap is not None:
        score = torch.tanh(score / softcap) * softcap
    if after is not None:
        score = score + after
    top = score.amax(-1, keepdim=True)
    weight = score.sub_(top).exp_()
    return (weight.to(values.dtype) @ values).to(weight.dtype), weight.sum(-1, keepdim=True), top


def _merge(one: tuple[Tensor, Tensor, Tensor], two: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    top = torch.maximum(one[2], two[2])
    first, second = (one[2] - top).exp_(), (two[2] - top).exp_()
    return (one[0] * first + two[0] * second) / (one[1] * first + two[1] * second)


_rows: ContextVar[Rows | None] = ContextVar("decoding", default=None)


@contextlib.contextmanager
def _decoding(config: Any, rows: Rows) -> Iterator[None]:
    """Within, models of this configuration attend as the rows say."""
    from transformers import AttentionInterface

    if NAME not in AttentionInterface._global_mapping:
        AttentionInterface.register(NAME, _attend)
    before, token = config._attn_implementation, _rows.set(rows)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _rows.reset(token)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What `transformers` calls: query [R, H * G, 1, D] to [R, 1, H * G, D]."""
    rows = _rows.get()
    wrong = [name for name in ("s_aux", "sinks", "position_bias") if more.get(name) is not None]
    if rows is None or wrong or more.get("is_causal") is False or query.shape[2] != 1:
        raise ValueError(f"decoding does not know {', '.join(wrong) or 'this attention'}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = rows.attend(query, scaling, softcap)
    return found.to(value.dtype).unsqueeze(1), None


def _forward(trunk: Trunk, ids: Tensor, positions: Tensor, cache: Any) -> Tensor:
    """The states [B, S, H] of tokens [B, S], or their logits where the head is not known."""
    module = trunk.model.base_model if trunk.splits else trunk.model
    # A mask of ones: nothing is hidden, and the model makes none of its own.
    mask = torch.ones(len(ids), cache.get_seq_length() + ids.shape[1], device=ids.device)
    arguments = {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions}
    out = trunk.call(module, arguments, past_key_values=cache, use_cache=True)
    sequence: Tensor = out.last_hidden_state if trunk.splits else out.logits
    return sequence


_checked: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def place_bytes(trunk: Trunk, longest: int) -> int:
    """The memory of one place of one row, or 0 where rows cannot be decoded here exactly.

    Compared once a model with its own forward pass, on a few tokens. ``longest`` is the number of
    places of the longest row.
    """
    window = getattr(trunk.config, "sliding_window", None)
    if (window is not None and longest > window) or recurrent(trunk.config):
        return 0
    if trunk.model not in _checked:
        _checked[trunk.model] = _check(trunk)
    return _checked[trunk.model]


@torch.no_grad()
def _check(trunk: Trunk) -> int:
    name = type(trunk.model).__name__
    dtype = trunk.dtype
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 0.15
    made = torch.Generator().manual_seed(0)
    ids = torch.randint(0, trunk.config.vocab_size, (15,), generator=made).tolist()
    contexts, steps = (tuple(ids[:6]), tuple(ids[6:9])), (ids[9:11], ids[11:13], ids[13:15])
    at = (0, 1, 1)
    head = trunk.head.wide()

    def law(states: Tensor) -> Tensor:
        return head(states).log_softmax(-1)

    try:
        prefix = Prefix(trunk, contexts)
        rows = Rows(trunk, len(at), 2)
        found = [prefix.states[list(at)]]
        rows.add(prefix, at)
        found += [
            rows.forward(torch.tensor([s[t] for s in steps]).to(trunk.device)) for t in (0, 1)
        ]
        gap = 0.0
        for row, (c, own) in enumerate(zip(at, steps)):
            whole = torch.tensor([[*contexts[c], *own]], device=trunk.device)
            place = torch.arange(whole.shape[1], device=trunk.device).unsqueeze(0)
            right = _forward(trunk, whole, place, DynamicCache())[0, -3:]
            mine = torch.stack([states[row] for states in found])
            gap = max(gap, float((law(mine) - law(right)).abs().max()))
    except Exception as error:  # whatever a foreign forward pass raises
        brief = (str(error).splitlines() or [type(error).__name__])[0]
        log.info("%s: sampled with its own cache, as contexts cannot be shared (%s).", name, brief)
        return 0
    if not gap <= tolerance:
        log.info("%s: sampled with its own cache, as shared contexts differ by %.1e.", name, gap)
        return 0
    return prefix.place_bytes
