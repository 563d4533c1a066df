"""Several variants measured in turns: a repetition of each, then the next repetition.

A machine drifts (heat, neighbours, what else it does), and a variant that is measured after the others is measured on
another machine. Here every round runs each variant once in each cell, the variants of a cell right after each other, in
orders drawn anew from a fixed seed. How fast the machine copies memory is measured in every round too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product

import torch

from ..context import Context, Interrupted, MetricRow, Outcome, Row, StepFailed
from ..device import DTYPES, require_device
from ..recipes import MeasureRecipe
from .bench import Bench, Cell, Measured, Subject, cells_of
from .memory import collecting_new_garbage
from .models import Models
from .processor import CopyBandwidth, cache_of_processor

Result = Outcome | Exception
"""What came of a variant, or why nothing did."""


class Session:
    """Raises StepFailed where the device is missing or learned positions end before the longest context."""

    def __init__(self, recipe: MeasureRecipe, subjects: Sequence[Subject], ctx: Context) -> None:
        self.recipe, self.ctx = recipe, ctx
        self.device = require_device(recipe.device)
        try:
            for subject in subjects:
                recipe.check_fit(subject.shape)
        except ValueError as error:
            raise StepFailed(str(error)) from None
        torch.set_num_threads(recipe.threads)
        models = Models(self.device, DTYPES[recipe.dtype])
        self.cells = cells_of(recipe)
        self.benches = [Bench(recipe, subject, self.device, models) for subject in subjects]
        self._copy = CopyBandwidth(self.device)
        self._copies: list[float] = []
        self._order = random.Random(0)
        self._done = 0

    @property
    def turns(self) -> int:
        """All runs, and all searches of a largest batch."""
        return len(self.benches) * (len(self.cells) * self.recipe.repeats + len(self._searched))

    @property
    def _searched(self) -> tuple[int, ...]:
        """The contexts whose largest batch is searched; none where nothing says when memory ends."""
        return self.recipe.contexts if self.recipe.memory_gib or self.device.type == "cuda" else ()

    def run(self) -> list[Result]:
        """Raises Interrupted on request: a measurement is made in one go."""
        started = time.perf_counter()
        with collecting_new_garbage():
            for number in range(self.recipe.repeats):
                self._round(number + 1)
            for bench, context in product(self.benches, self._searched):
                self._turn(bench, partial(bench.find_largest, context), context=context)
        reference = next((bench for bench in self.benches if bench.subject.is_mha and bench.error is None), None)
        for bench in self.benches:
            with bench.timed():
                bench.conclude(reference)
        seconds = time.perf_counter() - started
        return [bench.error or self._outcome(bench, seconds) for bench in self.benches]

    def _for_others(self, bench: Bench) -> float:
        """Of the first variant, whose step has all of the session's time; of any other, its own time below zero."""
        if bench is self.benches[0]:
            return sum(other.seconds for other in self.benches[1:])
        return -bench.seconds

    def _round(self, number: int) -> None:
        self._copies.append(self._copy.measure())
        for cell in self._order.sample(self.cells, len(self.cells)):
            for bench in self._order.sample(self.benches, len(self.benches)):
                place = {"round": number, **cell._asdict()}
                self._turn(bench, partial(bench.repeat, cell), **place)

    def _turn(self, bench: Bench, work: Callable[[], dict[str, Measured] | None], **place: int) -> None:
        """One variant's turn, unless it has failed."""
        if self.ctx.should_stop():
            raise Interrupted(f"stopped after {self._done} of {self.turns} runs; a measurement is made in one go")
        found: dict[str, Measured] | None = None
        if bench.error is None:
            with bench.timed():
                found = work()
        self._done += 1
        # The rows are the first variant's, so they have its numbers alone.
        own = found if bench is self.benches[0] else None
        values = {name: each.value for name, each in (own or {}).items()}
        which = {"variant": self.benches.index(bench) + 1, "variants": len(self.benches)}
        self.ctx.log({"step": self._done, "steps": self.turns, **which, **place, **values})

    def _outcome(self, bench: Bench, seconds: float) -> Outcome:
        copied = asdict(Measured.of_runs(self._copies))
        cache = cache_of_processor(self.device)
        machine = [
            MetricRow("copy_bytes_per_second", **copied),
            *([MetricRow("processor_cache_bytes", float(cache))] if cache else []),
        ]
        facts = {"session_variants": len(self.benches), "session_seconds": round(seconds, 3)}
        return Outcome([*machine, *bench.rows], bench.facts() | facts, self._for_others(bench))


def measure_together(recipe: MeasureRecipe, subjects: Sequence[Subject], ctx: Context) -> list[Result]:
    """Of each variant what came of it, or its error. Raises as Session does."""
    return Session(recipe, subjects, ctx).run()


def rows_of(outcome: Outcome) -> list[Row]:
    """A row for each cell, with all its metrics, for a step to log when it has been measured."""
    cells: dict[Cell, Row] = {}
    for row in outcome.metrics:
        if row.batch is not None and row.context is not None:
            cell = Cell(row.batch, row.context)
            cells.setdefault(cell, dict(cell._asdict()))[row.metric] = row.value
    return [{"step": done, "steps": len(cells), **row} for done, row in enumerate(cells.values(), start=1)]
