"""Sampling on the live weights: batched, with a key-value cache.

Each row draws from uniform numbers of its own seed, so what else is in the batch changes nothing
(up to the rounding of matrix products). Contexts are computed once for all their rows, and rows
that have ended leave the batch.

Axes: C contexts, B rows in the batch, N rows in all, T steps, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyalign.errors import OptionError
from polyalign.policies.language.growing import growing_cache
from polyalign.protocols import Rollout, Sampling
from polyalign.types import Row

if TYPE_CHECKING:
    from polyalign.policies.language.policy import LanguagePolicy

ROWS = {"cpu": 64}
"""Rows decoded at once, by device; elsewhere 256."""


def generate(
    policy: LanguagePolicy, contexts: Sequence[Any], n: int, how: Sampling, seeds: Sequence[int]
) -> Rollout:
    """``n`` completions of each context payload; ``seeds`` has one number a row, [C * n].

    Raises :class:`OptionError` for a law or a budget that cannot be drawn from.
    """
    _check(how, n, len(contexts), len(seeds))
    template = policy.template
    encoded = [template.context(context, room=how.max_steps) for context in contexts]
    total = len(contexts) * n
    uniform = torch.stack([_uniform(seed, how.max_steps) for seed in seeds]) if total else None
    drawn: list[tuple[list[int], list[float], list[float]]] = [([], [], []) for _ in range(total)]
    most = max(ROWS.get(policy.device.type, 256) // n, 1)
    # Contexts of like length together: less padding to compute at every step.
    order = sorted(range(len(contexts)), key=lambda i: len(encoded[i]))
    with torch.no_grad():
        for start in range(0, len(order), most):
            picked = order[start : start + most]
            rows = [i * n + k for i in picked for k in range(n)]
            assert uniform is not None
            batch = _Batch(policy, [encoded[i] for i in picked], n, uniform[rows])
            for row, result in zip(rows, batch.run(how, template.stops)):
                drawn[row] = result
    longest = max((len(ids) for ids, _, _ in drawn), default=0)
    old = torch.zeros(total, longest)
    logp = torch.zeros(total, longest)
    made, payloads = [], []
    finished = torch.zeros(total, dtype=torch.bool)
    for i, (ids, law, own) in enumerate(drawn):
        old[i, : len(ids)] = torch.tensor(law)
        logp[i, : len(ids)] = torch.tensor(own)
        finished[i] = bool(ids) and ids[-1] in template.stops
        steps = torch.tensor(ids, dtype=torch.long)
        made.append(Row(encoded[i // n], steps, torch.ones(len(ids), dtype=torch.bool)))
        payloads.append(template.payload(contexts[i // n], ids))
    return Rollout(tuple(made), old, logp, finished, tuple(payloads), n)


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


class _Batch:
    """Rows decoded together: their cache, which of them still run, and what they drew."""

    def __init__(
        self, policy: LanguagePolicy, contexts: list[tuple[int, ...]], n: int, uniform: Tensor
    ) -> None:
        self.trunk = policy.trunk
        device = policy.device
        longest = max(len(context) for context in contexts)
        pads = [longest - len(context) for context in contexts]
        # Padding on the left: every row's next token comes at the same place.
        ids = torch.tensor([[0] * p + list(c) for p, c in zip(pads, contexts)], device=device)
        pad = torch.tensor(pads, device=device).unsqueeze(1)
        place = torch.arange(longest, device=device)
        self.mask = (place >= pad).long()
        self.position = (place - pad).clamp(min=0)
        self.padded = any(pads)
        self.cache = growing_cache(self.trunk.config)
        self.state = self._forward(ids)
        self.cache.batch_repeat_interleave(n)
        self.state, self.mask, self.position = (
            x.repeat_interleave(n, 0) for x in (self.state, self.mask, self.position[:, -1:])
        )
        self.uniform = uniform.to(device)
        self.row = torch.arange(len(uniform), device=device)
        self.runs = torch.ones(len(uniform), dtype=torch.bool, device=device)

    def _forward(self, ids: Tensor) -> Tensor:
        """The state [B, H] after the last of ``ids`` [B, S] (or its logits)."""
        trunk = self.trunk
        arguments = {
            "input_ids": ids,
            "attention_mask": self.mask,
            "position_ids": self.position,
        }
        module = trunk.model.base_model if trunk.splits else trunk.model
        out = trunk.call(module, arguments, past_key_values=self.cache, use_cache=True)
        sequence: Tensor = out.last_hidden_state if trunk.splits else out.logits
        return sequence[:, -1]

    def run(
        self, how: Sampling, stops: frozenset[int]
    ) -> list[tuple[list[int], list[float], list[float]]]:
        """Token ids, log-probabilities of the law that drew and of the policy, for each row."""
        head = self.trunk.head.wide()
        ends = torch.tensor(sorted(stops), device=self.state.device)
        out: list[tuple[list[int], list[float], list[float]]] = [([], [], []) for _ in self.row]
        for step in range(how.max_steps):
            logits = head(self.state.to(torch.promote_types(self.state.dtype, torch.float32)))
            token, old, logp = draw(logits, self.uniform[self.row, step], how)
            running = self.runs.tolist()
            columns = (self.row.tolist(), token.tolist(), old.tolist(), logp.tolist())
            for on, row, t, law, own in zip(running, *columns):
                if on:
                    out[row][0].append(t)
                    out[row][1].append(law)
                    out[row][2].append(own)
            self.runs = self.runs & ~torch.isin(token, ends)
            left = int(self.runs.sum())
            if left == 0 or step + 1 == how.max_steps:
                break
            if left <= 0.75 * len(self.row):
                token = self._compact(token)
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.row), 1)], 1)
            self.position = self.position + 1
            self.state = self._forward(token.unsqueeze(1))
        return out

    def _compact(self, token: Tensor) -> Tensor:
        """Drop the rows that have ended."""
        keep = self.runs.nonzero().flatten()
        self.cache.batch_select_indices(keep)
        self.row, self.mask, self.position, self.runs = (
            x[keep] for x in (self.row, self.mask, self.position, self.runs)
        )
        return token[keep]


def draw(logits: Tensor, uniform: Tensor, how: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B] by inverse CDF, their log-probability in the law that drew and in the policy's.

    ``logits`` [B, V] in float32 or better, ``uniform`` [B] in [0, 1). The law is softmax(logits /
    temperature), cut to the ``top_k`` likeliest, then to the fewest likeliest whose share of what
    is left reaches ``top_p``, renormalised. Temperature 0 takes the likeliest token.
    """
    full = torch.log_softmax(logits, -1)
    if how.temperature == 0:
        token = full.argmax(-1)
        return token, torch.zeros_like(uniform, dtype=full.dtype), _at(full, token)
    law = full if how.temperature == 1 else torch.log_softmax(logits / how.temperature, -1)
    if how.top_k == 0 and how.top_p >= 1:
        token = _invert(law.exp(), uniform)
        return token, _at(law, token), _at(full, token)
    kept, index = _cut(law, how.top_k, how.top_p)
    place = _invert(kept.exp(), uniform)
    token = _at(index, place)
    return token, _at(torch.log_softmax(kept, -1), place), _at(full, token)


