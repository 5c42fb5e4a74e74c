"""A key-value cache that grows in place.

The cache of `transformers` copies every key and value at every step. Here a layer keeps spare
room, so that a step writes only its own keys and values.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values [B, heads, S, D] at the beginning of larger buffers."""

    room = 64

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            self._buffers: tuple[Tensor, Tensor] | None = None
            return self.keys, self.values
        old, new = self.keys.shape[-2], key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < old + new:
            self._buffers = (self._roomy(self.keys, new), self._roomy(self.values, new))
        keys, values = self._buffers
        keys[:, :, old : old + new] = key_states
        values[:, :, old : old + new] = value_states
        self.keys, self.values = keys[:, :, : old + new], values[:, :, : old + new]
        return self.keys, self.values

    def _roomy(self, x: Tensor, new: int) -> Tensor:
        batch, heads, size, width = x.shape
        buffer = x.new_empty(batch, heads, size + new + self.room, width)
        buffer[:, :, :size] = x
        return buffer

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._buffers = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._buffers = None

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._buffers = None


def growing_cache(config: Any) -> DynamicCache:
    """A model's cache; layers that keep everything grow in place, others are as they were."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    if not cache.layers:
        cache.layer_class_to_replicate = GrowingLayer
    return cache
