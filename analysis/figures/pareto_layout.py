"""Where the parts of a quality/cost plot lie, in data coordinates: one answer for the paper's figure and the page."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from analysis.figures.geometry import NAME_ROOM, Scale, byte_ticks, log_scale, round_ticks, score_scale
from analysis.figures.labels import XY
from analysis.figures.pareto_data import MEMORY, ParetoData, ParetoPoint

BASELINE_NAMES = {"untouched": "base, untouched", "mha": "base, trained equally"}
"""What the level of each kind of baseline is called."""


@dataclass(frozen=True)
class FrontLine:
    """From a front point to the next; `undecided` where noise leaves open whether one of the two is on the front."""

    start: ParetoPoint
    end: ParetoPoint

    @property
    def undecided(self) -> bool:
        return "undecided" in (self.start.pareto_status, self.end.pareto_status)


@dataclass(frozen=True)
class NameWish:
    """A name that looks for a place near (x, y): of a point, of a baseline's level, or of a published point."""

    text: str
    x: float
    y: float
    point: ParetoPoint
    role: Literal["point", "level", "published"]


@dataclass(frozen=True)
class ParetoLayout:
    """`levels` are the baselines whose scores are drawn as lines across. Of `names` the first choose their places
    first; those from number `near` on are left out rather than written far from their points."""

    x: Scale
    y: Scale
    front: list[FrontLine]
    levels: list[ParetoPoint]
    names: list[NameWish]
    near: int
    obstacles: list[tuple[XY, XY]]
    """Lines that names should not cross: the front, the levels and the error bars."""


def pareto_layout(data: ParetoData, published: list[ParetoPoint], *, most_ticks: int, most_names: int) -> ParetoLayout:
    """The layout of data that have at least one point, with published points beside them."""
    points = [*data.points, *published]
    ticks = byte_ticks if data.cost is MEMORY else round_ticks
    x = log_scale([point.x for point in points], ticks, most_ticks, NAME_ROOM)
    front = [FrontLine(*pair) for points_of_one in data.fronts for pair in pairwise(points_of_one)]
    levels = _levels(data)
    names, near = _names(data, published, levels, x.low, most_names)
    return ParetoLayout(
        x=x,
        y=score_scale((point.y, point.stderr) for point in points),
        front=front,
        levels=levels,
        names=names,
        near=near,
        obstacles=[
            *(((line.start.x, line.start.y), (line.end.x, line.end.y)) for line in front),
            *(((p.x, p.y - p.stderr), (p.x, p.y + p.stderr)) for p in data.points if p.stderr),
            *(((max(p.x - p.x_stderr, x.low), p.y), (p.x + p.x_stderr, p.y)) for p in data.points if p.x_stderr),
            *(((x.low, p.y), (x.high, p.y)) for p in levels),
        ],
    )


def _levels(data: ParetoData) -> list[ParetoPoint]:
    """One point for each kind of baseline: with many seeds or recipes, lines for all would be a fence."""
    first: dict[str | None, ParetoPoint] = {}
    for point in data.points:
        first.setdefault(point.baseline, point)
    return [first[kind] for kind in BASELINE_NAMES if kind in first]


def _names(
    data: ParetoData, published: list[ParetoPoint], levels: list[ParetoPoint], left: float, most: int
) -> tuple[list[NameWish], int]:
    """Front, baselines and levels (at their left end) first; then, from the returned number on, the others. The
    untouched base is named by its level."""
    named = sorted(data.contenders, key=lambda p: (not p.on_front, p.baseline is None, p.x))[:most]
    points = [NameWish(data.name(p), p.x, p.y, p, "point") for p in named]
    lines = [NameWish(_level_name(data, p), left, p.y, p, "level") for p in levels]
    others = [NameWish(p.variant, p.x, p.y, p, "published") for p in published][: most - len(points)]
    leading = sum(p.on_front or p.baseline is not None for p in named)
    return [*points[:leading], *lines, *points[leading:], *others], leading + len(lines)


def _level_name(data: ParetoData, level: ParetoPoint) -> str:
    """Of several baselines of a kind, the one whose score it is."""
    alone = sum(point.baseline == level.baseline for point in data.points) == 1
    return BASELINE_NAMES[level.baseline or ""] if alone else data.name(level)
