"""The speed figure: decoded tokens per second against batch size, one line for each layout that was measured."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import pandas as pd

from analysis import frame
from analysis.canvas import ALARM, SMALLEST, EndName, evenly, name_ends, new_figure, note, short, styled
from analysis.frame import Row
from analysis.memory import OUT_OF_MEMORY, batch_axis
from analysis.naming import Name, write_names
from analysis.style import look, shades
from analysis.ticks import round_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPEED = "tokens_per_second"
MOST_NAMES = 16


@dataclass(frozen=True)
class Pace:
    """Tokens per second by batch size of one layout, and the batch sizes that ran out of memory."""

    name: str
    family: str | None
    budget: int
    cells: dict[int, float]
    failed: set[int]

    @property
    def last(self) -> tuple[int, float]:
        return max(self.cells.items())


def paces(table: pd.DataFrame) -> list[Pace]:
    """The speeds in a long table at the longest context of each layout, the largest budget first. Variants that share
    a measurement are one line, named by family and budget."""
    rows = [r for r in frame.records(table) if r["kind"] == "measure" and r["batch"] and r["value"] is not None]
    by_layout: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        name = f"{row['family']}-{row['budget']}" if row["step"] else row["variant"]
        by_layout.setdefault((name, row["step"] or row["variant"]), []).append(row)
    found = [_pace(name, rows) for (name, _), rows in by_layout.items()]
    return sorted((pace for pace in found if pace.cells), key=lambda pace: -pace.budget)


def _pace(name: str, rows: list[Row]) -> Pace:
    longest: dict[int, Row] = {}
    for row in rows:
        if row["metric"] == SPEED and row["context"] >= longest.get(row["batch"], row)["context"]:
            longest[row["batch"]] = row
    cells = {batch: longest[batch]["value"] for batch in sorted(longest)}
    failed = {row["batch"] for row in rows if row["metric"] == OUT_OF_MEMORY} - cells.keys()
    return Pace(name, rows[0]["family"], rows[0]["budget"] or 0, cells, failed)


@styled
def throughput_figure(table: pd.DataFrame) -> Figure | None:
    """Tokens per second against batch size of every measured layout, or None where nothing is measured."""
    drawn = paces(table)
    if not drawn:
        return None
    figure, axes = new_figure()
    batch_axis(axes, sorted({batch for pace in drawn for batch in [*pace.cells, *pace.failed]}))
    _speed_axis(axes, [speed for pace in drawn for speed in pace.cells.values()])
    colours = shaded([(pace.name, pace.family) for pace in drawn])
    for pace in drawn:
        _draw(axes, pace, colours[pace.name])
    if any(pace.failed for pace in drawn):
        note(axes, "×: out of memory")
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
