"""The speed figure: decoded tokens per second against batch size or context, a line for each layout measured."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import pandas as pd

from analysis.data import machine
from analysis.data.measured import OUT_OF_MEMORY, SPEED
from analysis.figures.canvas import SMALLEST, first_parts, footer, new_figure, set_axes
from analysis.figures.geometry import NAME_ROOM, evenly, log_scale, round_ticks
from analysis.figures.measurements import (
    AXIS_LABELS,
    Measurement,
    Measurements,
    drawn_measurements,
)
from analysis.figures.names import EndName, PointName, name_ends, name_points
from analysis.figures.style import ALARM, family_style, shades_by_name
from analysis.statistics.sources import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MACHINES = "measured on different machines, which are not to be compared"
MOST_NAMES = 16


@dataclass(frozen=True)
class SpeedLine:
    """Tokens per second of one layout by batch size (or context), and where memory ran out."""

    name: str
    family: str | None
    budget: int
    cells: dict[int, float]
    failed: set[int]

    @property
    def last(self) -> tuple[int, float]:
        return max(self.cells.items())


def speed_lines(table: pd.DataFrame) -> list[SpeedLine]:
    """The speeds in a long table, the largest budget first. Variants that share a measurement are one line, named by
    family and budget unless layouts were measured in several ways; with a letter where machines are several."""
    return _speed_lines(drawn_measurements(table))


def _speed_lines(measurements: Measurements) -> list[SpeedLine]:
    by_step: dict[tuple[str, str | None], list[Measurement]] = {}
    for cell in measurements.cells:
        by_step.setdefault((cell.step or cell.variant, cell.machine), []).append(cell)
    names = Counter(_layout_name(own[0]) for own in by_step.values())
    letters = _machine_letters(measurements)
    drawn = []
    for own in by_step.values():
        name = _layout_name(own[0]) if names[_layout_name(own[0])] == 1 else own[0].variant
        letter = letters.get(own[0].machine)
        drawn.append(_speed_line(f"{name} ({letter})" if letter else name, own))
    return sorted((line for line in drawn if line.cells), key=lambda line: -line.budget)


def _machine_letters(measurements: Measurements) -> dict[machine.Machine, str]:
    return machine.marks(cell.machine for cell in measurements.cells if cell.metric == SPEED)


def _layout_name(cell: Measurement) -> str:
    return cell.layout if cell.step else cell.variant


def _speed_line(name: str, own: list[Measurement]) -> SpeedLine:
    speeds = {cell.x: cell.value for cell in own if cell.metric == SPEED}
    cells = {x: speeds[x] for x in sorted(speeds)}
    failed = {cell.x for cell in own if cell.metric == OUT_OF_MEMORY} - cells.keys()
    return SpeedLine(name, own[0].family, own[0].budget or 0, cells, failed)


def throughput_figure(source: Source, published: Source | None = None) -> Figure | None:
    """Tokens per second against batch size of every measured layout, or None where nothing is measured."""
    measurements = drawn_measurements(source.table)
    drawn = _speed_lines(measurements)
    if not drawn:
        return None
    figure, axes = new_figure()
    sizes = sorted({x for line in drawn for x in [*line.cells, *line.failed]})
    speeds = [speed for line in drawn for speed in line.cells.values()]
    scale = log_scale(speeds, round_ticks, 7, NAME_ROOM)
    set_axes(
        axes, measurements.scale(sizes, NAME_ROOM), AXIS_LABELS[measurements.axis], scale, "decoded tokens per second"
    )
    colours = shades_by_name([(line.name, line.family) for line in drawn])
    for line in drawn:
        _draw(axes, line, colours[line.name])
    remarks = ["×: out of memory"] if any(line.failed for line in drawn) else []
    if letters := _machine_letters(measurements):
        remarks += [MACHINES, *first_parts(machine.key(letters))]
    footer(figure, [*remarks, *measurements.remarks([SPEED])])
    _write_names(figure, axes, drawn)
    return figure


def _draw(axes: Axes, line: SpeedLine, colour: str) -> None:
    """The line, and from its end a dotted one to the batch sizes that did not fit."""
    marker = family_style(line.family).marker
    axes.plot(
        list(line.cells),
        list(line.cells.values()),
        f"{marker}-",
        color=colour,
        linewidth=0.9,
        markersize=3.6,
        markeredgecolor="white",
        markeredgewidth=0.3,
    )
    batch, speed = line.last
    for failed in sorted(line.failed):
        axes.plot([batch, failed], [speed, speed], ":", color=colour, linewidth=0.7)
        axes.plot([failed], [speed], "x", color=ALARM, markersize=4)


def _write_names(figure: Figure, axes: Axes, drawn: list[SpeedLine]) -> None:
    """Behind the lines where all end at one batch size, else next to their last points."""
    if len({line.last[0] for line in drawn}) == 1:
        ends = [EndName(line.name, line.last[1], family_style(line.family).colour) for line in drawn]
        name_ends(figure, axes, ends)
        return
    named = evenly(drawn, MOST_NAMES)
    names = [PointName(line.name, *line.last, family_style(line.family).colour, SMALLEST) for line in named]
    cells = [[(float(x), speed) for x, speed in line.cells.items()] for line in drawn]
    points = [point for line in cells for point in line]
    name_points(figure, axes, names, points=points, segments=[pair for line in cells for pair in pairwise(line)])
