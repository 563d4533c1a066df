"""What measure steps recorded, as the figures of memory and speed draw it: against batch size, or against context."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import pandas as pd

from analysis.data import frame
from analysis.data.frame import Row
from analysis.data.measured import SAME_CONTEXT
from analysis.figures.geometry import MARKER_ROOM, Scale, byte_ticks, evenly, log_scale

Axis = Literal["batch", "context"]
AXIS_LABELS: dict[Axis, str] = {"batch": "batch size", "context": "context, tokens"}


@dataclass(frozen=True)
class Measurement:
    """One metric of one cell of a variant. `x` is its batch size or its context, whichever is the axis; a `context` of
    0 is unknown (of an import). `kv_bytes_per_token` is the formula's."""

    variant: str
    family: str | None
    budget: int | None
    kv_bytes_per_token: int | None
    step: str | None
    machine: str | None
    metric: str
    batch: int
    context: int
    value: float
    x: int


@dataclass(frozen=True)
class Measurements:
    """The measurements of a table that share an axis. `others` counts the variants that have none of them, as they
    were measured at shorter contexts alone."""

    axis: Axis
    cells: list[Measurement]
    others: int

    @property
    def remarks(self) -> list[str]:
        return [f"{self.others} measured at other contexts: not drawn"] if self.others else []

    def scale(self, values: list[int], room: float = MARKER_ROOM) -> Scale:
        """The horizontal axis over these batch sizes or contexts."""
        return log_scale(values, partial(_size_ticks, values), room=room)


def _size_ticks(values: list[int], low: float, high: float, most: int) -> list[float]:
    """Powers of two; the values themselves where too few of those are between them."""
    ticks = byte_ticks(low, high, most)
    return ticks if len(ticks) > 1 else [float(value) for value in evenly(sorted(values), most)]


def drawn_measurements(table: pd.DataFrame) -> Measurements:
    """What is drawn of a long table: by batch size at the longest context; where all have one batch size, by context.
    Numbers at an unknown context are taken where there are no others."""
    every = [r for r in frame.records(table) if r["kind"] == "measure" and r["batch"] and r["value"] is not None]
    rows = [row for row in every if row["context"]] or every
    axis: Axis = "batch"
    if len({row["batch"] for row in rows}) == 1 and len({row["context"] for row in rows}) > 1:
        axis, rows = "context", [row for row in rows if row["context"]]
    else:
        longest = max((row["context"] or 0 for row in rows), default=0)
        rows = [row for row in rows if (row["context"] or 0) >= SAME_CONTEXT * longest]
    others = {row["variant"] for row in every} - {row["variant"] for row in rows}
    return Measurements(axis, [_measurement(row, axis) for row in rows], len(others))


def _measurement(row: Row, axis: Axis) -> Measurement:
    return Measurement(
        variant=row["variant"],
        family=row["family"],
        budget=row["budget"],
        kv_bytes_per_token=row["kv_bytes_per_token"],
        step=row["step"],
        machine=row["machine"],
        metric=row["metric"],
        batch=row["batch"],
        context=row["context"] or 0,
        value=row["value"],
        x=row[axis] or 0,
    )
