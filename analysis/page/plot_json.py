"""The page's plots as its script is given them: of scores, and of differences from the baselines.

Points are NamedTuples, which JSON writes as arrays without names, as there may be thousands of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from analysis.figures import labels
from analysis.figures.difference import Panel, Point, remarks, side_by_side
from analysis.figures.geometry import NAME_ROOM, byte_ticks, linear_scale, log_scale
from analysis.figures.pareto_data import MEMORY
from analysis.figures.style import family_style
from analysis.page.plot import (
    FRAME,
    GAP,
    MARKER,
    MOST_NAMES,
    SHAPES,
    Label,
    Level,
    Mark,
    PixelAxis,
    Plot,
    label_at,
    name_size,
)

LEGEND = "Filled: on the front with a probability of 95 % or more. Hollow: noise leaves it open. Faint: dominated."
WITHOUT_ERRORS = "Filled: on the front by the numbers alone, as some errors are unknown. Faint: dominated."
LINES = (
    " Dashed and dotted lines across: the baselines' scores. Bars: ± one standard error. Percent: the share of the "
    "plot's box (log₂ bytes × score, between the extremes of all variants) that a family dominates alone."
)


class LabelJson(NamedTuple):
    x: float
    y: float
    anchor: str


class MarkJson(NamedTuple):
    """A point. `bar` are the ends of its error bar in pixels. `status` is `untouched`, the Pareto status, or, of a
    difference, `beyond` noise or `undecided`; `baseline` is where differences are from. `note` is a line of its own."""

    variant: str
    x: float
    y: float
    bar: list[float] | None
    family: str
    status: str
    cost: float
    value: float
    dominated_by: str
    chance: float | None
    label: LabelJson | None
    note: str = ""


class TickJson(NamedTuple):
    pixel: float
    text: str


class FrontJson(NamedTuple):
    x1: float
    y1: float
    x2: float
    y2: float
    undecided: int


class LevelJson(NamedTuple):
    y: float
    baseline: str
    name: str
    label: LabelJson | None


class FamilyJson(NamedTuple):
    """`percent` is the share of the plot's box that the family dominates alone."""

    name: str
    colour: str
    dark: str
    shape: str
    percent: int


@dataclass(frozen=True)
class PlotJson:
    """`score` is the name of the score that it shows. `axis` and `cost` are the labels of the vertical and the
    horizontal axis; `legend` says what the marks mean."""

    label: str
    score: str
    axis: str
    cost: str
    legend: str
    x: list[TickJson]
    y: list[TickJson]
    front: list[FrontJson]
    levels: list[LevelJson]
    families: list[FamilyJson]
    marks: list[MarkJson]


def pareto_json(plot: Plot) -> PlotJson:
    """Of the scores themselves."""
    return PlotJson(
        label=plot.data.label,
        score=plot.data.label,
        axis=plot.data.axis_label,
        cost=MEMORY.label,
        legend=(LEGEND if any(mark.point.chance is not None for mark in plot.marks) else WITHOUT_ERRORS) + LINES,
        x=_ticks(plot.x),
        y=_ticks(plot.y),
        front=[
            FrontJson(round(line.x1, 1), round(line.y1, 1), round(line.x2, 1), round(line.y2, 1), int(line.undecided))
            for line in plot.front
        ],
        levels=[LevelJson(round(level.y, 1), level.baseline, level.name, _label(level)) for level in plot.levels],
        families=[FamilyJson(f.name, f.colour, f.dark, f.shape, round(100 * f.coverage)) for f in plot.families],
        marks=[_mark(mark) for mark in plot.marks],
    )


def _label(of: Mark | Level) -> LabelJson | None:
    return LabelJson(round(of.label.x, 1), round(of.label.y, 1), of.label.anchor) if of.label else None


def _mark(mark: Mark) -> MarkJson:
    point = mark.point
    return MarkJson(
        variant=point.variant,
        x=round(mark.x, 1),
        y=round(mark.y, 1),
        bar=[round(end, 1) for end in mark.bar] if mark.bar else None,
        family=point.family or "?",
        status="untouched" if point.baseline == "untouched" else point.pareto_status,
        cost=point.x,
        value=point.y,
        dominated_by=point.dominated_by or "",
        chance=None if point.chance is None else round(point.chance, 3),
        label=_label(mark),
    )


