"""The measure step: decode memory and speed of a shape with a layout, at given batch sizes and contexts.

Weights are random. Protocol `prefill`: one run prefills `context` tokens into a cache that is allocated at its full
length, then decodes `new_tokens` tokens one by one. Protocol `filled`: one run starts from a cache of `context` random
keys and values and decodes as many tokens, and each makes the cache longer. Where the cache holds packed integers, the
times are also those of packing and unpacking them: on a CPU more than what reading fewer bytes saves.

`peak_bytes` is the most memory that the runs of a cell added: on CUDA the allocator's peak minus what was allocated
before; on a CPU the growth of the process's resident size, which counts whole pages and is coarser (None where the
system does not report it). Each model has a warm-up run before, which allocates what only a first run needs.

Legend: `B` batch, `T` tokens, `G` KV heads, `S` cached tokens, `K` head width.
"""

from __future__ import annotations

import ctypes
import gc
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median, stdev

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache

from ..attention import update_cache
from ..cache.formats import AS_COMPUTED, CACHES
from ..cache.quantised import QuantisedCache
from ..context import Context, Interrupted, MetricRow, Outcome, StepFailed
from ..device import DTYPES, available_memory, is_out_of_memory, require_device
from ..hf import MLKVForCausalLM
from ..layout import KVLayout
from ..recipes import MeasureRecipe
from ..shape import DecoderShape


def run(
    recipe: MeasureRecipe,
    out: Path,
    ctx: Context,
    *,
    shape: DecoderShape,
    layout: KVLayout,
    cache: str = AS_COMPUTED,
) -> Outcome:
    """Measure every batch size at every context; a cell that runs out of memory has the one row `oom`.

    Raises StepFailed where the device is missing or learned positions end before the longest context.
    """
    device = require_device(recipe.device)
    try:
        recipe.check_fit(shape)
    except ValueError as error:
        raise StepFailed(str(error)) from None
    torch.set_num_threads(recipe.threads)
    bench = Bench(recipe, shape, layout, device, cache)
    metrics: list[MetricRow] = []
    cells = list(product(recipe.batch_sizes, recipe.contexts))
    for done, (batch, context) in enumerate(cells, start=1):
        if ctx.should_stop():
            raise Interrupted(f"stopped after {done - 1} of {len(cells)} cells; a measurement is made in one go")
        measured = bench.measure(batch, context)
        values = {name: each.value for name, each in measured.items()}
        ctx.log({"step": done, "steps": len(cells), "batch": batch, "context": context, **values})
        metrics += [MetricRow(name, **asdict(each), batch=batch, context=context) for name, each in measured.items()]
    return Outcome(metrics, bench.facts())


@dataclass(frozen=True)
class Measured:
    """A metric of a cell. A time or a speed has the number `n` of its runs and the standard error s/√n over them, which
    a single run does not give."""

    value: float | None
    stderr: float | None = None
    n: int | None = None

    @classmethod
    def of_runs(cls, value: float, runs: Sequence[float]) -> Measured:
        """`value` over all runs; `runs` has the value of each run alone."""
        return cls(value, stdev(runs) / math.sqrt(len(runs)) if len(runs) > 1 else None, len(runs))


