"""Sampling on the live weights: batched, with a key-value cache.

Each row draws from uniform numbers of its own seed, so what else is in the batch changes nothing
(up to the rounding of matrix products). A context's keys and values are computed and kept once for
all its rows, rows that have ended make room for others, and an adapter is folded into the weights
meanwhile. Models that :mod:`decode` does not compute use :mod:`own_cache`. Where the policy has
another sampler (:mod:`vllm_sampler`), that draws instead.

Axes: C contexts, B rows in the batch, N rows in all, T steps, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyalign.errors import NumericsError, OptionError
from polyalign.policies.language import decode, own_cache
from polyalign.policies.language.fold import folded
from polyalign.policies.language.law import draw
from polyalign.protocols import Rollout, Sampling
from polyalign.types import Row, Rows

if TYPE_CHECKING:
    from polyalign.policies.language.policy import LanguagePolicy

ROWS = {"cpu": 256}
"""Rows decoded at once, by device; elsewhere 512."""
OWN_CACHE_ROWS = {"cpu": 64}
"""The same where the model's own cache is used; elsewhere 256."""
MEMORY = 2 << 30
"""Bytes that the keys and values of the rows' own steps may take."""
TURNOVER = 8
"""Ended rows are replaced or dropped once they are one in so many."""


def generate(
    policy: LanguagePolicy, contexts: Sequence[Any], n: int, how: Sampling, seeds: Sequence[int]
) -> Rollout:
    """``n`` completions of each context payload; ``seeds`` has one number a row, [C * n].

    Raises :class:`OptionError` for a law or a budget that cannot be drawn from, and
    :class:`NumericsError` where the model's logits are not finite.
    """
    _check(how, n, len(contexts), len(seeds))
    template, trunk = policy.template, policy.trunk
    encoded = [template.context(context, room=how.max_steps) for context in contexts]
    drawn = _Drawn(how, seeds, template.stops, policy.device)
    if encoded and policy.sampler is not None:
        drawn.take(policy.sampler.draw(policy, encoded, n, how, seeds))
        drawn.score(policy, encoded, n)
    elif encoded:
        longest = max(len(context) for context in encoded) + how.max_steps
        with torch.no_grad():
            trunk.layout()
            with folded(policy.model):
                place = decode.place_bytes(trunk, longest)
                if place:
                    _shared(policy, encoded, n, drawn, place)
                else:
                    _own_cache(policy, encoded, n, drawn)
    length = drawn.length.tolist()
    made, payloads = [], []
    tokens = drawn.tokens.cpu()
    for i, size in enumerate(length):
        steps = tokens[i, :size].clone()
        made.append(Row(encoded[i // n], steps, torch.ones(size, dtype=torch.bool)))
        payloads.append(template.payload(contexts[i // n], steps.tolist()))
    most = max(length, default=0)
    old, logp = (x[:, :most].cpu().float() for x in (drawn.old, drawn.logp))
    return Rollout(tuple(made), old, logp, drawn.finished.cpu(), tuple(payloads), n)


def _check(how: Sampling, n: int, contexts: int, seeds: int) -> None:
    if how.temperature < 0 or how.temperature != how.temperature:
        raise OptionError(
            f"temperature={how.temperature} is not allowed.", "Use 0 (greedy) or more."
        )
    if not 0 < how.top_p <= 1:
        raise OptionError(f"top_p={how.top_p} is not allowed.", "Use a share above 0, up to 1.")
    if how.top_k < 0:
        raise OptionError(f"top_k={how.top_k} is not allowed.", "Use 0 (all tokens) or more.")
    if how.max_steps < 1 or n < 1:
        raise OptionError(
            f"max_steps={how.max_steps} and n={n} draw nothing.", "Use at least 1 of each."
        )
    if seeds != contexts * n:
        raise OptionError(
            f"{seeds} seeds were given for {contexts} contexts with {n} rows each.",
            "Give one seed a row.",
        )


def _uniform(seed: int, steps: int) -> Tensor:
    made = torch.Generator().manual_seed(int(seed) % (1 << 63))
    return torch.rand(steps, generator=made, dtype=torch.float64)


class _Drawn:
    """What each row drew [N, T], and how the next step is drawn."""

    def __init__(
        self, how: Sampling, seeds: Sequence[int], stops: frozenset[int], device: torch.device
    ) -> None:
        self.how = how
        shape = (len(seeds), how.max_steps)
        uniform = [_uniform(seed, how.max_steps) for seed in seeds]
        self.uniform = torch.stack(uniform).to(device) if uniform else torch.zeros(shape)
        self.ends = torch.tensor(sorted(stops), dtype=torch.long, device=device)
        self.tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self.old = torch.zeros(shape, dtype=torch.float64, device=device)
        self.logp = torch.zeros(shape, dtype=torch.float64, device=device)
        self.length = torch.zeros(len(seeds), dtype=torch.long, device=device)
        self.finished = torch.zeros(len(seeds), dtype=torch.bool, device=device)

    def step(self, rows: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """One more token [B] of each of the ``rows`` [B], and which of them go on.

        A row that has ended already is drawn from for nothing.
        """
        runs = ~self.finished[rows] & (self.length[rows] < self.how.max_steps)
        at = self.length[rows].clamp(max=self.how.max_steps - 1)
        token, old, logp = draw(logits, self.uniform[rows, at], self.how)
        if not bool(logp[runs].isfinite().all()):
            raise NumericsError(
                "The model's law of the next token is not finite while sampling.",
                "Check the model's weights, lower the learning rate, or use dtype=float32.",
            )
        mine, at = rows[runs], at[runs]
        self.tokens[mine, at] = token[runs]
        self.old[mine, at] = old[runs].double()
        self.logp[mine, at] = logp[runs].double()
        self.length[mine] = at + 1
        self.finished[mine] = torch.isin(token[runs], self.ends)
        return token, ~self.finished[rows] & (self.length[rows] < self.how.max_steps)

    def take(self, rows: Sequence[tuple[list[int], list[float], bool]]) -> None:
        """What another sampler drew: each row's tokens, their law's numbers, whether it ended."""
        for i, (tokens, old, ended) in enumerate(rows):
            size = len(tokens)
            self.length[i], self.finished[i] = size, ended
            self.tokens[i, :size] = torch.tensor(tokens, device=self.tokens.device)
            self.old[i, :size] = torch.tensor(old, dtype=self.old.dtype, device=self.old.device)

    def score(self, policy: LanguagePolicy, contexts: list[tuple[int, ...]], n: int) -> None:
        """The policy's own numbers of what was drawn."""
        rows = []
        for i, size in enumerate(self.length.tolist()):
            steps = self.tokens[i, :size].cpu()
            rows.append(Row(contexts[i // n], steps, torch.ones(size, dtype=torch.bool)))
        with torch.no_grad():
            logp = policy.score(Rows.collate(rows)).logp.to(self.logp)
        self.logp[:, : logp.shape[1]] = logp


def _shared(
    policy: LanguagePolicy, contexts: list[tuple[int, ...]], n: int, drawn: _Drawn, place: int
) -> None:
    """Sample all rows with :mod:`decode`, the longest contexts first, others as rows end.

    ``place`` is the memory of one place of one row.
    """
    logits = policy.trunk.head.wide()
    steps = drawn.how.max_steps
    room = max(
        min(ROWS.get(policy.device.type, 512), MEMORY // (place * steps), len(drawn.length)), 1
    )
    # A context comes with all its rows, or with some of them where they are very many.
    part = min(n, max(room // 4, 1))
    need = max(part, room // TURNOVER)
    longest = sorted(range(len(contexts)), key=lambda i: -len(contexts[i]))
    waiting = [(i, k, min(k + part, n)) for i in longest for k in range(0, n, part)]
    rows = decode.Rows(policy.trunk, room, steps)
    row = torch.zeros(0, dtype=torch.long, device=policy.device)
    states: list[Tensor] = []
    while True:
        if room - len(row) >= need:
            while waiting and room - len(row) >= part:
                units = _together(waiting, contexts, room - len(row))
                del waiting[: len(units)]
                prefix = decode.Prefix(policy.trunk, [contexts[i] for i, _, _ in units])
                home = [c for c, (_, a, b) in enumerate(units) for _ in range(a, b)]
                rows.add(prefix, home)
                states.append(prefix.states[home])
                added = [i * n + k for i, a, b in units for k in range(a, b)]
                row = torch.cat([row, row.new_tensor(added)])
        if not len(row):
            return
        token, runs = drawn.step(row, logits(torch.cat(states)))
        ended = len(row) - int(runs.sum())
        if ended * TURNOVER >= len(row) or (waiting and room - len(row) + ended >= need):
            order = rows.keep(runs)
            row, token = row[order], token[order]
        states = [rows.forward(token)] if len(row) else []


def _together(
    waiting: list[tuple[int, int, int]], contexts: list[tuple[int, ...]], free: int
) -> list[tuple[int, int, int]]:
    """The first of the waiting that are computed in one pass: as many as fit, of like length."""
    size = len(contexts[waiting[0][0]])
    used = rows = 0
    for count, (i, a, b) in enumerate(waiting):
        used, rows = used + len(contexts[i]), rows + b - a
        places = size * (count + 1)
        if count and (
            rows > free or places > decode.PLACES or places - used > decode.WASTE * places
        ):
            return waiting[:count]
    return list(waiting)


def _own_cache(
    policy: LanguagePolicy, contexts: list[tuple[int, ...]], n: int, drawn: _Drawn
) -> None:
    """Sample all rows with the model's own cache, batch after batch."""
    most = max(OWN_CACHE_ROWS.get(policy.device.type, 256) // n, 1)
    logits, way = policy.trunk.head.wide(), own_cache.way_of(policy.trunk)
    for picked in own_cache.batches(contexts, way, most):
        rows = torch.tensor([i * n + k for i in picked for k in range(n)], device=policy.device)
        batch = own_cache.Batch(policy.trunk, [contexts[i] for i in picked], n, rows, way)
        batch.run(lambda row, states: drawn.step(row, logits(states)))