def _ticks(axis: PixelAxis) -> list[TickJson]:
    return [TickJson(round(pixel, 1), text) for pixel, text in axis.ticks]


def difference_json(panel: Panel) -> PlotJson:
    """Of how far each variant is from its baseline, with its interval: what pairing shows and bars of scores hide."""
    points = [*panel.zeros, *panel.points]
    scale = log_scale([point.cost for point in points], byte_ticks, 9, NAME_ROOM)
    moved = side_by_side(panel, scale)
    x = PixelAxis(scale, FRAME.left, FRAME.right)
    y = PixelAxis(linear_scale([0.0, *(end for point in points for end in point.ends)]), FRAME.bottom, FRAME.top)
    drawn = [*moved.zeros, *moved.points]
    places = _places(drawn, x, y)
    families = {point.family or "?": family_style(point.family or "?") for point in drawn}
    return PlotJson(
        label=f"Δ {panel.label}",
        score=panel.label,
        axis=panel.axis_label,
        cost=MEMORY.label,
        legend=" ".join(
            f"{remark[0].upper()}{remark[1:]}." for line in remarks([panel]) for remark in line.split("   ")
        ),
        x=_ticks(x),
        y=_ticks(y),
        front=[],
        levels=[LevelJson(round(y(0.0), 1), "mha", "", None)],
        families=[
            FamilyJson(name, style.colour, style.dark, SHAPES[style.marker], 0) for name, style in families.items()
        ],
        marks=[
            *(_difference_mark(point, "baseline", "", x, y, places[point.variant]) for point in moved.zeros),
            *(
                _difference_mark(point, _status(point), _note(point, panel), x, y, places[point.variant])
                for point in moved.points
            ),
        ],
    )


def _places(points: list[Point], x: PixelAxis, y: PixelAxis) -> dict[str, Label | None]:
    """Where the names go: of what is within noise first, then from the cheapest on."""
    ordered = sorted(points, key=lambda point: (point.beyond_noise, point.cost))[:MOST_NAMES]
    at = [(x(point.x), y(point.y)) for point in ordered]
    corners = labels.place(
        at,
        [name_size(point.variant) for point in ordered],
        taken=[(x(p.x) - MARKER, y(p.y) - MARKER, x(p.x) + MARKER, y(p.y) + MARKER) for p in points],
        lines=[((x(p.x), y(p.ends[0])), (x(p.x), y(p.ends[1]))) for p in points],
        bounds=(FRAME.left, FRAME.top, FRAME.right, FRAME.bottom),
        gap=GAP,
        near=0,
    )
    found = {
        point.variant: label_at(point.variant, place[0], corner) if corner else None
        for point, place, corner in zip(ordered, at, corners, strict=True)
    }
    return {point.variant: found.get(point.variant) for point in points}


def _difference_mark(point: Point, status: str, note: str, x: PixelAxis, y: PixelAxis, label: Label | None) -> MarkJson:
    return MarkJson(
        variant=point.variant,
        x=round(x(point.x), 1),
        y=round(y(point.y), 1),
        bar=None if point.reach is None else [round(y(end), 1) for end in point.ends],
        family=point.family or "?",
        status=status,
        cost=point.cost,
        value=point.y,
        dominated_by="",
        chance=None,
        label=LabelJson(round(label.x, 1), round(label.y, 1), label.anchor) if label else None,
        note=note,
    )


def _status(point: Point) -> str:
    if point.baseline == "untouched":
        return "untouched"
    return "beyond" if point.beyond_noise else "undecided"


def _note(point: Point, panel: Panel) -> str:
    value, *ends = (panel.metric.difference(each / panel.metric.scale) for each in (point.y, *point.ends))
    return f"Δ {panel.label}: {value}" + (f", 95 % interval {' to '.join(ends)}" if point.reach is not None else "")
