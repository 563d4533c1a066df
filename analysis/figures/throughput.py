"""The speed figure: decoded tokens per second against batch size or context, a line for each layout measured."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import pandas as pd

from analysis.data import machine
from analysis.data.frame import Row
from analysis.figures.canvas import (
    ALARM,
    SMALLEST,
    EndName,
    evenly,
    name_ends,
    new_figure,
    note,
    short,
    styled,
    wrapped,
)
from analysis.figures.memory import OUT_OF_MEMORY, left_out, measured, swept_axis
from analysis.figures.naming import Name, write_names
from analysis.figures.style import look, shades
from analysis.figures.ticks import round_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPEED = "tokens_per_second"
APART = "measured on different machines, which are not to be compared"
MOST_NAMES = 16


@dataclass(frozen=True)
class Pace:
    """Tokens per second of one layout by batch size (or context), and where memory ran out."""

    name: str
    family: str | None
    budget: int
    cells: dict[int, float]
    failed: set[int]

    @property
    def last(self) -> tuple[int, float]:
        return max(self.cells.items())


def paces(table: pd.DataFrame) -> list[Pace]:
    """The speeds in a long table, the largest budget first. Variants that share a measurement are one line, named by
    family and budget unless layouts were measured in several ways; marked where machines are several."""
    axis, rows = measured(table)
    by_step: dict[str, list[Row]] = {}
    for row in rows:
        by_step.setdefault(row["step"] or row["variant"], []).append(row)
    names = Counter(_layout_name(own[0]) for own in by_step.values())
    marks = _marks(rows)
    found = []
    for own in by_step.values():
        name = _layout_name(own[0]) if names[_layout_name(own[0])] == 1 else own[0]["variant"]
        found.append(_pace(f"{name} ({marks[own[0]['machine']]})" if marks else name, axis, own))
    return sorted((pace for pace in found if pace.cells), key=lambda pace: -pace.budget)


def _marks(rows: list[Row]) -> dict[str | None, str]:
    return machine.marks(row for row in rows if row["metric"] == SPEED)


def _layout_name(row: Row) -> str:
    return f"{row['family']}-{row['budget']}" if row["step"] else str(row["variant"])


def _pace(name: str, axis: str, rows: list[Row]) -> Pace:
    speeds = {row[axis]: row["value"] for row in rows if row["metric"] == SPEED}
    cells = {x: speeds[x] for x in sorted(speeds)}
    failed = {row[axis] for row in rows if row["metric"] == OUT_OF_MEMORY} - cells.keys()
    return Pace(name, rows[0]["family"], rows[0]["budget"] or 0, cells, failed)


@styled
def throughput_figure(table: pd.DataFrame) -> Figure | None:
    """Tokens per second against batch size of every measured layout, or None where nothing is measured."""
    drawn = paces(table)
    if not drawn:
        return None
    figure, axes = new_figure()
    axis, rows = measured(table)
    swept_axis(axes, axis, sorted({x for pace in drawn for x in [*pace.cells, *pace.failed]}))
    _speed_axis(axes, [speed for pace in drawn for speed in pace.cells.values()])
    colours = shaded([(pace.name, pace.family) for pace in drawn])
    for pace in drawn:
        _draw(axes, pace, colours[pace.name])
    told = ["×: out of memory"] if any(pace.failed for pace in drawn) else []
    told += [APART, *wrapped(machine.key(marks))] if (marks := _marks(rows)) else []
    if told := [*told, *left_out(table)]:
        note(axes, "\n".join(told))
    _name(figure, axes, drawn)
    return figure


def shaded(names: list[tuple[str, str | None]]) -> dict[str, str]:
    """A colour for each (name, family): the family's, lighter from name to name."""
    by_family: dict[str | None, list[str]] = {}
    for name, family in dict.fromkeys(names):
        by_family.setdefault(family, []).append(name)
    return {
        name: shade
        for family, members in by_family.items()
        for name, shade in zip(members, shades(look(family).colour, len(members)), strict=True)
    }


def _speed_axis(axes: Axes, speeds: list[float]) -> None:
    axes.set_yscale("log")
    axes.set_ylabel("decoded tokens per second")
    low, high = min(speeds) / 1.3, max(speeds) * 1.5
    ticks = round_ticks(low, high, 7)
    axes.set_ylim(low, high)
    axes.set_yticks(ticks, [f"{tick:,g}" if tick < 1e4 else f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()


def _draw(axes: Axes, pace: Pace, colour: str) -> None:
    """The line, and from its end a dotted one to the batch sizes that did not fit."""
    shape = look(pace.family)
    axes.plot(
        list(pace.cells),
        list(pace.cells.values()),
        f"{shape.marker}-",
        color=colour,
        linewidth=0.9,
        markersize=3.6,
        markeredgecolor="white",
        markeredgewidth=0.3,
    )
    batch, speed = pace.last
    for failed in sorted(pace.failed):
        axes.plot([batch, failed], [speed, speed], ":", color=colour, linewidth=0.7)
        axes.plot([failed], [speed], "x", color=ALARM, markersize=4)


def _name(figure: Figure, axes: Axes, drawn: list[Pace]) -> None:
    if len({pace.last[0] for pace in drawn}) == 1:
        name_ends(figure, axes, [EndName(pace.name, pace.last[1], look(pace.family).colour) for pace in drawn])
        return
    names = [
        Name(short(p.name), *p.last, {"color": look(p.family).colour, "fontsize": 6}) for p in evenly(drawn, MOST_NAMES)
    ]
    points = [(float(batch), speed) for pace in drawn for batch, speed in pace.cells.items()]
    lines = [pair for pace in drawn for pair in pairwise((float(b), s) for b, s in pace.cells.items())]
    write_names(figure, axes, names, points=points, segments=lines)


def _named(pace: Pace) -> Name:
    return Name(short(pace.name), *pace.last, {"color": look(pace.family).colour, "fontsize": SMALLEST})
