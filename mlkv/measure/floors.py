"""The fewest bytes and operations that one decoding step takes, by formula: what measured times are held against.

Two floors of bytes. `once`: the weights, and each cached number once, however many layers attend to it. `by_layer`: the
weights, and for each layer the keys and values that it attends to, as it must be where a kernel serves one layer. For a
layout without sharing they are the same. No kernel here gets below `by_layer` but by a processor's own cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..cache.formats import CACHES
from ..layout import KINDS, KVLayout
from ..shape import DecoderShape

_LOOKED_UP = ("embed.weight", "positions.weight")
"""Tables of which a step reads a row a sequence, not all."""


@dataclass(frozen=True)
class Floors:
    """Of one step of a batch: bytes that are read, and floating-point operations (a multiplication and an addition are
    two)."""

    once: float
    by_layer: float
    operations: float


def step_floors(
    shape: DecoderShape, layout: KVLayout, cache: str, element_bytes: int, batch: int, tokens: float
) -> Floors:
    """`tokens`: those that a sequence attends to, its own with them. Local layers attend to no more than their
    window."""
    sizes = {name: prod(size) for name, size in shape.weights(layout).items() if not name.endswith(".planes")}
    products = sum(size for name, size in sizes.items() if name not in _LOOKED_UP)
    rows = batch * shape.width * sum(name in sizes for name in _LOOKED_UP)
    seen = [min(tokens, shape.window_of(layer) or tokens) for layer in range(shape.layers)]
    sources = {kind: layout.part(kind).kv_source_layers for kind in KINDS}
    per_token = {owner: _bytes_by_kind(shape, layout, cache, owner, element_bytes) for owner in layout.owners}
    once = by_layer = 0.0
    for number, kind in enumerate(KINDS):
        for owner in layout.owners:
            longest = [seen[layer] for layer in range(shape.layers) if sources[kind][layer] == owner]
            once += per_token[owner][number] * max(longest, default=0)
            by_layer += per_token[owner][number] * sum(longest)
    weights = element_bytes * (products + rows)
    attention = 4 * shape.heads * shape.head_dim * sum(seen)
    return Floors(weights + batch * once, weights + batch * by_layer, batch * (2 * products + attention))


def _bytes_by_kind(
    shape: DecoderShape, layout: KVLayout, cache: str, owner: int, element_bytes: int
) -> tuple[int, int]:
    """Bytes of the keys and of the values that a token leaves at an owner; a latent counts as keys."""
    keys, values = (
        heads * CACHES[cache].vector_bytes(width, element_bytes)
        for heads, width in layout.cached_sizes(owner, shape.head_dim)
    )
    return keys, values
