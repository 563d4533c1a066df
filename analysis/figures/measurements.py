"""What measure steps recorded, as the figures of memory and speed draw it: against batch size, or against context."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pandas as pd

from analysis.data import frame
from analysis.data.frame import Row
from analysis.data.measured import CACHE, CACHE_PER_TOKEN, OUT_OF_MEMORY, PEAK, SAME_CONTEXT, SPEED
from analysis.data.numbers import on_log_axis
from analysis.figures.geometry import MARKER_ROOM, Scale, byte_ticks, evenly, log_scale, not_drawn

Axis = Literal["batch", "context"]
_NOUNS = {CACHE: "cache", CACHE_PER_TOKEN: "size per token", PEAK: "peak", SPEED: "speed"}
AXIS_LABELS: dict[Axis, str] = {"batch": "batch size", "context": "context, tokens"}


@dataclass(frozen=True)
class Measurement:
    """One metric of one cell of a variant. `x` is its batch size or its context, whichever is the axis; a `context` of
    0 is unknown (of an import). `kv_bytes_per_token` is the formula's."""

    variant: str
    family: str | None
    budget: int | None
    kv_bytes_per_token: int | None
    cache: str | None
    step: str | None
    machine: str | None
    metric: str
    batch: int
    context: int
    value: float
    x: int

    @property
    def layout(self) -> str:
        """Family and KV heads; head counts of keys and values and the rank of a latent, which the label has:
        `MHA-36 r=48`."""
        family = re.escape(self.family or "")
        if named := re.search(rf"{family}-[\d.]+( k=[\d/]+ v=[\d/]+)?( r=[\d/]+)?(?= |$)", self.variant):
            return named[0]
        return f"{self.family}-{self.budget}"


@dataclass(frozen=True)
class Measurements:
    """The measurements of a table that share an axis. `others` counts the variants that have none of them, as they
    were measured at shorter contexts alone. `without_place` has the values that a logarithmic axis has no place for,
    by metric; None is a value that is missing or not finite."""

    axis: Axis
    cells: list[Measurement]
    others: int
    without_place: list[tuple[str, float | None]]

    def remarks(self, metrics: Sequence[str]) -> list[str]:
        """What a figure of these metrics leaves out."""
        found = [(_NOUNS[metric], value) for metric, value in self.without_place if metric in metrics]
        others = [f"{self.others} measured at other contexts: not drawn"] if self.others else []
        return [*others, *not_drawn(found)]

    def scale(self, values: list[int], room: float = MARKER_ROOM) -> Scale:
        """The horizontal axis over these batch sizes or contexts, whose numbers are longer."""
        return log_scale(values, partial(_size_ticks, values), 4 if self.axis == "context" else 6, room)


def _size_ticks(values: list[int], low: float, high: float, most: int) -> list[float]:
    """Powers of two; the values themselves where too few of those are between them."""
    ticks = byte_ticks(low, high, most)
    return ticks if len(ticks) > 1 else [float(value) for value in evenly(sorted(values), most)]


def drawn_measurements(table: pd.DataFrame) -> Measurements:
    """What is drawn of a long table: by batch size at the longest context; where there are more contexts than batch
    sizes, by context at the largest batch size. Numbers at an unknown context are taken where there are no others."""
    tried = [r for r in frame.records(table) if r["kind"] == "measure" and on_log_axis(r["batch"]) and r["metric"]]
    every = [row for row in tried if _has_place(row)]
    without_place = [(row["metric"], row["value"]) for row in tried if not _has_place(row)]
    rows = [row for row in every if on_log_axis(row["context"])] or every
    axis: Axis = "batch"
    batches = {row["batch"] for row in rows}
    if _different(row["context"] or 0 for row in rows) > len(batches):
        axis = "context"
        rows = [row for row in rows if on_log_axis(row["context"]) and row["batch"] == max(batches)]
    else:
        longest = max((row["context"] or 0 for row in rows), default=0)
        rows = [row for row in rows if (row["context"] or 0) >= SAME_CONTEXT * longest]
    others = {row["variant"] for row in every} - {row["variant"] for row in rows}
    return Measurements(axis, [_measurement(row, axis) for row in rows], len(others), without_place)


def _different(contexts: Iterable[int]) -> int:
    """How many contexts there are; those that count as the same are one."""
    found: list[int] = []
    for context in sorted(set(contexts), reverse=True):
        if not found or context < SAME_CONTEXT * found[-1]:
            found.append(context)
    return len(found)


def _has_place(row: Row) -> bool:
    return row["metric"] == OUT_OF_MEMORY or on_log_axis(row["value"])


def _measurement(row: Row, axis: Axis) -> Measurement:
    return Measurement(
        variant=row["variant"],
        family=row["family"],
        budget=row["budget"],
        kv_bytes_per_token=row["kv_bytes_per_token"],
        cache=row["cache"],
        step=row["step"],
        machine=row["machine"],
        metric=row["metric"],
        batch=row["batch"],
        context=row["context"] or 0,
        value=row["value"],
        x=row[axis] or 0,
    )