@dataclass
class Bench:
    recipe: MeasureRecipe
    shape: DecoderShape
    layout: KVLayout
    device: torch.device
    cache: str = AS_COMPUTED
    _model: MLKVForCausalLM | None = None

    def measure(self, batch: int, context: int) -> dict[str, Measured]:
        """The cell's metrics, or `oom` alone."""
        try:
            return self._measure(batch, context)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return {"oom": Measured(1.0)}

    def _measure(self, batch: int, context: int) -> dict[str, Measured]:
        self._check_memory(batch, context)
        kind = PROTOCOLS[self.recipe.protocol]
        if self._model is None:
            dtype = DTYPES[self.recipe.dtype]
            model = MLKVForCausalLM.from_shape(self.shape, self.layout, seed=0, dtype=dtype)
            self._model = model.to(self.device).eval()
            kind(self._model, 1, 1, 1, self.device, self.cache).go()
        model, peak = self._model, Peak(self.device)
        sizes = (batch, context, self.recipe.new_tokens)
        runs = [kind(model, *sizes, self.device, self.cache) for _ in range(self.recipe.repeats)]
        for decoding in runs:
            decoding.go()
        prefills = [decoding.prefill for decoding in runs if decoding.prefill is not None]
        step = median(seconds for decoding in runs for seconds in decoding.steps)
        steps = [median(decoding.steps) for decoding in runs]
        cache_bytes = runs[0].cache_bytes
        return {
            "cache_bytes": Measured(float(cache_bytes)),
            "cache_bytes_per_token": Measured(cache_bytes / (batch * (context + self.recipe.new_tokens))),
            "peak_bytes": Measured(peak.grown()),
            **({"prefill_seconds": Measured.of_runs(median(prefills), prefills)} if prefills else {}),
            "step_seconds": Measured.of_runs(step, steps),
            "tokens_per_second": Measured.of_runs(batch / step, [batch / seconds for seconds in steps]),
        }

    def _check_memory(self, batch: int, context: int) -> None:
        # Linux grants more memory than it has, and kills the process that then uses it: a cell that cannot fit must
        # raise here instead.
        element = DTYPES[self.recipe.dtype].itemsize
        per_token = CACHES[self.cache].kv_bytes_per_token(self.layout, self.shape.head_dim, element)
        needed = per_token * batch * (context + self.recipe.new_tokens)
        if self.device.type == "cpu" and needed > available_memory():
            raise MemoryError(f"the cache alone needs {needed} bytes")

    def facts(self) -> dict[str, str | int | None]:
        cuda = self.device.type == "cuda"
        return {
            "parameters": sum(p.numel() for p in self._model.parameters()) if self._model else None,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            **({} if cuda else {"processor": processor()}),
            "dtype": self.recipe.dtype,
            **({"cache": self.cache} if self.cache != AS_COMPUTED else {}),
            "threads": self.recipe.threads,
        }


class Run:
    """One prefill and decode on a cache of its own, which is freed once its size is known."""

    def __init__(
        self,
        model: MLKVForCausalLM,
        batch: int,
        context: int,
        new_tokens: int,
        device: torch.device,
        cache: str = AS_COMPUTED,
    ) -> None:
        self.model, self.batch, self.context, self.new_tokens, self.device = model, batch, context, new_tokens, device
        self.cache = cache
        self.prefill: float | None = None
        self.cache_bytes = 0
        self.steps: list[float] = []

    @torch.inference_mode()
    def go(self) -> None:
        cache, next_B1 = self._begin(torch.Generator().manual_seed(0))
        for _ in range(self.new_tokens):
            next_B1, seconds = self._step(next_B1, cache)
            self.steps.append(seconds)
        self.cache_bytes = sum(
            part.numel() * part.element_size()
            for layer in cache.layers
            for part in (getattr(layer, "keys", None), getattr(layer, "values", None))
            if part is not None
        )

    def _begin(self, generator: torch.Generator) -> tuple[Cache, Tensor]:
        """A cache of `context` tokens and the token that comes next."""
        config, length = self.model.config, self.context + self.new_tokens
        packed = CACHES[self.cache].bits is not None
        cache = QuantisedCache(config, self.cache, length) if packed else StaticCache(config, max_cache_len=length)
        next_B1, self.prefill = self._step(self._ids(self.context, generator), cache)
        return cache, next_B1

    def _ids(self, tokens: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.model.shape.vocab_size, (self.batch, tokens), generator=generator).to(self.device)

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
                torch.randn(self.batch, heads, self.context, width, dtype=self.model.dtype, device=self.device)
                for heads, width in layout.cached_sizes(owner, self.model.shape.head_dim)
            )
            update_cache(cache, keys, values, layout.cache_layer(owner))
        return cache, self._ids(1, generator)


PROTOCOLS = {"prefill": Run, "filled": FilledRun}


class Peak:
    """How far memory grew at its highest since this was made."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before: int | None = torch.cuda.memory_allocated()
        else:
            _return_free_memory()
            self.before = _resident("VmRSS") if _reset_peak() else None

    def grown(self) -> float | None:
        if self.before is None:
            return None
        peak = torch.cuda.max_memory_allocated() if self.cuda else _resident("VmHWM")
        return float(max(0, (peak or 0) - self.before))


def processor() -> str:
    """The model of this machine's processor, as far as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _return_free_memory() -> None:
    """Return to the system the memory that earlier work freed, as far as the C library can: else the peak would not
    count what a cell uses of it."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _reset_peak() -> bool:
    """Reset Linux's peak of this process's resident size; False where that is impossible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None
