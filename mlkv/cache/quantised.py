"""Caches for transformers that hold packed integers and nothing else.

Only the keys and values that one attention call reads are made of them, and freed after it. transformers has caches of
this kind too: they need one layer of the cache for each layer of the model, keep the newest tokens as they are, and
compile their kernels for minutes.

A layer's `keys` and `values` are bytes `[B, G, S, Q]` (B sequences, G KV heads, S tokens, Q as in packing.py): all that
transformers does to a cache (reorder, crop, repeat, select) is done to the bytes. Readers have a layer here that holds
nothing.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, StaticLayer

from .formats import CACHES, CacheFormat
from .packing import pack, pack_keys, unpack, unpack_keys


class QuantisedCache(Cache):
    """A cache of one of the formats in CACHES that has integers.

    It grows with every token; with `max_cache_len` it is allocated at its full length when it is first written.
    Raises ValueError for another name.
    """

    def __init__(self, config: PreTrainedConfig, name: str, max_cache_len: int | None = None) -> None:
        form = CACHES.choose(name)
        if form.bits is None:
            raise ValueError(f"cache = {name}: has no integers; take transformers' DynamicCache or StaticCache")
        layers = range(config.num_hidden_layers)
        if max_cache_len is None:
            super().__init__(layers=[GrowingLayer(form) for _ in layers])
        else:
            super().__init__(layers=[PreallocatedLayer(form, max_cache_len) for _ in layers])


class _Packing(CacheLayerMixin):
    """What both kinds of layers have: bytes go in, and the vectors made of all of them come out."""

    supports_early_init = False
    is_compileable = False
    form: CacheFormat

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(pack_keys(key_states, self.form), pack(value_states, self.form), *args, **kwargs)
        return (
            unpack_keys(keys, self.form, key_states.shape[-1], key_states.dtype),
            unpack(values, self.form, value_states.shape[-1], value_states.dtype),
        )


class GrowingLayer(_Packing, DynamicLayer):
    def __init__(self, form: CacheFormat) -> None:
        super().__init__()
        self.form = form


class PreallocatedLayer(_Packing, StaticLayer):
    """Places that are not written yet are zero bytes, which are read as zeros; attention masks them."""

    def __init__(self, form: CacheFormat, max_cache_len: int) -> None:
        super().__init__(max_cache_len=max_cache_len)
        self.form = form
