"""Every number that steps logged while they ran, as one long table: from the store, or from W&B with the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import pandas as pd

from analysis.data import frame
from analysis.data.frame import Row
from sweeps.steps.registry import axis_of
from sweeps.store.axis import shown_name
from sweeps.store.store import SavedSweep, Store
from sweeps.tracking.read.runs import LoggedRun, number

COLUMNS = {"step": "string", "kind": "string", "global_step": "Int64", "metric": "string", "value": "Float64"}
_WORDS = ("NaN", "Infinity", "-Infinity")
"""How W&B writes the numbers that JSON does not have."""


def of_store(store: Store, sweep: SavedSweep) -> pd.DataFrame:
    """A row per step, position on the step's own axis, and number logged there. What is not finite is NA."""
    steps = [store.step(id) for id in sorted(sweep.plan.steps)]
    cells = (
        cell
        for step in steps
        for position, row in step.history(axis_of(step.kind))
        for cell in _cells(step.id, step.kind, position, row)
    )
    return frame.make(cells, COLUMNS)


def of_runs(runs: Iterable[LoggedRun]) -> pd.DataFrame:
    """The same from W&B; a variant's run repeats its steps' rows and is left out."""
    cells: list[Row] = []
    for run in sorted((run for run in runs if run.job_type != "variant"), key=lambda run: run.id):
        axis = next(iter(run.axes.values()), "_step")
        for row in run.rows:
            position = int(row[axis] if axis in row else row.get("_step", 0))
            cells += _cells(run.id, run.job_type, position, row)
    return frame.make(cells, COLUMNS)


def _cells(step: str, kind: str, position: int, row: Mapping[str, object]) -> Iterator[Row]:
    place = {"step": step, "kind": kind, "global_step": position}
    for key in sorted(row):
        if not key.startswith("_") and _is_number(row[key]):
            yield {**place, "metric": shown_name(key), "value": number(row[key])}


def _is_number(value: object) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or value in _WORDS
