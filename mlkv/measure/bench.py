"""What is measured of one variant: its repetitions of every cell, and the numbers that come of them."""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median, stdev
from typing import NamedTuple

import torch

from ..cache.formats import AS_COMPUTED, CACHES
from ..context import MetricRow
from ..device import DTYPES, available_memory, is_out_of_memory
from ..files import Json
from ..hf import MLKVForCausalLM
from ..layout import KVLayout, mha
from ..recipes import MeasureRecipe
from ..shape import DecoderShape
from .floors import step_floors
from .largest_batch import largest_batch
from .models import Models, weight_bytes
from .processor import processor
from .runs import PROTOCOLS, Run, Sizes, WarmRun


class Cell(NamedTuple):
    batch: int
    context: int


def cells_of(recipe: MeasureRecipe) -> list[Cell]:
    """In the order of the results, whatever the order of the turns."""
    return [Cell(*each) for each in product(recipe.batch_sizes, recipe.contexts)]


@dataclass(frozen=True)
class Subject:
    """A variant, as far as it is measured."""

    shape: DecoderShape
    layout: KVLayout
    cache: str = AS_COMPUTED

    @property
    def is_mha(self) -> bool:
        return self.cache == AS_COMPUTED and self.layout == mha(self.shape.layers, self.shape.heads)


@dataclass(frozen=True)
class Measured:
    """A metric of a cell. A time or a speed has the number `n` of its runs and the standard error s/√n over them, which
    a single run does not give."""

    value: float | None
    stderr: float | None = None
    n: int | None = None

    @classmethod
    def of_runs(cls, runs: Sequence[float]) -> Measured:
        """The median over the runs."""
        return cls(median(runs), stdev(runs) / math.sqrt(len(runs)) if len(runs) > 1 else None, len(runs))


Metrics = dict[str, Measured]


