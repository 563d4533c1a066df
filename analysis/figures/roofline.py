"""The roofline figure: how fast decoding computes against how much it computes with each byte that it reads.

A step can be no faster than its bytes come: it is below the line that copying memory gives, or above it only where they
lie in the processor's own cache. Larger batches are further right, as they share the weights; so are layouts with fewer
KV heads, as their sequences have fewer bytes of their own.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import pandas as pd

from analysis.data import frame, machine
from analysis.data.measured import COPY_SPEED, PROCESSOR_CACHE, STEP_BYTES, STEP_OPERATIONS, STEP_SECONDS
from analysis.data.numbers import on_log_axis
from analysis.data.units import size as size_text
from analysis.figures.canvas import SMALLEST, first_parts, footer, new_figure, set_axes
from analysis.figures.geometry import NAME_ROOM, Scale, evenly, log_scale, round_ticks
from analysis.figures.measurements import AXIS_LABELS, Measurement, drawn_measurements
from analysis.figures.names import PointName, name_points
from analysis.figures.style import MUTED, family_style, shades_by_name
from analysis.figures.throughput import MACHINES, MOST_NAMES
from analysis.statistics.sources import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GIGA = 1e9


@dataclass(frozen=True)
class Point:
    """A cell: operations for each byte of a step, 10⁹ operations a second, and whether those bytes fit into the
    processor's cache."""

    intensity: float
    speed: float
    in_cache: bool


@dataclass(frozen=True)
class Path:
    """The cells of a layout on one machine, by batch size or context."""

    name: str
    family: str | None
    budget: int
    machine: machine.Machine
    points: dict[int, Point]

    @property
    def last(self) -> Point:
        return self.points[max(self.points)]


def paths(table: pd.DataFrame) -> list[Path]:
    """The paths of a long table, the largest budget first. Variants that share a measurement are one path."""
    caches = _of_machines(table, PROCESSOR_CACHE)
    by_step: dict[tuple[str, machine.Machine], list[Measurement]] = defaultdict(list)
    for cell in drawn_measurements(table).cells:
        by_step[cell.step or cell.variant, cell.machine].append(cell)
    letters = machine.marks(place for _, place in by_step)
    found = []
    for (_, place), own in by_step.items():
        points = _points(own, caches.get(place, 0.0))
        letter = f" ({letters[place]})" if place in letters else ""
        found.append(Path(f"{own[0].layout}{letter}", own[0].family, own[0].budget or 0, place, points))
    return sorted((path for path in found if path.points), key=lambda path: -path.budget)


def copy_speeds(table: pd.DataFrame) -> dict[machine.Machine, float]:
    """10⁹ bytes a second that each machine copies: the most that any measurement there found."""
    return {place: value / _GIGA for place, value in _of_machines(table, COPY_SPEED).items()}


def _of_machines(table: pd.DataFrame, metric: str) -> dict[machine.Machine, float]:
    found: dict[machine.Machine, float] = {}
    for row in frame.records(table[(table["kind"] == "measure") & (table["metric"] == metric)]):
        if on_log_axis(row["value"]):
            found[row["machine"]] = max(found.get(row["machine"], 0.0), row["value"])
    return found


def _points(own: list[Measurement], processor_cache: float) -> dict[int, Point]:
    values: dict[int, dict[str, float]] = defaultdict(dict)
    for cell in own:
        values[cell.x][cell.metric] = cell.value
    wanted = {STEP_BYTES, STEP_OPERATIONS, STEP_SECONDS}
    return {
        x: Point(
            each[STEP_OPERATIONS] / each[STEP_BYTES],
            each[STEP_OPERATIONS] / each[STEP_SECONDS] / _GIGA,
            each[STEP_BYTES] <= processor_cache,
        )
        for x, each in sorted(values.items())
        if wanted <= each.keys()
    }


