"""Memory that serving takes of each GPU, by formula: weights, cached keys and values, activations.

Tensor parallelism splits query heads, MLPs and the vocabulary between GPUs. A KV head is where the query heads are that
read it: where an owner has fewer than there are GPUs, several hold the same one. It counts tensors; what a device needs
besides (the CUDA context, kernels, fragments of the allocator) is some 1 to 2 GiB a GPU and not in here. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from ..cache.formats import AS_COMPUTED, CACHES
from ..gpus import BANDWIDTHS, PEAKS
from ..layout import KINDS, KVLayout
from ..shape import DecoderShape
from .floors import step_floors

CHUNK = 2048
"""Tokens of prompts that an engine computes at once (vLLM's `max_num_batched_tokens`), where there are so many."""
_LOGITS = 4
"""Bytes of a logit: float32."""


@dataclass(frozen=True)
class Footprint:
    """Bytes on the GPU that holds most."""

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations


def check_gpus(shape: DecoderShape, gpus: int) -> None:
    """Raises ValueError for a number of GPUs that query heads or MLPs cannot be split between."""
    for what, count in (("query heads", shape.heads), ("numbers in an MLP", shape.mlp_width)):
        if gpus < 1 or count % gpus:
            valid = ", ".join(str(n) for n in range(1, shape.heads + 1) if not shape.heads % n | shape.mlp_width % n)
            raise ValueError(f"tp = {gpus}: must divide the model's {count:,} {what} (valid: {valid})")


def heads_per_gpu(kv_heads: int, heads: int, gpus: int) -> int:
    """The KV heads that the query heads of one GPU read, of the GPU with most."""
    own, group = heads // gpus, heads // kv_heads
    return max(-(-(gpu + 1) * own // group) - gpu * own // group for gpu in range(gpus))


def cache_bytes_per_token(
    shape: DecoderShape, layout: KVLayout, gpus: int = 1, cache: str = AS_COMPUTED, element_bytes: int = 2
) -> int:
    """Bytes that one token leaves in the cache of one GPU. A latent is on each of them."""
    owners = (_of_owner(shape, layout, owner, gpus, cache, element_bytes) for owner in layout.owners)
    return sum(map(sum, owners))


def _of_owner(
    shape: DecoderShape, layout: KVLayout, owner: int, gpus: int, cache: str, element_bytes: int
) -> tuple[int, int]:
    """Bytes of the keys and of the values that a token leaves at an owner, on one GPU."""
    keys, values = (
        (heads if layout.latent or not heads else heads_per_gpu(heads, shape.heads, gpus))
        * CACHES[cache].vector_bytes(width, element_bytes)
        for heads, width in layout.cached_sizes(owner, shape.head_dim)
    )
    return keys, values


def step_seconds(
    shape: DecoderShape,
    layout: KVLayout,
    gpu: str,
    *,
    batch: int,
    context: int,
    gpus: int = 1,
    cache: str = AS_COMPUTED,
    element_bytes: int = 2,
) -> float:
    """The least time of a decoding step, by the roofline of a GPU of mlkv/gpus.py: its weights, and for each layer the
    keys and values that it attends to, read at the memory's bandwidth, or its operations at the peak, whichever takes
    longer (floors.py). What GPUs tell each other is not in it. Raises KeyError for an unknown GPU."""
    floors = step_floors(shape, layout, cache, element_bytes, batch, context)
    weights = step_floors(shape, layout, cache, element_bytes, batch, 0).by_layer
    read = 0.0
    for number, kind in enumerate(KINDS):
        for layer, source in enumerate(layout.part(kind).kv_source_layers):
            seen = min(context, shape.window_of(layer) or context)
            read += seen * _of_owner(shape, layout, source, gpus, cache, element_bytes)[number]
    return max((weights / gpus + batch * read) / BANDWIDTHS[gpu], floors.operations / gpus / PEAKS[gpu])


def footprint(
    shape: DecoderShape,
    layout: KVLayout,
    *,
    batch: int,
    context: int,
    gpus: int = 1,
    cache: str = AS_COMPUTED,
    element_bytes: int = 2,
) -> Footprint:
    """Of `batch` sequences of `context` tokens each. Every layer caches the whole context, also a local one: not every
    engine drops what its window has left."""
    per_token = cache_bytes_per_token(shape, layout, gpus, cache, element_bytes)
    return Footprint(
        weights=element_bytes * sum(_weights(shape, layout, gpus)),
        cache=per_token * batch * context,
        activations=_activations(shape, layout, batch, context, gpus, element_bytes),
    )


def _weights(shape: DecoderShape, layout: KVLayout, gpus: int) -> Iterator[int]:
    """Numbers of each weight on one GPU."""
    for name, size in shape.weights(layout).items():
        if name.endswith(".planes") or (name == "head.weight" and shape.tied):
            continue
        yield _of_one(name, size, shape, gpus, split=layout.latent is None)


def _of_one(name: str, size: tuple[int, ...], shape: DecoderShape, gpus: int, *, split: bool) -> int:
    part = name.split(".")[-2] if "." in name else name
    if part in ("embed", "head"):
        return -(-size[0] // gpus) * prod(size[1:])
    if part in ("gate", "up", "q"):
        return size[0] // gpus * prod(size[1:])
    if part in ("k", "v") and split:
        heads = size[0] // shape.head_dim
        return heads_per_gpu(heads, shape.heads, gpus) * shape.head_dim * prod(size[1:])
    if part in ("down", "o") and len(size) == 2:  # split along its input, so that each GPU has the whole bias
        return size[0] * (size[1] // gpus)
    return prod(size)


def _activations(shape: DecoderShape, layout: KVLayout, batch: int, context: int, gpus: int, element_bytes: int) -> int:
    """The residual stream with its norm, the largest layer's numbers between them, and the logits of a step."""
    tokens = max(batch, min(CHUNK, batch * context))
    own = max(
        sum(heads_per_gpu(heads, shape.heads, gpus) * width for heads, width in sizes if heads)
        for sizes in (layout.cached_sizes(owner, shape.head_dim) for owner in layout.owners)
    )
    attention = 2 * shape.heads * shape.head_dim // gpus + own
    mlp = (3 if shape.gated_mlp else 2) * shape.mlp_width // gpus
    layer = tokens * (2 * shape.width + max(attention, mlp)) * element_bytes
    return layer + batch * -(-shape.vocab_size // gpus) * _LOGITS
