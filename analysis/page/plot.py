"""The quality/memory cloud laid out in pixels for the report's interactive plot (templates/report.js draws it)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from analysis.figures import labels
from analysis.figures.cloud import Cloud, Point
from analysis.figures.style import look
from analysis.figures.ticks import byte_ticks, nice_ticks

WIDTH, HEIGHT = 760.0, 520.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 24.0, 18.0, 52.0
MOST_LABELS = 40
_LETTER, _LINE = 7.8, 15.0
"""Width of an average bold letter and height of a line at the page's 12.5 px label size; fonts differ, so a name is
anchored on the side of its point."""

SHAPES = {
    "s": "M-5,-5h10v10h-10z",
    "^": "M0,-6.5L6,4.5H-6z",
    "v": "M0,6.5L6,-4.5H-6z",
    "D": "M0,-6.8L6.8,0L0,6.8L-6.8,0z",
    "o": "M-5.5,0a5.5,5.5 0 1,0 11,0a5.5,5.5 0 1,0 -11,0z",
    "<": "M-6.5,0L4.5,-6V6z",
    ">": "M6.5,0L-4.5,-6V6z",
    "p": "M0,-6.4L6.1,-2L3.8,5.2H-3.8L-6.1,-2z",
    "h": "M0,-6.4L5.5,-3.2V3.2L0,6.4L-5.5,3.2V-3.2z",
    "X": "M-6,-3.5L-3.5,-6L0,-2.5L3.5,-6L6,-3.5L2.5,0L6,3.5L3.5,6L0,2.5L-3.5,6L-6,3.5L-2.5,0z",
    "P": "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
}


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels: `low` to `start`, `high` to `end`, linearly (in log2 where `log`)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log2(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def value(self, pixel: float) -> float:
        """The value drawn at a pixel: the inverse."""
        share = (pixel - self.start) / (self.end - self.start)
        if self.log:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + (self.high - self.low) * share


@dataclass(frozen=True)
class Label:
    """A text's baseline position, and which part of the text stands there: `start`, `middle` or `end`."""

    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class Mark:
    """A point as it is drawn; `label` is where its name goes, or None where there is no room."""

    point: Point
    x: float
    y: float
    bar: tuple[float, float] | None
    shape: str
    colour: str
    dark: str
    label: Label | None


@dataclass(frozen=True)
class Family:
    """A legend entry; `coverage` is the share of the cloud's box that the family dominates alone."""

    name: str
    colour: str
    dark: str
    shape: str
    coverage: float


@dataclass(frozen=True)
class Plot:
    """`front` has a line (x, y, x, y) from each front point to the next, and whether noise leaves one of them open."""

    cloud: Cloud
    x_axis: Axis
    y_axis: Axis
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[Mark]
    front: list[tuple[float, float, float, float, bool]]
    families: list[Family]


def lay_out(cloud: Cloud) -> Plot | None:
    """The plot of a cloud, or None while no variant has the score."""
    if not cloud.points:
        return None
    x_axis, y_axis = _axes(cloud)
    x_values = byte_ticks(x_axis.low, x_axis.high, 9)
    y_values, digits = nice_ticks(y_axis.low, y_axis.high)
    return Plot(
        cloud=cloud,
        x_axis=x_axis,
        y_axis=y_axis,
        x_ticks=[(x_axis(tick), f"{tick:,}") for tick in x_values],
        y_ticks=[(y_axis(tick), f"{tick:,.{digits}f}") for tick in y_values],
        marks=_marks(cloud, x_axis, y_axis),
        front=[
            (x_axis(a.x), y_axis(a.y), x_axis(b.x), y_axis(b.y), "undecided" in (a.standing, b.standing))
            for a, b in pairwise(cloud.front)
        ],
        families=_families(cloud),
    )


def _axes(cloud: Cloud) -> tuple[Axis, Axis]:
    xs = [point.x for point in cloud.points]
    lows = [point.y - (point.stderr or 0.0) for point in cloud.points]
    highs = [point.y + (point.stderr or 0.0) for point in cloud.points]
    margin = 0.08 * (max(highs) - min(lows)) or 0.05 * abs(max(highs)) or 1.0
    return (
        Axis(min(xs) / 1.5, max(xs) * 1.5, LEFT, WIDTH - RIGHT, log=True),
        Axis(min(lows) - margin, max(highs) + margin, HEIGHT - BOTTOM, TOP),
    )


def _marks(cloud: Cloud, x_axis: Axis, y_axis: Axis) -> list[Mark]:
    named = _places(cloud, x_axis, y_axis)
    marks = []
    for point in sorted(cloud.points, key=lambda p: p.on_front):
        looks, error = look(point.family), point.stderr
        bar = (y_axis(point.y - error), y_axis(point.y + error)) if error else None
        shape = SHAPES[looks.marker]
        marks.append(
            Mark(
                point, x_axis(point.x), y_axis(point.y), bar, shape, looks.colour, looks.dark, named.get(point.variant)
            )
        )
    return marks


def _places(cloud: Cloud, x_axis: Axis, y_axis: Axis) -> dict[str, Label]:
    """The names that find room, front and baselines first."""
    named = sorted(cloud.points, key=lambda p: (not p.on_front, p.baseline is None, p.x))[:MOST_LABELS]
    front = [(x_axis(p.x), y_axis(p.y)) for p in cloud.front]
    places = labels.place(
        [(x_axis(p.x), y_axis(p.y)) for p in named],
        [(len(p.variant) * _LETTER, _LINE) for p in named],
        taken=[(x_axis(p.x) - 6, y_axis(p.y) - 6, x_axis(p.x) + 6, y_axis(p.y) + 6) for p in cloud.points],
        lines=[
            *pairwise(front),
            *(
                ((x_axis(p.x), y_axis(p.y - e)), (x_axis(p.x), y_axis(p.y + e)))
                for p in cloud.points
                if (e := p.stderr)
            ),
            *(((LEFT, y_axis(p.y)), (WIDTH - RIGHT, y_axis(p.y))) for p in cloud.points if p.baseline),
        ],
        bounds=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        gap=8.0,
        near=sum(p.on_front or p.baseline is not None for p in named),
    )
    return {p.variant: _label(p, x_axis(p.x), place) for p, place in zip(named, places, strict=True) if place}


def _label(point: Point, x: float, corner: tuple[float, float]) -> Label:
    """The label whose estimated box has this top left corner."""
    width, baseline = len(point.variant) * _LETTER, corner[1] + 0.76 * _LINE
    if corner[0] >= x:
        return Label(corner[0], baseline, "start")
    if corner[0] + width <= x:
        return Label(corner[0] + width, baseline, "end")
    return Label(corner[0] + width / 2, baseline, "middle")


def _families(cloud: Cloud) -> list[Family]:
    """The families that occur, for a legend, with what each covers alone."""
    names = dict.fromkeys(point.family or "?" for point in cloud.points)
    return [
        Family(name, look(name).colour, look(name).dark, SHAPES[look(name).marker], cloud.coverage(name))
        for name in names
    ]
