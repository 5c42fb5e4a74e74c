"""What a token of a row keeps in memory until the backward pass has used it."""

from __future__ import annotations

import torch
from torch import Tensor

from polyalign.engine.sharding import is_sharded
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.types import Row, Rows


def bytes_per_token(policy: LanguagePolicy) -> int:
    """Bytes that one more token keeps for the backward pass, counted on two short rows.

    Counted, not estimated: whatever the architecture, its adapters and its dtype are.
    """
    sizes = (32, 96)
    few, many = (_kept(policy, size) for size in sizes)
    return max((many - few) // (sizes[1] - sizes[0]), 1)


def _kept(policy: LanguagePolicy, tokens: int) -> int:
    """Bytes that the graph of one row of ``tokens`` tokens keeps beside the parameters."""
    steps = torch.arange(tokens // 2) % policy.trunk.config.vocab_size
    row = Row(tuple(steps.tolist()), steps, torch.ones(len(steps), dtype=torch.bool))
    known = _weights(policy)
    held: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if policy.lockstep:
            known.update(_weights(policy))  # layers come and go
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return x

    policy.trunk.layout()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        states, _ = policy.states(Rows.collate([row]))
    del states  # until here it held all that was counted
    return sum(held.values())


def _weights(policy: LanguagePolicy) -> set[int]:
    """Where the weights lie that are here now."""
    here = (p for p in policy.model.parameters() if not is_sharded(p))
    return {p.untyped_storage().data_ptr() for p in here}
