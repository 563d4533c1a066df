"""Greedy decoding at full speed: a prefill in chunks, then single tokens from a cache that is allocated once.

A step reads and writes tensors on the model's device alone. It waits for nothing, so that a GPU always has work: the
caller synchronises where it wants to know a time or a token. Compiled, a step is one graph of fixed shapes, which CUDA
replays as a whole; otherwise attention gets the filled part of the cache and needs no mask.

Sequences of a batch are equally long here. generate() has padding, sampling and ends, on the same buffers
(mlkv/buffers.py).

Legend: `B` batch, `T` tokens, `G` KV heads, `S` places of the cache, `K` head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .attention import Kernel, attention_kernel, update_cache
from .buffers import BufferedLayer, allocated
from .cache.formats import AS_COMPUTED, CACHES
from .cache.quantised import QuantisedCache
from .hf import MLKVForCausalLM
from .tokens import KeysValues

CHUNK_BYTES = 2**28
"""What the activations of a prefill's pass may take: enough for full speed, little beside a cache worth sharing."""


class Decoding:
    """A model, and a cache for `batch` sequences of `length` tokens: those that are read and those that are generated.

    cache: a row of CACHES. compiled: steps run as one compiled graph. chunk: tokens of each sequence in a pass of the
    prefill; chosen by `chunk_of` unless given.
    Raises ValueError for a compiled step on packed integers, and for chunks of a layout that reads from above, where
    they would change what is computed.
    """

    def __init__(
        self,
        model: MLKVForCausalLM,
        batch: int,
        length: int,
        *,
        cache: str = AS_COMPUTED,
        compiled: bool = False,
        chunk: int | None = None,
    ) -> None:
        self.packed = CACHES.choose(cache).bits is not None
        if compiled and self.packed:
            raise ValueError(f"compiled = true: cache = {cache} is unpacked by code that is not compiled; use model")
        if chunk is not None and model.layout.reads_above:
            raise ValueError(f"chunk = {chunk}: a layout that reads from above is prefilled in one go; leave it out")
        self.model, self.batch, self.length, self.compiled = model, batch, length, compiled
        self.chunk = chunk or chunk_of(model, batch, length)
        self.cache: Cache = (
            QuantisedCache(model.config, cache, length) if self.packed else allocated(model.config, length)
        )
        self._compiled: CompiledStep | None = None

    @torch.inference_mode()
    def prefill(self, ids_BT: Tensor) -> Tensor:
        """The token `[B, 1]` that comes after `ids_BT`, of which only the last position has logits. What was there
        before is forgotten, and its buffers are used again."""
        self._restart()
        hidden_BTD = torch.empty(0)
        for part_BT in ids_BT.split(self.chunk, dim=1):
            hidden_BTD = self.model.model(part_BT, cache=self.cache)
        next_B1 = self._likeliest(hidden_BTD)
        self._begin_steps(ids_BT.shape[1])
        return next_B1

    @torch.inference_mode()
    def fill(self, tokens: int, generator: torch.Generator | None = None) -> None:
        """As `prefill`, but keys and values of as many tokens are random numbers. `generator`: of its device."""
        self._restart()
        model, layout = self.model, self.model.layout
        for owner in layout.owners:
            keys, values = (
                torch.randn(
                    self.batch, heads, tokens, width, generator=generator, dtype=model.dtype, device=model.device
                )
                for heads, width in layout.cached_sizes(owner, model.shape.head_dim)
            )
            update_cache(self.cache, keys, values, layout.cache_layer(owner))
        self._begin_steps(tokens)

    @torch.inference_mode()
    def warm(self, tokens: int) -> None:
        """As `fill`, but with zeros: nothing is allocated beside the cache, whose places are all written."""
        self.prefill(torch.zeros(self.batch, 1, dtype=torch.int64, device=self.model.device))
        for layer in self.cache.layers:
            if isinstance(layer, BufferedLayer) and layer.buffers is not None:
                layer.hold(tokens)
            elif self.packed and layer.keys is not None and layer.values is not None:
                layer.keys[:, :, 1:] = layer.values[:, :, 1:] = 0
                layer.cumulative_length.fill_(tokens)
        self._begin_steps(tokens)

    @torch.inference_mode()
    def step(self, next_B1: Tensor) -> Tensor:
        """The token `[B, 1]` that comes after `next_B1`, which is read after all before it."""
        if self._compiled is not None:
            return self._compiled(next_B1)
        return self._likeliest(self.model.model(next_B1, cache=self.cache))

    @torch.inference_mode()
    def rewind(self, tokens: int) -> None:
        """Forget the newest so many tokens. Raises ValueError for packed integers, which are not taken back."""
        if self.packed:
            raise ValueError(f"tokens = {tokens}: a cache of packed integers is not taken back; prefill again")
        if self._compiled is not None:
            self._compiled.cache.tokens.sub_(tokens)
        else:
            self.cache.crop(-tokens)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache's buffers, full or not; 0 before anything is read."""
        held = (getattr(layer, "buffers", None) or (layer.keys, layer.values) for layer in self.cache.layers)
        return sum(part.numel() * part.element_size() for pair in held for part in pair if part is not None)

    @property
    def kernel(self) -> Kernel:
        """With which the first owner's queries attend at one token."""
        shape, layout = self.model.shape, self.model.layout
        (key_heads, width), (value_heads, value_width) = layout.cached_sizes(layout.owners[0], shape.head_dim)
        if layout.latent is not None:
            value_heads, value_width = key_heads, layout.rank_of(layout.owners[0])
        like = torch.empty(0, dtype=self.model.dtype)
        q_BHTK, k_BGSK, v_BGSK = (
            like.new_empty(0, heads, 1, each)
            for heads, each in ((shape.heads, width), (key_heads, width), (value_heads, value_width))
        )
        return attention_kernel(q_BHTK, k_BGSK, v_BGSK, explicit=shape.attention_cap != 0)

    def _restart(self) -> None:
        for layer in self.cache.layers:
            if isinstance(layer, BufferedLayer):
                layer.restart()
            elif self.packed:
                layer.reset()

    def _likeliest(self, hidden_BTD: Tensor) -> Tensor:
        return self.model.model.logits(hidden_BTD[:, -1:]).argmax(-1)

    def _begin_steps(self, tokens: int) -> None:
        if not self.compiled:
            return
        if self._compiled is None:
            self._compiled = CompiledStep(self.model, self.cache)
        self._compiled.cache.tokens.fill_(tokens)


