"""The law that draws a token, and drawing from it by a uniform number.

Axes: B rows, V tokens, S tokens a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyalign.protocols import Sampling

BLOCK = 256
"""Tokens whose mass is summed before the block that holds a draw is looked into."""


def draw(logits: Tensor, uniform: Tensor, how: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B] by inverse CDF, their log-probability in the law that drew and in the policy's.

    ``logits`` [B, V] in float32 or better, ``uniform`` [B] in [0, 1). The law is softmax(logits /
    temperature), cut to the ``top_k`` likeliest, then to the fewest likeliest whose share of what
    is left reaches ``top_p``, renormalised. Temperature 0 takes the likeliest token.
    """
    if how.temperature == 0:
        best, token = logits.max(-1)
        return token, torch.zeros_like(best), best - logits.logsumexp(-1)
    tempered = logits if how.temperature == 1 else logits / how.temperature
    top = tempered.amax(-1, keepdim=True)
    mass = (tempered - top).exp_()
    blocks = _blocks(mass)
    total = top.squeeze(-1) + blocks.sum(-1).log()
    policy = total if how.temperature == 1 else logits.logsumexp(-1)
    if how.top_k == 0 and how.top_p >= 1:
        token = _invert(mass, blocks, uniform)
        return token, _at(tempered, token) - total, _at(logits, token) - policy
    kept, index = _cut(tempered, total, how.top_k, how.top_p)
    place = _invert_few(kept.exp(), uniform)
    token = _at(index, place)
    return token, _at(torch.log_softmax(kept, -1), place), _at(logits, token) - policy


def _at(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _blocks(mass: Tensor) -> Tensor:
    """The sums [B, ceil(V / S)] of the mass [B, V] in blocks; the last one is shorter."""
    size = mass.shape[-1]
    whole = size - size % BLOCK
    sums = mass[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
    return sums if whole == size else torch.cat([sums, mass[:, whole:].sum(-1, True)], -1)


def _invert(mass: Tensor, blocks: Tensor, uniform: Tensor) -> Tensor:
    """The first place at which the cumulated mass exceeds the uniform's share of the total.

    Found in two steps, first the block and then the place in it, so that the whole row is never
    cumulated.
    """
    size = mass.shape[-1]
    cumulated = blocks.cumsum(-1, dtype=torch.float64)
    target = uniform.double() * cumulated[:, -1]
    block = _first(cumulated, blocks, target)
    before = _at(cumulated - blocks, block)
    places = block.unsqueeze(-1) * BLOCK + torch.arange(BLOCK, device=mass.device)
    inside = mass.gather(-1, places.clamp(max=size - 1)).masked_fill(places >= size, 0)
    at = _first(inside.cumsum(-1, dtype=torch.float64), inside, target - before)
    return (block * BLOCK + at).clamp(max=size - 1)


def _invert_few(mass: Tensor, uniform: Tensor) -> Tensor:
    cumulated = mass.cumsum(-1, dtype=torch.float64)
    return _first(cumulated, mass, uniform.double() * cumulated[:, -1])


def _first(cumulated: Tensor, mass: Tensor, target: Tensor) -> Tensor:
    """The first place [B] at which ``cumulated`` exceeds the target and that has any mass."""
    place = torch.searchsorted(cumulated, target.unsqueeze(-1), right=True).squeeze(-1)
    # Rounding can leave a target at the total: the last place that has any mass.
    last = mass.shape[-1] - 1 - mass.flip(-1).gt(0).to(torch.int8).argmax(-1)
    return torch.minimum(place, last)


def _cut(tempered: Tensor, total: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens in order, their log-probabilities with -inf on those cut off.

    ``total`` [B] is the log of the sum of exp(``tempered``).
    """
    size = tempered.shape[-1]
    k = min(top_k or size, size)
    # Nearly always the mass wanted lies in few tokens: sort those first, all of them if need be.
    some = k if top_k else min(k, 64)
    while True:
        values, index = tempered.topk(some, -1)
        kept = values - total.unsqueeze(-1)
        mass = kept.exp()
        whole = mass.sum(-1, keepdim=True) if top_k else torch.ones_like(mass[:, :1])
        before = mass.cumsum(-1) - mass
        if some == k or bool((before[:, -1:] + mass[:, -1:] >= top_p * whole).all()):
            return kept.masked_fill(before >= top_p * whole, -torch.inf), index
        some = min(k, some * 8)
