"""Caches that are allocated ahead, one pair of buffers an owner: new tokens are written behind the others.

transformers' DynamicCache makes a new tensor of all keys and values for every token; its StaticCache does not, but
gives its empty places too, which attention reads and a mask hides. Here attention gets what is filled, as a view, so
that one token needs no mask, and the bits are those of a DynamicCache.

Legend: `B` batch, `G` KV heads, `S` tokens, `K` head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from .tokens import KeysValues

_LEAST_ROOM = 64
"""Tokens. More room is an eighth of what is there: so a text of any length is copied few times."""


class BufferedLayer(DynamicLayer):
    """A DynamicLayer whose `keys` and `values` `[B, G, S, K]` are the filled part of buffers.

    capacity: tokens that the buffers have from the start; where more come, they grow.
    """

    def __init__(self, capacity: int = 0) -> None:
        super().__init__()
        self.capacity = capacity
        self.buffers: KeysValues | None = None
        self._filled: KeysValues | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> KeysValues:
        """Add new keys and values; all that it holds."""
        # What attention read must stay as it is until its gradients are computed, and a compiler sees shapes alone.
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not self._continues(key_states):
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        total = length + key_states.shape[2]
        if not self._has_room(total):
            self._make_room(key_states, value_states, length, total)
        assert self.buffers is not None
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, length:total] = states
        self._filled = self.buffers[0][:, :, :total], self.buffers[1][:, :, :total]
        self.keys, self.values = self._filled
        return self._filled

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """As DynamicLayer takes tokens back; the next ones are written in their place."""
        filled = self._filled is not None and self.keys is self._filled[0]
        super().crop(*args, **kwargs)
        if filled and self.keys is not None and self.values is not None:
            self._filled = self.keys, self.values

    def restart(self) -> None:
        """Hold nothing, and keep the buffers: what comes next is written to the same addresses."""
        if self.buffers is not None:
            self._filled = self.buffers[0][:, :, :0], self.buffers[1][:, :, :0]
            self.keys, self.values = self._filled

    def hold(self, tokens: int) -> None:
        """Hold so many tokens, of which those that were not written are zeros; all places are written. Not before the
        first update."""
        assert self.buffers is not None
        length = self.get_seq_length()
        for buffer in self.buffers:
            buffer[:, :, length:] = 0
        self._filled = self.buffers[0][:, :, :tokens], self.buffers[1][:, :, :tokens]
        self.keys, self.values = self._filled

    def _continues(self, key_states: Tensor) -> bool:
        """Whether new keys are of the batch, the heads and the type of those that are there."""
        held = self.keys if self.is_initialized and self.get_seq_length() else None
        return held is None or (held.shape[:2], held.dtype) == (key_states.shape[:2], key_states.dtype)

    def _has_room(self, total: int) -> bool:
        """False too where another program has put other tensors in the place of what was filled (beams reorder them,
        assistants take tokens back), or where the buffers may not be written any more."""
        if self.buffers is None or self._filled is None or self.keys is not self._filled[0]:
            return False
        writable = torch.is_inference_mode_enabled() or not self.buffers[0].is_inference()
        return writable and total <= self.buffers[0].shape[2]

    def _make_room(self, key_states: Tensor, value_states: Tensor, length: int, total: int) -> None:
        capacity = max(self.capacity, total + max(_LEAST_ROOM, total // 8) if total > self.capacity else 0)
        held = self.keys, self.values
        self.buffers = tuple(  # type: ignore[assignment]
            states.new_empty(*states.shape[:2], capacity, states.shape[3]) for states in (key_states, value_states)
        )
        if length:
            for buffer, part in zip(self.buffers, held, strict=True):  # type: ignore[arg-type]
                buffer[:, :, :length] = part


def with_room(cache: Cache) -> Cache:
    """The same cache; an empty DynamicCache then writes into buffers. Any other stays as it is."""
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        return cache
    cache.layers = [
        BufferedLayer() if type(layer) is DynamicLayer and not layer.is_initialized else layer for layer in cache.layers
    ]
    if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
        cache.layer_class_to_replicate = BufferedLayer
    return cache


def allocated(config: Any, capacity: int) -> DynamicCache:
    """An empty cache for a model of this config whose owners have room for `capacity` tokens from the first one on."""
    cache = with_room(DynamicCache(config=config))
    for layer in cache.layers:
        if isinstance(layer, BufferedLayer):
            layer.capacity = capacity
    return cache