class CompiledStep:
    """A step as one graph of fixed shapes. On CUDA it is captured and replayed."""

    def __init__(self, model: MLKVForCausalLM, filled: Cache) -> None:
        self.cache = FixedCache(filled, model.device)
        decoder, cache = model.model, self.cache

        def step(next_B1: Tensor) -> Tensor:
            next_B1 = decoder.logits(decoder(next_B1, cache=cache)).argmax(-1)
            cache.tokens.add_(1)
            return next_B1

        mode = "reduce-overhead" if model.device.type == "cuda" else None
        self._compiled = torch.compile(step, mode=mode, fullgraph=True, dynamic=False)

    def __call__(self, next_B1: Tensor) -> Tensor:
        # Each model and size is compiled by itself. torch gives up after eight of one function, with an error.
        with torch._dynamo.config.patch(recompile_limit=2**16, accumulated_recompile_limit=2**16):
            # A copy: the graph's own output is written over by its next replay.
            return self._compiled(next_B1).clone()


class FixedCache:
    """The `KVCache` of a compiled step: the buffers of a filled cache, as they are, and one count of their tokens, in a
    tensor. Attention gets all places, and a mask made of the count."""

    def __init__(self, filled: Cache, device: torch.device) -> None:
        tokens = filled.get_seq_length()
        self.tokens = torch.tensor(tokens, device=device)
        self.buffers: dict[int, KeysValues] = {
            number: layer.buffers
            for number, layer in enumerate(filled.layers)
            if isinstance(layer, BufferedLayer) and layer.buffers is not None
        }
        self.places: int = next(iter(self.buffers.values()))[0].shape[2]
        buffers = [part for pair in self.buffers.values() for part in pair]
        for buffer in buffers:
            # A place that is not written yet has no weight, but may hold no number, and 0 times that is none either.
            buffer[:, :, tokens:].zero_()
        for tensor in (*buffers, self.tokens):
            # Without a fixed address CUDA graphs would copy it in and out.
            torch._dynamo.mark_static_address(tensor)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, /) -> KeysValues:
        held = self.buffers[layer_idx]
        places_T = torch.arange(key_states.shape[2], device=key_states.device) + self.tokens
        for buffer, states in zip(held, (key_states, value_states), strict=True):
            buffer.index_copy_(2, places_T, states)
        return held

    def get_seq_length(self) -> Tensor:
        return self.tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int, /) -> tuple[int, int]:
        return self.places, 0


def chunk_of(model: MLKVForCausalLM, batch: int, length: int) -> int:
    """Tokens of each sequence in one pass of a prefill, so that what a layer makes of them fits into CHUNK_BYTES: the
    MLP's two tensors, queries, keys, values and their sum, and attention's weights where no kernel keeps them to
    itself. All of `length` for a layout that reads from above, whose passes depend on how many tokens there are."""
    shape = model.shape
    if model.layout.reads_above:
        return length
    numbers = (3 if shape.gated_mlp else 2) * shape.mlp_width + 4 * shape.heads * shape.head_dim + 2 * shape.width
    if shape.attention_cap:
        numbers += 3 * shape.heads * length
    fitting = CHUNK_BYTES // (batch * numbers * model.dtype.itemsize)
    return min(length, max(64, fitting // 64 * 64))
