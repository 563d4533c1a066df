"""One prefill and decode on a cache of its own: what a repetition of a cell does.

Protocol `prefill` (Run): prefills a prompt into a cache that is allocated at its full length, then decodes tokens one
by one. `warm` (WarmRun): the same cache, filled by no prompt. `filled` (FilledRun): starts from a cache of random keys
and values, and each token makes it longer.

Legend: `B` batch, `T` tokens.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache

from ..attention import update_cache
from ..cache.formats import AS_COMPUTED, CACHES
from ..cache.quantised import QuantisedCache
from ..hf import MLKVForCausalLM
from .memory import Peak


@dataclass(frozen=True)
class Sizes:
    """Of a run: so many tokens are prefilled or handed in, and so many decoded, in a cache with room for both."""

    batch: int
    prompt: int
    new_tokens: int

    @property
    def room(self) -> int:
        return self.prompt + self.new_tokens


class Run:
    def __init__(self, model: MLKVForCausalLM, sizes: Sizes, device: torch.device, cache: str = AS_COMPUTED) -> None:
        self.model, self.sizes, self.device, self.cache = model, sizes, device, cache
        self.prefill: float | None = None
        self.cache_bytes = 0
        self.steps: list[float] = []
        self.prefill_peak: float | None = None
        self.decode_peak: float | None = None

    @torch.inference_mode()
    def go(self) -> None:
        """Its cache is freed once its size is known."""
        peak = Peak(self.device)
        cache, next_B1 = self._begin(torch.Generator().manual_seed(0))
        self.prefill_peak = peak.grown()
        peak.begin()
        for _ in range(self.sizes.new_tokens):
            next_B1, seconds = self._step(next_B1, cache)
            self.steps.append(seconds)
        self.decode_peak = peak.grown()
        self.cache_bytes = sum(part.numel() * part.element_size() for part in _parts(cache))

    def _begin(self, generator: torch.Generator) -> tuple[Cache, Tensor]:
        """A cache of the prompt's tokens and the token that comes next."""
        cache = self._allocated()
        next_B1, self.prefill = self._step(self._ids(self.sizes.prompt, generator), cache)
        return cache, next_B1

    def _allocated(self) -> Cache:
        """An empty cache with room for all tokens."""
        config = self.model.config
        if CACHES[self.cache].bits is not None:
            return QuantisedCache(config, self.cache, self.sizes.room)
        return StaticCache(config, max_cache_len=self.sizes.room)

    def _ids(self, tokens: int, generator: torch.Generator) -> Tensor:
        size = (self.sizes.batch, tokens)
        return torch.randint(self.model.shape.vocab_size, size, generator=generator).to(self.device)

    def _step(self, ids_BT: Tensor, cache: Cache) -> tuple[Tensor, float]:
        self._wait()
        started = time.perf_counter()
        logits = self.model(ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        next_B1 = logits[:, -1:].argmax(-1)
        self._wait()
        return next_B1, time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class FilledRun(Run):
    """Decoding alone: nothing is prefilled, and each new token copies every owner's cache into one a token longer."""

    def _begin(self, generator: torch.Generator) -> tuple[Cache, Tensor]:
        packed, layout = CACHES[self.cache].bits is not None, self.model.layout
        cache = QuantisedCache(self.model.config, self.cache) if packed else DynamicCache()
        for owner in layout.owners:
            keys, values = (
                torch.randn(
                    self.sizes.batch, heads, self.sizes.prompt, width, dtype=self.model.dtype, device=self.device
                )
                for heads, width in layout.cached_sizes(owner, self.model.shape.head_dim)
            )
            update_cache(cache, keys, values, layout.cache_layer(owner))
        return cache, self._ids(1, generator)


class WarmRun(Run):
    """Decoding with a cache of full length that was written in all its places, but by no prompt: Linux gives memory out
    when it is written, and a cache of zeros that nobody wrote takes none."""

    def _begin(self, generator: torch.Generator) -> tuple[Cache, Tensor]:
        cache = self._allocated()
        next_B1, _ = self._step(self._ids(1, generator), cache)
        for layer in cache.layers:
            if (length := getattr(layer, "cumulative_length", None)) is not None:
                length.fill_(self.sizes.prompt)
        for part in _parts(cache):
            part[:, :, 1:] = 0
        return cache, next_B1


PROTOCOLS: dict[str, type[Run]] = {"prefill": Run, "warm": WarmRun, "filled": FilledRun}


def _parts(cache: Cache) -> list[Tensor]:
    """The tensors of every layer that holds any."""
    parts = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return [part for part in parts if part is not None]
