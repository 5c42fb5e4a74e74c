"""Decoding with a model's own cache, for models whose contexts cannot be shared by :mod:`decode`.

Three ways, the first that gives the model's own numbers on a few tokens being taken: rows padded on
the left; contexts of equal length together, where padding would enter a recurrent state; and whole
rows computed anew at every step, where a cache cannot be had.

Axes: C contexts, B rows in the batch, S places.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from polyalign.policies.language.growing import growing_cache
from polyalign.policies.language.trunk import Trunk

log = logging.getLogger(__name__)

Way = Literal["padded", "equal", "whole"]
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From rows [B] and their states to a token of each and which of them go on."""


def recurrent(config: Any) -> bool:
    """Whether layers carry a state from place to place instead of keys and values."""
    return any(hasattr(layer, "conv_states") for layer in growing_cache(config).layers)


def batches(contexts: Sequence[tuple[int, ...]], way: Way, most: int) -> Iterator[list[int]]:
    """The contexts' indices, at most ``most`` together: of like length, or of equal length."""
    order = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
    start = 0
    while start < len(order):
        end = min(start + most, len(order))
        if way != "padded":
            size = len(contexts[order[start]])
            while len(contexts[order[end - 1]]) != size:
                end -= 1
        yield order[start:end]
        start = end


class Batch:
    """Rows decoded together, ``n`` of each context."""

    def __init__(
        self, trunk: Trunk, contexts: Sequence[tuple[int, ...]], n: int, rows: Tensor, way: Way
    ) -> None:
        self.trunk, self.way, self.row = trunk, way, rows
        device = trunk.device
        longest = max(len(context) for context in contexts)
        pads = [longest - len(context) for context in contexts]
        # Padding on the left: every row's next token comes at the same place.
        ids = torch.tensor([[0] * p + list(c) for p, c in zip(pads, contexts)], device=device)
        pad = torch.tensor(pads, device=device).unsqueeze(1)
        place = torch.arange(longest, device=device)
        self.mask = (place >= pad).long()
        self.position = (place - pad).clamp(min=0)
        self.ids = ids
        self.cache = None if way == "whole" else growing_cache(trunk.config)
        self.state = self._forward(ids)
        self._keep(torch.arange(len(contexts), device=device).repeat_interleave(n))

    def _forward(self, ids: Tensor) -> Tensor:
        """The state [B, H] after the last of ``ids`` [B, S] (or its logits)."""
        trunk = self.trunk
        arguments: dict[str, Any] = {"input_ids": ids, "position_ids": self.position}
        if self.way == "padded":
            arguments["attention_mask"] = self.mask
        module = trunk.model.base_model if trunk.splits else trunk.model
        more: dict[str, Any] = {}
        if self.cache is not None:
            known = inspect.signature(module.forward).parameters
            name = "cache_params" if "cache_params" in known else "past_key_values"
            more = {name: self.cache, "use_cache": True}
        out = trunk.call(module, arguments, **more)
        sequence: Tensor = out.last_hidden_state if trunk.splits else out.logits
        return sequence[:, -1]

    def take(self, index: Tensor) -> None:
        """Only these rows from now on."""
        self.row = self.row[index]
        self._keep(index)

    def _keep(self, index: Tensor) -> None:
        if self.cache is not None:
            self.cache.reorder_cache(index)
        self.state, self.mask, self.ids = self.state[index], self.mask[index], self.ids[index]
        self.position = self.position[index]

    def forward(self, token: Tensor) -> None:
        """One more token [B] of each row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], 1)
        self.position = self.position[:, -1:] + 1
        ids = token.unsqueeze(1)
        if self.cache is None:
            ids = self.ids = torch.cat([self.ids, ids], 1)
            self.position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        self.state = self._forward(ids)

    def run(self, step: Step) -> None:
        """Draw from ``step`` until no row goes on; rows that have ended leave now and then."""
        while True:
            token, runs = step(self.row, self.state)
            left = int(runs.sum())
            if left == 0:
                return
            if left <= 0.75 * len(self.row):
                keep = runs.nonzero().flatten()
                self.take(keep)
                token = token[keep]
            self.forward(token)


_ways: WeakKeyDictionary[Any, Way] = WeakKeyDictionary()


def way_of(trunk: Trunk) -> Way:
    """How this model is decoded; found out once, and the log says why it is not padded rows."""
    if trunk.model not in _ways:
        _ways[trunk.model] = _first(trunk)
    return _ways[trunk.model]


def _first(trunk: Trunk) -> Way:
    name = type(trunk.model).__name__
    tolerance = 1e-4 if trunk.dtype in (torch.float32, torch.float64) else 0.15
    ways: tuple[Way, ...] = ("padded", "equal")
    if recurrent(trunk.config):
        log.info(
            "%s: sampled with its own states, contexts of equal length together, as its layers "
            "are recurrent.",
            name,
        )
        ways = ("equal",)
    for way in ways:
        try:
            gap = _gap(trunk, way)
        except Exception as error:  # whatever a foreign forward pass raises
            brief = (str(error).splitlines() or [type(error).__name__])[0]
            log.info("%s: %s rows cannot be decoded (%s).", name, way, brief)
            continue
        if gap <= tolerance:
            return way
        log.info("%s: %s rows that are decoded differ by %.1e.", name, way, gap)
    log.info("%s: sampled without a cache, every step from whole rows.", name)
    return "whole"


@torch.no_grad()
def _gap(trunk: Trunk, way: Way) -> float:
    """The largest difference to laws [V] from whole rows, over two steps, a row leaving between."""
    made = torch.Generator().manual_seed(0)
    ids = torch.randint(0, trunk.config.vocab_size, (19,), generator=made).tolist()
    contexts = (tuple(ids[:6]), tuple(ids[6 : 9 if way == "padded" else 12]))
    steps = torch.tensor([ids[12:14], ids[14:16], ids[16:18], ids[17:19]], device=trunk.device)
    batch = Batch(trunk, contexts, 2, torch.arange(4, device=trunk.device), way)
    found = [(batch.row, batch.state)]
    batch.forward(steps[:, 0])
    batch.take(torch.tensor([0, 2, 3], device=trunk.device))
    found.append((batch.row, batch.state))
    batch.forward(steps[batch.row, 1])
    found.append((batch.row, batch.state))
    head, gap = trunk.head.wide(), 0.0
    for t, (rows, states) in enumerate(found):
        for row, state in zip(rows.tolist(), states):
            whole = (*contexts[row // 2], *steps[row, :t].tolist())
            right = Batch(trunk, (whole,), 1, rows[:1], "whole").state
            laws = (head(x).log_softmax(-1) for x in (state, right[0]))
            gap = max(gap, float((next(laws) - next(laws)).abs().max()))
    return gap
