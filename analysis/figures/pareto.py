"""The figure of a two-column paper: quality against cost.

Colour and marker shape both tell the family. Filled points are on the front whatever the noise, hollow ones may be,
faint ones are not.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from analysis.data import machine
from analysis.figures.canvas import QUIET, SMALLEST, new_figure, note, score_axis, short, styled, wrapped
from analysis.figures.cloud import MEMORY, SURE, Cloud, Point
from analysis.figures.naming import Name, Segment, write_names
from analysis.figures.style import look
from analysis.figures.ticks import byte_ticks, round_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LABELS = 32
LINE_NAMES = {"untouched": "base, untouched", "mha": "base, trained equally"}
READING = f"filled: on the front (p ≥ {SURE:g})   hollow: undecided   faint: dominated"
PAIRED = "bars: one standard error; variants are compared on the same samples"
BARE = "not every error is known: the front is that of the numbers alone"
APART = "measured on different machines: each has a front of its own"
_FRONT = "#555b66"
_LINE_NAME = {"color": QUIET, "fontsize": SMALLEST, "fontstyle": "italic"}


@styled
def cloud_figure(cloud: Cloud, beside: Cloud | None = None) -> Figure:
    """A cloud with its front, baselines and names; `beside` it another one (published figures), in grey."""
    figure, axes = new_figure()
    others = beside.points if beside else []
    _draw_frame(axes, cloud, [*cloud.points, *others])
    for alike in _by_look(cloud.points):
        _draw_points(axes, alike)
    if beside:
        _draw_beside(axes, beside)
    _draw_front(axes, cloud)
    _draw_references(axes, cloud)
    if told := [*_reading(cloud), *(["grey: published"] if beside else [])]:
        note(axes, "\n".join(told))
    _write_names(figure, axes, cloud, others)
    return figure


def _reading(cloud: Cloud) -> list[str]:
    """What the marks mean, a line each."""
    chances = any(point.chance is not None for point in cloud.points)
    told = [READING] if chances else [BARE] if cloud.contenders else []
    told += [PAIRED] if cloud.paired and chances else []
    return told + ([APART, *wrapped(machine.key(cloud.machines))] if cloud.machines else [])


def _draw_frame(axes: Axes, cloud: Cloud, points: list[Point]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlabel(cloud.cost.label)
    axes.set_ylabel(cloud.axis_label)
    axes.grid(True)
    if points:
        low, high = min(p.x for p in points) / 1.5, max(p.x for p in points) * 1.5
        ticks = byte_ticks(low, high, most=6) if cloud.cost is MEMORY else round_ticks(low, high, most=6)
        axes.set_xlim(low, high)
        axes.set_xticks(ticks, [f"{tick:,g}" if tick < 1e4 else f"{tick:,.0f}" for tick in ticks])
        score_axis(axes, [(p.y, p.stderr) for p in points])
    else:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "nothing has finished yet", transform=axes.transAxes, ha="center", color=QUIET)
    axes.minorticks_off()


def _draw_front(axes: Axes, cloud: Cloud) -> None:
    """The line from front point to front point, broken where noise leaves open whether one of the two is on it."""
    for a, b in _links(cloud):
        open_ended = "undecided" in (a.standing, b.standing)
        dashes = (0, (3, 2)) if open_ended else "-"
        axes.plot([a.x, b.x], [a.y, b.y], color=_FRONT, linewidth=1.0, alpha=0.55, linestyle=dashes, zorder=2)


def _links(cloud: Cloud) -> list[tuple[Point, Point]]:
    """Neighbours on a front."""
    return [pair for front in cloud.fronts for pair in pairwise(front)]


def _by_look(points: list[Point]) -> list[list[Point]]:
    """Points that are drawn alike, dominated ones first: one call draws a thousand as fast as one."""
    alike: dict[tuple[Any, ...], list[Point]] = {}
    for point in sorted(points, key=lambda p: p.standing != "dominated"):
        errors = point.stderr is None, point.x_stderr is None
        look_of = (point.standing, point.family, point.baseline == "untouched", errors)
        alike.setdefault(look_of, []).append(point)
    return list(alike.values())


def _draw_points(axes: Axes, points: list[Point]) -> None:
    """Points of one family and standing, all the untouched base or none."""
    first, shape = points[0], look(points[0].family)
    reference, hollow = first.baseline == "untouched", first.standing == "undecided"
    faint = first.standing == "dominated" and not reference
    axes.errorbar(
        [point.x for point in points],
        [point.y for point in points],
        yerr=None if first.stderr is None else [point.stderr or 0.0 for point in points],
        xerr=None if first.x_stderr is None else [point.x_stderr or 0.0 for point in points],
        fmt="+" if reference else shape.marker,
        markersize=5.5 if reference else 4.4,
        color=shape.colour,
        markerfacecolor="white" if hollow else shape.colour,
        markeredgecolor=shape.colour if reference or hollow else "white",
        markeredgewidth=0.9 if reference or hollow else 0.5,
        elinewidth=0.7,
        capsize=1.4,
        capthick=0.7,
        alpha=0.4 if faint else 1.0,
        zorder=3 if faint else 4,
    )


def _draw_beside(axes: Axes, beside: Cloud) -> None:
    for point in beside.points:
        axes.plot(point.x, point.y, look(point.family).marker, markersize=3.6, color=QUIET, alpha=0.6, zorder=2.5)
    for front in beside.fronts:
        axes.plot([p.x for p in front], [p.y for p in front], color=QUIET, linewidth=0.7, linestyle=":", zorder=1.5)


def _draw_references(axes: Axes, cloud: Cloud) -> None:
    for point in _references(cloud):
        dashes = (1.2, 1.8) if point.baseline == "untouched" else (5, 2)
        axes.axhline(point.y, color=QUIET, linewidth=0.7, dashes=dashes, zorder=1)


def _references(cloud: Cloud) -> list[Point]:
    """One point for each kind of baseline: with many seeds or recipes, lines for all would be a fence."""
    found: dict[str, Point] = {}
    for point in cloud.points:
        found.setdefault(point.baseline or "", point)
    return [found[name] for name in LINE_NAMES if name in found]


def _names(axes: Axes, cloud: Cloud, others: list[Point]) -> tuple[list[Name], int]:
    """Front, baselines and reference lines (at their left end) first; then, from the returned number on, the others.
    The untouched base is named by its line."""
    named = sorted(cloud.contenders, key=lambda p: (not p.on_front, p.baseline is None, p.x))
    points = [Name(short(cloud.name(p)), p.x, p.y, _name_style(p)) for p in named[:MOST_LABELS]]
    left = axes.get_xlim()[0]
    lines = [Name(_line_name(cloud, p), left, p.y, _LINE_NAME) for p in _references(cloud)]
    leading = sum(p.on_front or p.baseline is not None for p in named[:MOST_LABELS])
    beside = [Name(short(p.variant), p.x, p.y, _LINE_NAME) for p in others][: MOST_LABELS - len(points)]
    return [*points[:leading], *lines, *points[leading:], *beside], leading + len(lines)


def _line_name(cloud: Cloud, reference: Point) -> str:
    """Of several baselines of a kind, the one whose score it is."""
    alone = sum(point.baseline == reference.baseline for point in cloud.points) == 1
    return LINE_NAMES[reference.baseline or ""] if alone else short(cloud.name(reference))


def _name_style(point: Point) -> dict[str, Any]:
    reads = {"color": look(point.family).colour, "fontsize": 6.5}
    return {**reads, "fontweight": "bold"} if point.standing == "front" else {**reads, "alpha": 0.85}


def _write_names(figure: Figure, axes: Axes, cloud: Cloud, others: list[Point]) -> None:
    names, near = _names(axes, cloud, others)
    points = [(point.x, point.y) for point in [*cloud.points, *others]]
    write_names(figure, axes, names, points=points, segments=_segments(axes, cloud), near=near)


def _segments(axes: Axes, cloud: Cloud) -> list[Segment]:
    """The front, the error bars and the reference lines."""
    front = [((a.x, a.y), (b.x, b.y)) for a, b in _links(cloud)]
    bars = [((p.x, p.y - p.stderr), (p.x, p.y + p.stderr)) for p in cloud.points if p.stderr]
    bars += [((p.x - p.x_stderr, p.y), (p.x + p.x_stderr, p.y)) for p in cloud.points if p.x_stderr]
    left, right = axes.get_xlim()
    levels = [((left, p.y), (right, p.y)) for p in _references(cloud)]
    return [*front, *bars, *levels]
