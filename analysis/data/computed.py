"""Metrics that are computed from a variant's other results, as rows of the long table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from analysis.data import frame
from analysis.data.frame import Row
from analysis.data.metrics import COMPUTED, METRICS, Metric
from analysis.data.states import TRUSTED
from sweeps.store.errors import UserError
from sweeps.store.states import StepState


def with_computed(table: pd.DataFrame) -> pd.DataFrame:
    """The long table with a row per variant for each metric that has `compute`. Raises UserError where
    the function raises anything."""
    computed = {name: metric for name, metric in METRICS.items() if metric.compute}
    if not computed:
        return table
    rows = frame.records(table)
    variants: dict[str, list[Row]] = {}
    for row in rows:
        variants.setdefault(row["variant"], []).append(row)
    return frame.make([*rows, *(_row(own, name, computed[name]) for own in variants.values() for name in computed)])


def _row(rows: Sequence[Row], name: str, metric: Metric) -> Row:
    cells = [row for row in rows if row["state"] in TRUSTED and row["value"] is not None]
    assert metric.compute is not None
    try:
        value, stderr = found = metric.compute(cells) or (None, None)
        for number in filter(None, found):
            if not math.isfinite(number):
                raise ValueError(f"gives {number}, which is not finite")
    except Exception as error:  # an extension's function may raise anything
        fault = f"{type(error).__name__}: {error}"
        raise UserError(f"metric = {name}: variant {rows[0]['variant']}: {fault}") from error
    identity = {column: rows[0][column] for column in ("sweep", *frame.IDENTITY)}
    reason = "cannot be computed from its results" if value is None else None
    cell = {"kind": COMPUTED, "metric": name, "value": value, "stderr": stderr, "reason": reason}
    return {**identity, **cell, "in_axis": False, "in_accuracy": False, "state": StepState.DONE.value}
