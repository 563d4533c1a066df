"""The largest batch that a layout can decode with a full cache: tried, not computed, until memory ends.

A trial is a run with a cache of full length that is handed in. On CUDA memory ends
where the device's does. On a CPU it ends at the recipe's `memory_gib`, which weights, cache and all else that a trial
takes have to fit into: a machine's whole memory is other processes' too. Prompts are left out, because they can be
prefilled a part of the batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MOST = 65_535
"""The largest batch that is tried: CUDA kernels count sequences along a side of their grid that ends there."""
PRECISION = 100
"""A batch is the largest to a hundredth of itself."""


@dataclass(frozen=True)
class Largest:
    """`batch`: 0 where not even one sequence fits."""

    batch: int
    trials: int


def largest_batch(fits: Callable[[int], bool], upper: int) -> Largest:
    """By bisection, from `upper` on down, which the cache alone would fill memory at: more cannot fit."""
    fitting, failing, trials = 0, min(upper, MOST) + 1, 0
    while failing - fitting > max(1, fitting // PRECISION):
        batch = (fitting + failing) // 2
        trials += 1
        if fits(batch):
            fitting = batch
        else:
            failing = batch
    return Largest(fitting, trials)