def _at(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _invert(mass: Tensor, uniform: Tensor) -> Tensor:
    """The first place at which the cumulated mass exceeds the uniform's share of the total."""
    cumulated = mass.cumsum(-1, dtype=torch.float64)
    target = (uniform * cumulated[:, -1]).unsqueeze(-1)
    place = torch.searchsorted(cumulated, target, right=True).squeeze(-1)
    if bool((place == mass.shape[-1]).any()):
        # Rounding left a target at the total: the last place that has any mass.
        last = mass.shape[-1] - 1 - mass.flip(-1).gt(0).to(torch.int8).argmax(-1)
        place = torch.minimum(place, last)
    return place


def _cut(law: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens in order, their log-probabilities with -inf on those cut off."""
    size = law.shape[-1]
    k = min(top_k or size, size)
    # Nearly always the mass wanted lies in few tokens: sort those first, all of them if need be.
    some = min(k, 1024)
    while True:
        kept, index = law.topk(some, -1)
        mass = kept.exp()
        total = mass.sum(-1, keepdim=True) if top_k else torch.ones_like(mass[:, :1])
        before = mass.cumsum(-1) - mass
        if some == k or bool((before[:, -1:] + mass[:, -1:] >= top_p * total).all()):
            break
        some = min(k, some * 8)
    return kept.masked_fill(before >= top_p * total, -torch.inf), index
