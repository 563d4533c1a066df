"""One prefill and decode on a cache of its own: what a repetition of a cell does.

Protocol `prefill` (Run): prefills a prompt into a cache that is allocated at its full length, then decodes tokens one
by one. `warm` (WarmRun): the same cache, filled by no prompt. `filled` (FilledRun): starts from a cache of random keys
and values, and each token makes it longer.

Legend: `B` batch, `T` tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache

from ..attention import update_cache
from ..cache.formats import AS_COMPUTED, CACHES
from ..cache.quantised import QuantisedCache
from ..context import StepFailed
from ..decoding import Decoding
from ..hf import MLKVForCausalLM
from .memory import Peak

_FEWEST_FOR_QUARTERS = 16
BLOCK = 2**21
"""Bytes that CUDA's allocator takes for small tensors at once."""


@dataclass(frozen=True)
class Begun:
    """A decoding behind its prompt. step: from a token `[B, 1]` to the next. token: the first. cached: bytes that its
    cache takes."""

    step: Callable[[Tensor], Tensor]
    token: Tensor
    cached: Callable[[], int]


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
    """`cache_bytes` is counted, not computed, after the last token; `cache_at_first` after the first. `decode_peaks`
    are of quarters of the tokens. On CUDA a step is one compiled graph unless `compiled` is false: the first ones,
    which compile and capture it, are far from the median."""

    grows: ClassVar[bool] = False
    """Whether each token makes the cache longer."""

    def __init__(
        self,
        model: MLKVForCausalLM,
        sizes: Sizes,
        device: torch.device,
        cache: str = AS_COMPUTED,
        compiled: bool | None = None,
    ) -> None:
        self.model, self.sizes, self.device, self.cache = model, sizes, device, cache
        can_be_compiled = device.type == "cuda" and CACHES[cache].bits is None
        self.compiled = can_be_compiled if compiled is None else compiled
        self.prefill: float | None = None
        self.cache_bytes = self.cache_at_first = 0
        self.steps: list[float] = []
        self.prefill_peak: float | None = None
        self.decode_peaks: list[float | None] = []
        self.kernel = ""

    @property
    def decode_peak(self) -> float | None:
        """None where the system does not report one."""
        known = [peak for peak in self.decode_peaks if peak is not None]
        return max(known) if known and len(known) == len(self.decode_peaks) else None

    def check(self, formula: int) -> None:
        """Raises StepFailed where the cache is not of so many bytes after the last token, or memory grew with the
        tokens although the cache was allocated once. On a CPU that is counted in the cache's buffers, as resident
        memory has other causes too."""
        if self.cache_bytes != formula:
            raise StepFailed(f"the cache has {self.cache_bytes:,} bytes after the last token, by formula {formula:,}")
        if self.grows or CACHES[self.cache].bits is not None:  # what is packed is unpacked at its length of the moment
            return
        if self.cache_at_first != self.cache_bytes:
            raise StepFailed(
                f"the cache grows while it decodes: {self.cache_at_first:,} bytes after the first token, "
                f"{self.cache_bytes:,} after the last, though it was allocated once"
            )
        *_, before, last = [None, None, *self.decode_peaks]
        if self.device.type == "cuda" and before is not None and last is not None and last - before > BLOCK:
            raise StepFailed(
                f"memory grows while it decodes: its peak is {last - before:,.0f} bytes higher in the last quarter of "
                f"the tokens than in the third (allowed: {BLOCK:,})"
            )

    @torch.inference_mode()
    def go(self) -> None:
        """Its cache is freed once its size is known."""
        peak = Peak(self.device)
        begun = self._begin(torch.Generator().manual_seed(0))
        next_B1 = begun.token
        self.prefill_peak = peak.grown()
        for tokens in quarters(self.sizes.new_tokens):
            peak.begin()
            for _ in range(tokens):
                next_B1, seconds = self._timed(partial(begun.step, next_B1))
                self.steps.append(seconds)
                self.cache_at_first = self.cache_at_first or begun.cached()
            self.decode_peaks.append(peak.grown())
        self.cache_bytes = begun.cached()
        if self.compiled:
            torch._dynamo.reset()  # a captured graph keeps its memory

    def _begin(self, generator: torch.Generator) -> Begun:
        decoding = self._decoding()
        next_B1, self.prefill = self._timed(partial(decoding.prefill, self._ids(self.sizes.prompt, generator)))
        return Begun(decoding.step, next_B1, lambda: decoding.cache_bytes)

    def _decoding(self) -> Decoding:
        sizes = self.sizes
        decoding = Decoding(self.model, sizes.batch, sizes.room, cache=self.cache, compiled=self.compiled)
        self.kernel = decoding.kernel
        return decoding

    def _ids(self, tokens: int, generator: torch.Generator) -> Tensor:
        size = (self.sizes.batch, tokens)
        return torch.randint(self.model.shape.vocab_size, size, generator=generator).to(self.device)

    def _timed(self, work: Callable[[], Tensor]) -> tuple[Tensor, float]:
        """The next token, and the seconds until the device has it."""
        self._wait()
        started = time.perf_counter()
        next_B1 = work()
        self._wait()
        return next_B1, time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class WarmRun(Run):
    """Decoding alone, with a cache of full length that is written in all its places: Linux gives memory out when it is
    written, and a cache of zeros that nobody wrote takes none."""

    def _begin(self, generator: torch.Generator) -> Begun:
        decoding = self._decoding()
        decoding.warm(self.sizes.prompt)
        return Begun(decoding.step, self._ids(1, generator), lambda: decoding.cache_bytes)


class FilledRun(Run):
    """Decoding alone: nothing is prefilled, and each new token copies every owner's cache into one a token longer."""

    grows = True

    def _begin(self, generator: torch.Generator) -> Begun:
        self.compiled = False
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

        def step(next_B1: Tensor) -> Tensor:
            return self.model(next_B1, past_key_values=cache, use_cache=True).logits.argmax(-1)

        def cached() -> int:
            parts = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
            return sum(part.numel() * part.element_size() for part in parts if part is not None)

        return Begun(step, self._ids(1, generator), cached)


def quarters(tokens: int) -> list[int]:
    """Numbers of tokens, the later quarters equally many; one number where there are so few tokens that a later quarter
    may still compile and capture a graph."""
    each = tokens // 4 if tokens >= _FEWEST_FOR_QUARTERS else 0
    return [tokens - 3 * each, *([each] * 3 if each else [])]


PROTOCOLS: dict[str, type[Run]] = {"prefill": Run, "warm": WarmRun, "filled": FilledRun}
