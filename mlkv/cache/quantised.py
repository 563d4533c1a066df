"""Caches for transformers that hold packed integers and nothing else.

Only the keys and values that one attention call reads are made of them, and freed after it. transformers has caches of
this kind too: they need one layer of the cache for each layer of the model, keep the newest tokens as they are, and
compile their kernels for minutes.

A layer's `keys` and `values` are bytes `[B, G, S, Q]` (B sequences, G KV heads, S tokens, Q as in packing.py): all that
transformers does to a cache (reorder, crop, repeat, select) is done to the bytes. Readers have a layer here that holds
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, StaticLayer

from ..buffers import BufferedLayer
from .formats import CACHES, CacheFormat
from .packing import pack, pack_keys, unpack, unpack_keys

if TYPE_CHECKING:
    from ..hf import MLKVConfig


class QuantisedCache(Cache):
    """A cache of one of the formats in CACHES that has integers.

    It grows with every token; with `max_cache_len` it is allocated at its full length when it is first written.
    Raises ValueError for another name.
    """

    def __init__(self, config: MLKVConfig, name: str, max_cache_len: int | None = None) -> None:
        form = CACHES.choose(name)
        if form.bits is None:
            raise ValueError(f"cache = {name}: has no integers; take transformers' DynamicCache or StaticCache")
        layout = config.layout
        width = config.shape.head_dim if layout.apart else None
        kinds = [Vectors(form, width, layer in layout.keys.owners) for layer in range(layout.layers)]
        if max_cache_len is None:
            super().__init__(layers=[GrowingLayer(vectors) for vectors in kinds])
        else:
            super().__init__(layers=[PreallocatedLayer(vectors, max_cache_len) for vectors in kinds])


@dataclass(frozen=True)
class Vectors:
    """What the vectors of a layer are packed to, each head by itself.

    width: of a head, where keys and values are apart and their heads may come side by side (mlkv/attention.py); None:
        what comes is one vector.
    has_keys: in the place of keys there are keys; else values, of an owner of values alone.
    """

    form: CacheFormat
    width: int | None
    has_keys: bool

    def packed(self, states: Tensor, *, as_keys: bool) -> Tensor:
        width = self.width or states.shape[-1]
        return (pack_keys if as_keys else pack)(self._by_head(states, width), self.form).flatten(-2)

    def unpacked(self, packed: Tensor, states: Tensor, *, as_keys: bool) -> Tensor:
        """In the width and the dtype of `states`."""
        width = self.width or states.shape[-1]
        heads = self._by_head(packed, self.form.vector_bytes(width, states.element_size()))
        return (unpack_keys if as_keys else unpack)(heads, self.form, width, states.dtype).flatten(-2)

    def _by_head(self, states: Tensor, width: int) -> Tensor:
        return states.unflatten(-1, (states.shape[-1] // width if self.width else 1, width))


class _Packing(CacheLayerMixin):
    """What both kinds of layers have: bytes go in, and the vectors made of all of them come out."""

    supports_early_init = False
    is_compileable = False
    vectors: Vectors

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        vectors, as_keys = self.vectors, self.vectors.has_keys
        packed = vectors.packed(key_states, as_keys=as_keys), vectors.packed(value_states, as_keys=False)
        keys, values = super().update(*packed, *args, **kwargs)
        return (
            vectors.unpacked(keys, key_states, as_keys=as_keys),
            vectors.unpacked(values, value_states, as_keys=False),
        )


class GrowingLayer(_Packing, BufferedLayer):
    def __init__(self, vectors: Vectors) -> None:
        super().__init__()
        self.vectors = vectors


class PreallocatedLayer(_Packing, StaticLayer):
    """Places that are not written yet are zero bytes, which are read as zeros; attention masks them."""

    def __init__(self, vectors: Vectors, max_cache_len: int) -> None:
        super().__init__(max_cache_len=max_cache_len)
        self.vectors = vectors
