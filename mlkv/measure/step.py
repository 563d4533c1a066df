"""The measure step: decode memory and speed of a shape with a layout, at given batch sizes and contexts.

Weights are random. mlkv/measure/runs.py says what a run of a cell is, session.py how the runs of several variants take
turns, bench.py what numbers come of them. Where the cache holds packed integers, the times are also those of packing
and unpacking them: on a CPU more than what reading fewer bytes saves.
"""

from __future__ import annotations

from pathlib import Path

from ..cache.formats import AS_COMPUTED
from ..context import Context, Outcome
from ..layout import KVLayout
from ..recipes import MeasureRecipe
from ..shape import DecoderShape
from .bench import Subject
from .session import measure_together


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
    [result] = measure_together(recipe, [Subject(shape, layout, cache)], ctx)
    if isinstance(result, Exception):
        raise result
    return result