class Bench:
    def __init__(self, recipe: MeasureRecipe, subject: Subject, device: torch.device, models: Models) -> None:
        self.recipe, self.subject, self.device = recipe, subject, device
        self.cells: dict[Cell, Metrics] = {}
        self.variant: list[MetricRow] = []
        """What is not of a cell."""
        self.seconds = 0.0
        """Spent on this variant."""
        self.error: Exception | None = None
        """Why there are no results."""
        self._models = models
        self._made: MLKVForCausalLM | None = None
        self._runs: dict[Cell, list[Run]] = {}
        self._failed: set[Cell] = set()
        self._kernel = ""

    def repeat(self, cell: Cell) -> Metrics:
        """Run a cell once more, unless it has run out of memory before; what this run alone gave."""
        if cell in self._failed:
            return {}
        try:
            self._check_memory(cell)
            run = PROTOCOLS[self.recipe.protocol](self._model(), self._sizes(cell), self.device, self.subject.cache)
            run.go()
            run.check(self._cache_bytes(cell))
        except (RuntimeError, MemoryError) as error:
            self._failed.add(cell)
            self._runs.pop(cell, None)
            self._recover(error)
            return {"oom": Measured(1.0)}
        self._runs.setdefault(cell, []).append(run)
        self._kernel = run.kernel
        return {name: Measured(value) for name, value in _of_run(run).items()}

    def find_largest(self, context: int) -> None:
        """Search the largest batch at a context, to the recipe's limit or the end of the GPU's memory."""
        if per_sequence := self._cache_bytes(Cell(1, context)):
            budget = self._budget()
            found = largest_batch(lambda batch: self._fits(batch, context, budget), int(budget / per_sequence))
            self.variant.append(MetricRow("largest_batch", float(found.batch), n=found.trials, context=context))

    def conclude(self, reference: Bench | None) -> None:
        """Make the metrics of every cell. `reference`: the variant that was measured beside this one, whose step times
        are divided by in each repetition."""
        if self.error is not None:
            return
        for cell in cells_of(self.recipe):
            self.cells[cell] = self._metrics(cell, reference) if cell in self._runs else {"oom": Measured(1.0)}
        if self._made:
            self.variant.append(MetricRow("weights_bytes", float(weight_bytes(self._made))))

    @property
    def rows(self) -> list[MetricRow]:
        return self.variant + [
            MetricRow(name, **asdict(each), batch=cell.batch, context=cell.context)
            for cell, metrics in self.cells.items()
            for name, each in metrics.items()
        ]

    @contextmanager
    def timed(self) -> Iterator[None]:
        """What fails inside is this variant's error, and the others of a session go on."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # which hold the tensors of what failed
            self.error = error
        finally:
            self.seconds += time.perf_counter() - started

    def facts(self) -> Json:
        cuda = self.device.type == "cuda"
        return {
            "parameters": sum(p.numel() for p in self._made.parameters()) if self._made else None,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            **({} if cuda else {"processor": processor()}),
            "dtype": self.recipe.dtype,
            **({"cache": self.subject.cache} if self.subject.cache != AS_COMPUTED else {}),
            "threads": self.recipe.threads,
            **({"attention": self._kernel} if self._kernel else {}),
        }

    def _model(self) -> MLKVForCausalLM:
        """On its device, and warm: a first run allocates what only a first one needs."""
        if self._made is None:
            self._made = self._models.make(self.subject.shape, self.subject.layout)
            self._models.bring(self._made)
            PROTOCOLS[self.recipe.protocol](self._made, Sizes(1, 1, 1), self.device, self.subject.cache).go()
        self._models.bring(self._made)
        return self._made

    def _sizes(self, cell: Cell) -> Sizes:
        return Sizes(*cell, self.recipe.new_tokens)

    def _check_memory(self, cell: Cell) -> None:
        # Linux grants more memory than it has, and kills the process that then uses it: a cell that cannot fit must
        # raise here instead.
        if self.device.type == "cpu" and (needed := self._cache_bytes(cell)) > available_memory():
            raise MemoryError(f"the cache alone needs {needed} bytes")

    def _cache_bytes(self, cell: Cell) -> int:
        """By formula."""
        element = DTYPES[self.recipe.dtype].itemsize
        form = CACHES[self.subject.cache]
        per_token = form.kv_bytes_per_token(self.subject.layout, self.subject.shape.head_dim, element)
        return per_token * cell.batch * (cell.context + self.recipe.new_tokens)

    def _recover(self, error: Exception) -> None:
        """Free what a run that found no memory left behind. Raises what is no lack of memory."""
        if not is_out_of_memory(error):
            raise error
        error.__traceback__ = None  # whose frames hold the tensors
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _metrics(self, cell: Cell, reference: Bench | None) -> Metrics:
        runs, recipe = self._runs[cell], self.recipe
        steps = [median(run.steps) for run in runs]
        tokens = cell.context + (recipe.new_tokens + 1) / 2
        floors = step_floors(
            self.subject.shape,
            self.subject.layout,
            self.subject.cache,
            DTYPES[recipe.dtype].itemsize,
            cell.batch,
            tokens,
        )
        cached = runs[0].cache_bytes
        of_reference = [median(run.steps) for run in (reference._runs.get(cell, []) if reference else [])]
        ratios = [own / other for own, other in zip(steps, of_reference, strict=True)] if of_reference else []
        return {
            "cache_bytes": Measured(float(cached)),
            "cache_formula_bytes": Measured(float(self._cache_bytes(cell))),
            "cache_bytes_per_token": Measured(cached / (cell.batch * (cell.context + recipe.new_tokens))),
            "peak_bytes": Measured(_highest([run.prefill_peak for run in runs] + [run.decode_peak for run in runs])),
            **self._of_prefills(runs),
            "decode_peak_bytes": Measured(_highest([run.decode_peak for run in runs])),
            "step_seconds": Measured.of_runs(steps),
            **({"step_over_mha": Measured.of_runs(ratios)} if ratios else {}),
            "tokens_per_second": Measured.of_runs([cell.batch / seconds for seconds in steps]),
            "step_bytes_once": Measured(floors.once),
            "step_bytes_by_layer": Measured(floors.by_layer),
            "step_operations": Measured(floors.operations),
            "once_bytes_per_second": Measured.of_runs([floors.once / seconds for seconds in steps]),
            "by_layer_bytes_per_second": Measured.of_runs([floors.by_layer / seconds for seconds in steps]),
        }

    def _of_prefills(self, runs: Sequence[Run]) -> Metrics:
        """Nothing where the protocol hands a cache in."""
        seconds = [run.prefill for run in runs if run.prefill is not None]
        peak = Measured(_highest([run.prefill_peak for run in runs]))
        return {"prefill_peak_bytes": peak, "prefill_seconds": Measured.of_runs(seconds)} if seconds else {}

    def _budget(self) -> float:
        """Bytes beside the weights that a trial may take."""
        model = self._model()
        if self.recipe.memory_gib:
            return max(0.0, self.recipe.memory_gib * 2**30 - weight_bytes(model))
        torch.cuda.empty_cache()
        return float(torch.cuda.mem_get_info()[0])

    def _fits(self, batch: int, context: int, budget: float) -> bool:
        """Whether a trial ends well, within the budget."""
        steps = min(2, self.recipe.new_tokens)  # what a step takes, the second shows too
        sizes = Sizes(batch, context + self.recipe.new_tokens - steps, steps)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # blocks of another trial's sizes are of no use to this one
        try:
            self._check_memory(Cell(batch, context))
            trial = WarmRun(self._model(), sizes, self.device, self.subject.cache, compiled=False)
            trial.go()
        except (RuntimeError, MemoryError) as error:
            self._recover(error)
            return False
        peak = _highest([trial.prefill_peak, trial.decode_peak])
        return (trial.cache_bytes if peak is None else max(peak, trial.cache_bytes)) <= budget


def _of_run(run: Run) -> dict[str, float]:
    prefill = {} if run.prefill is None else {"prefill_seconds": run.prefill}
    return {**prefill, "step_seconds": median(run.steps)}


def _highest(peaks: Sequence[float | None]) -> float | None:
    """None where the system does not report one."""
    known = [peak for peak in peaks if peak is not None]
    return max(known) if len(known) == len(peaks) else None
