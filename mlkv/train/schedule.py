"""The arithmetic of a training run: how many steps, what learning rate at each, and whether the losses are in order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from ..training_recipes import TrainRecipe

SPIKE = 1.0
"""Nats above the running median of the logged losses that count as a spike.

A threshold of our own, far above the noise between logged rows. Over the median, not the mean, so that one spike does
not hide the next; of few rows, so that the high losses of a run's beginning do not raise it."""
MEDIAN_ROWS = 25
FEWEST_ROWS = 5
"""Rows before the first that can be a spike: a median of fewer says nothing."""


@dataclass(frozen=True)
class Spike:
    """A logged loss far above the `median` of those before it, in nats."""

    step: int
    loss: float
    median: float


@dataclass(frozen=True)
class Divergence:
    """An end far above what was reached: `last`, the loss at the end, over `best`, the lowest running median, which
    ends at `step`; in nats."""

    last: float
    best: float
    step: int


@dataclass(frozen=True)
class Schedule:
    """`steps` optimiser steps of `tokens_per_step` tokens (the corpus's mean, padding left out)."""

    recipe: TrainRecipe
    steps: int
    tokens_per_step: float

    @classmethod
    def of(cls, recipe: TrainRecipe, rows: int, tokens: int) -> Schedule:
        """The schedule of `recipe` over a corpus of `rows` rows with `tokens` tokens in all."""
        per_step = recipe.batch_size * tokens / rows
        if recipe.last_step is not None:
            return cls(recipe, recipe.last_step, per_step)
        if recipe.tokens is not None:
            return cls(recipe, math.ceil(recipe.tokens / per_step), per_step)
        assert recipe.epochs is not None
        return cls(recipe, math.ceil(recipe.epochs * rows / recipe.batch_size), per_step)

    @property
    def warmup_steps(self) -> int:
        """Of a chain of runs: those of the first, as all of them begin with the same steps."""
        return round(self.recipe.warmup * (self.recipe.rungs or (self.steps,))[0])

    @property
    def trunk_steps(self) -> int:
        """Steps before the decay of `wsd`."""
        return self.recipe.trunk_of(self.steps)

    @property
    def trunk_ends(self) -> set[int]:
        """The last steps of the trunks of a chain: this run's own, and those of the shorter ones that it passes."""
        return {self.recipe.trunk_of(rung) for rung in self.recipe.rungs}

    def tokens_by(self, step: int) -> int:
        return round(step * self.tokens_per_step)

    def learning_rate_factor(self, step: int) -> float:
        """Share of the peak learning rate that step number `step` (from 0) uses: a linear warmup whose last step is at
        the peak, then the schedule, down to `min_lr_ratio` just after the last step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.recipe.schedule == "wsd":
            return self._wsd_factor(step)
        done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        shape = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        floor = self.recipe.min_lr_ratio
        return floor + (1 - floor) * shape[self.recipe.schedule]

    def _wsd_factor(self, step: int) -> float:
        """After the warmup. The decay is 1 − √, which ends lower than a linear one (arXiv 2405.18392).

        Exactly 1 at the first step of the decay too: the optimizer's state at the end of a trunk holds the rate of the
        step after it, and a longer run takes that step at the peak.
        """
        if step <= self.trunk_steps:
            return 1.0
        left = 1 - math.sqrt(min(1.0, (step - self.trunk_steps) / (self.steps - self.trunk_steps)))
        return self.recipe.min_lr_ratio + (1 - self.recipe.min_lr_ratio) * left


def spikes(losses: list[tuple[int, float]], warmup_steps: int) -> list[Spike]:
    """The (step, loss) rows after warmup that lie SPIKE or more above the median of the MEDIAN_ROWS rows before them.

    A run that starts high and comes down has none, as the rows before were higher.
    """
    every = (spike_of_last(losses[max(0, i - MEDIAN_ROWS) : i + 1], warmup_steps) for i in range(len(losses)))
    return [spike for spike in every if spike]


def spike_of_last(losses: list[tuple[int, float]], warmup_steps: int) -> Spike | None:
    """The last row, if it is a spike over the MEDIAN_ROWS before it."""
    step, loss = losses[-1]
    before = [earlier for _, earlier in losses[-1 - MEDIAN_ROWS : -1]]
    if step <= warmup_steps or len(before) < FEWEST_ROWS or loss < median(before) + SPIKE:
        return None
    return Spike(step, loss, median(before))


def divergence(losses: list[tuple[int, float]], warmup_steps: int) -> Divergence | None:
    """Whether the loss at the end (final_loss) lies SPIKE or more above the lowest median of MEDIAN_ROWS rows after
    warmup, of all rows where they are fewer. So a loss that climbs slowly is seen too, over which a running median
    climbs with it."""
    rows = [row for row in losses if row[0] > warmup_steps]
    last, width = final_loss(losses), min(MEDIAN_ROWS, len(rows))
    if last is None or width < FEWEST_ROWS:
        return None
    windows = (rows[i : i + width] for i in range(len(rows) - width + 1))
    best, step = min((median(loss for _, loss in window), window[-1][0]) for window in windows)
    return Divergence(last, best, step) if last >= best + SPIKE else None


def final_loss(losses: list[tuple[int, float]]) -> float | None:
    """Mean loss of the last tenth of the logged rows (one at least); None if nothing was logged."""
    last = [loss for _, loss in losses[-max(1, len(losses) // 10) :]]
    return sum(last) / len(last) if last else None
