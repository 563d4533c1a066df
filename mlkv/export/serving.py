"""What a layout costs where an engine serves it: bytes of KV cache on each device. Needs no torch."""

from __future__ import annotations

from ..layout import KVLayout

NUMBERS = {8: "float64", 4: "float32", 2: "bf16 or fp16", 1: "fp8"}
"""Bytes of a number → the types of that size that engines cache keys and values in."""


def bytes_per_device(layout: KVLayout, head_dim: int, element_bytes: int, tensor_parallel: int) -> int:
    """Bytes that one token leaves in the cache of each of the devices that every layer is spread over.

    Engines give each device whole KV heads: ⌈G / devices⌉ of an owner. With more devices than heads, several hold the
    same head, so that one head (MQA) costs each of eight devices what it costs a single one. A latent is one vector for
    all heads, and each device holds all of it.
    Raises ValueError where the query heads cannot be spread evenly.
    """
    if tensor_parallel < 1 or layout.heads % tensor_parallel:
        raise ValueError(f"tensor_parallel = {tensor_parallel}: must divide the {layout.heads} query heads")
    numbers = 0
    for owner in layout.owners:
        numbers += sum(-(-heads // tensor_parallel) * width for heads, width in layout.cached_sizes(owner, head_dim))
    return numbers * element_bytes