def roofline_figure(source: Source, published: Source | None = None) -> Figure | None:
    """Every measured layout beside the speed of copying memory, or None where nothing of that is measured."""
    drawn, copies = paths(source.table), copy_speeds(source.table)
    if not drawn or not copies:
        return None
    figure, axes = new_figure()
    every = [point for path in drawn for point in path.points.values()]
    x = log_scale([point.intensity for point in every], round_ticks, 7, NAME_ROOM)
    # Both ends of the axis: a line that leaves it on the right is no reference for what is there.
    ceilings = [speed * intensity for speed in copies.values() for intensity in (x.low, x.high)]
    y = log_scale([*(point.speed for point in every), *ceilings], round_ticks, 7, 1.1)
    set_axes(axes, x, "operations for each byte that a step reads", y, "10⁹ operations per second")
    for speed in copies.values():
        axes.plot([x.low, x.high], [speed * x.low, speed * x.high], "-", color=MUTED, linewidth=0.9, zorder=1)
    colours = shades_by_name([(path.name, path.family) for path in drawn])
    for path in drawn:
        _draw(axes, path, colours[path.name])
    footer(figure, _remarks(source.table, drawn, copies))
    _write_names(figure, axes, drawn, copies, x)
    return figure


def _draw(axes: Axes, path: Path, colour: str) -> None:
    points = list(path.points.values())
    axes.plot([p.intensity for p in points], [p.speed for p in points], "-", color=colour, linewidth=0.7, zorder=2)
    for point in points:
        axes.plot(
            [point.intensity],
            [point.speed],
            family_style(path.family).marker,
            color=colour,
            markersize=3.6,
            markerfacecolor="white" if point.in_cache else colour,
            markeredgecolor=colour if point.in_cache else "white",
            markeredgewidth=0.7 if point.in_cache else 0.3,
            zorder=3,
        )


def _remarks(table: pd.DataFrame, drawn: list[Path], copies: dict[machine.Machine, float]) -> list[str]:
    measurements = drawn_measurements(table)
    steps = sorted({x for path in drawn for x in path.points})
    held = {cell.context if measurements.axis == "batch" else cell.batch for cell in measurements.cells}
    other = f"context {max(held):,}" if measurements.axis == "batch" else f"batch {max(held):,}"
    along = f"along a line: {AXIS_LABELS[measurements.axis].partition(',')[0]} {', '.join(f'{x:,}' for x in steps)}"
    lines = [f"{along}   {other}"]
    if any(point.in_cache for path in drawn for point in path.points.values()):
        size = max(_of_machines(table, PROCESSOR_CACHE).values())
        lines.append(f"hollow: what a step reads fits into the processor's cache ({size_text(int(size))})")
    if len(copies) > 1:
        lines += [MACHINES, *first_parts(machine.key(machine.marks(path.machine for path in drawn)))]
    return lines


def _write_names(figure: Figure, axes: Axes, drawn: list[Path], copies: dict[machine.Machine, float], x: Scale) -> None:
    """Of each layout at its last point, and of the lines near their left ends."""
    letters = machine.marks(copies)
    at = x.value(0.02)
    lines = [
        PointName(
            f"copying memory{f' ({letters[place]})' if place in letters else ''}: {speed:,.3g} GB/s",
            at,
            speed * at,
            MUTED,
            SMALLEST,
            italic=True,
        )
        for place, speed in copies.items()
    ]
    named = [
        PointName(path.name, path.last.intensity, path.last.speed, family_style(path.family).colour, SMALLEST)
        for path in evenly(drawn, MOST_NAMES)
    ]
    cells = [[(point.intensity, point.speed) for point in path.points.values()] for path in drawn]
    ends = [((x.low, speed * x.low), (x.high, speed * x.high)) for speed in copies.values()]
    segments = [*ends, *(pair for line in cells for pair in pairwise(line))]
    points = [point for line in cells for point in line]
    name_points(figure, axes, [*lines, *named], points=points, segments=segments)
