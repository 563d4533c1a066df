"""The figure of a two-column paper: quality against KV memory.

3.3 inches wide, readable in print, safe for colour-blind readers (colour and marker shape both tell the family).
matplotlib is imported when a figure is drawn and never asks for a display.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import labels
from analysis.cloud import Cloud, Point, main_cloud
from analysis.style import look
from analysis.ticks import byte_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 3.3, 2.55
STYLE: Any = {
    "font.size": 7,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.labelcolor": "#222222",
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}
MOST_LABELS = 32
GAP = 3.6
"""Points between a marker's centre and its name."""
LINE_NAMES = {"untouched": "base, untouched", "mha": "base, trained equally"}
_QUIET, _FRONT = "#8a8f98", "#555b66"
_LINE_NAME = {"color": _QUIET, "fontsize": 5.5, "fontstyle": "italic"}


def new_figure() -> tuple[Figure, Axes]:
    """An empty figure that belongs to no window and no global state."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.add_subplot()


def pareto_figure(pivot: pd.DataFrame) -> Figure | None:
    """Main quality axis against KV bytes per token of every variant that has it, or None where no score is planned.

    Raises ValueError for a main axis of unknown direction.
    """
    import matplotlib

    cloud = main_cloud(pivot)
    if cloud is None:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure()
        _draw_frame(axes, cloud)
        _draw_front(axes, cloud)
        for alike in _by_look(cloud.points):
            _draw_points(axes, alike)
        _draw_references(axes, cloud)
        _write_names(figure, axes, cloud)
    return figure


def _draw_frame(axes: Axes, cloud: Cloud) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlabel("KV cache, bytes per token")
    axes.set_ylabel(cloud.axis_label)
    axes.grid(True, color="#e9ebee", linewidth=0.5)
    axes.set_axisbelow(True)
    if cloud.points:
        low, high = min(p.x for p in cloud.points) / 1.5, max(p.x for p in cloud.points) * 1.5
        octaves = byte_ticks(low, high, most=6)
        axes.set_xlim(low, high)
        axes.set_xticks(octaves, [f"{tick:,}" for tick in octaves])
    else:
        axes.text(0.5, 0.5, "nothing has finished yet", transform=axes.transAxes, ha="center", color=_QUIET)
    axes.minorticks_off()
    axes.margins(y=0.12)


def _draw_front(axes: Axes, cloud: Cloud) -> None:
    front = cloud.front
    axes.plot([p.x for p in front], [p.y for p in front], color=_FRONT, linewidth=1.0, alpha=0.55, zorder=2)


def _by_look(points: list[Point]) -> list[list[Point]]:
    """Points that are drawn alike, dominated ones first: one call draws a thousand as fast as one."""
    alike: dict[tuple[Any, ...], list[Point]] = {}
    for point in sorted(points, key=lambda p: p.on_front):
        look_of = (point.on_front, point.family, point.baseline == "untouched", point.stderr is None)
        alike.setdefault(look_of, []).append(point)
    return list(alike.values())


def _draw_points(axes: Axes, points: list[Point]) -> None:
    """Points of one family that are all on the front or all not, all the untouched base or none."""
    first, shape = points[0], look(points[0].family)
    reference = first.baseline == "untouched"
    axes.errorbar(
        [point.x for point in points],
        [point.y for point in points],
        yerr=None if first.stderr is None else [point.stderr or 0.0 for point in points],
        fmt=shape.marker,
        markersize=4.4,
        color=shape.colour,
        markerfacecolor="white" if reference else shape.colour,
        markeredgecolor=shape.colour if reference else "white",
        markeredgewidth=0.8 if reference else 0.5,
        elinewidth=0.7,
        capsize=1.4,
        capthick=0.7,
        alpha=1.0 if reference or first.on_front else 0.45,
        zorder=4 if first.on_front else 3,
    )


def _draw_references(axes: Axes, cloud: Cloud) -> None:
    for point in _references(cloud):
        dashes = (1.2, 1.8) if point.baseline == "untouched" else (5, 2)
        axes.axhline(point.y, color=_QUIET, linewidth=0.7, dashes=dashes, zorder=1)


def _references(cloud: Cloud) -> list[Point]:
    return [point for point in cloud.points if point.baseline]


@dataclass(frozen=True)
class _Name:
    """A text that wants to stand near a point given in data coordinates."""

    text: str
    x: float
    y: float
    style: dict[str, Any]


def _names(axes: Axes, cloud: Cloud) -> tuple[list[_Name], int]:
    """Front, baselines and reference lines (at their left end) first; then, from the returned number on, the others."""
    ordered = sorted(cloud.points, key=lambda p: (not p.on_front, p.baseline is None, p.x))[:MOST_LABELS]
    points = [_Name(p.variant, p.x, p.y, _name_style(p)) for p in ordered]
    left = axes.get_xlim()[0]
    lines = [_Name(LINE_NAMES[p.baseline or ""], left, p.y, _LINE_NAME) for p in _references(cloud)]
    leading = sum(p.on_front or p.baseline is not None for p in ordered)
    return [*points[:leading], *lines, *points[leading:]], leading + len(lines)


def _name_style(point: Point) -> dict[str, Any]:
    reads = {"color": look(point.family).colour, "fontsize": 6.5}
    return {**reads, "fontweight": "bold"} if point.on_front else {**reads, "alpha": 0.8}


def _write_names(figure: Figure, axes: Axes, cloud: Cloud) -> None:
    names, near = _names(axes, cloud)
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    anchors = [_pixels(axes, name.x, name.y) for name in names]
    sizes = [_size(figure, name) for name in names]
    places = labels.place(
        anchors,
        sizes,
        taken=[_marker_box(axes, point, 2.6 * unit) for point in cloud.points],
        lines=_line_pixels(axes, cloud),
        bounds=axes.get_window_extent().extents,
        gap=GAP * unit,
        near=near,
    )
    for name, anchor, size, place in zip(names, anchors, sizes, places, strict=True):
        if place:
            x, y = (place[0] - anchor[0]) / unit, (place[1] - anchor[1]) / unit
            _write(axes, name, (x, y, x + size[0] / unit, y + size[1] / unit))


def _write(axes: Axes, name: _Name, box: labels.Box) -> None:
    """Write a name into a box given in points from its anchor, with a hairline where that is far away."""
    text = axes.annotate(
        name.text, (name.x, name.y), (box[0], box[1]), textcoords="offset points", ha="left", va="bottom", **name.style
    )
    text.set_in_layout(False)
    end = labels.nearest(box, (0.0, 0.0))
    if math.hypot(*end) > 2 * GAP:
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": name.style["color"], "shrinkA": 0, "shrinkB": 2.5}
        axes.annotate("", (name.x, name.y), end, textcoords="offset points", arrowprops=line).set_in_layout(False)


def _size(figure: Figure, name: _Name) -> labels.XY:
    """Width and height of a name in pixels."""
    text = figure.text(0, 0, name.text, va="bottom", **name.style)
    extent = text.get_window_extent()
    text.remove()
    return (extent.width, extent.height)


def _pixels(axes: Axes, x: float, y: float) -> labels.XY:
    across, up = axes.transData.transform((x, y))
    return (float(across), float(up))


def _marker_box(axes: Axes, point: Point, radius: float) -> labels.Box:
    x, y = _pixels(axes, point.x, point.y)
    return (x - radius, y - radius, x + radius, y + radius)


def _line_pixels(axes: Axes, cloud: Cloud) -> list[tuple[labels.XY, labels.XY]]:
    """The front, the error bars and the reference lines: names may cross them where there is no better place."""
    front = [_pixels(axes, p.x, p.y) for p in cloud.front]
    bars = [(_pixels(axes, p.x, p.y - p.stderr), _pixels(axes, p.x, p.y + p.stderr)) for p in cloud.points if p.stderr]
    left, right = axes.get_xlim()
    levels = [(_pixels(axes, left, p.y), _pixels(axes, right, p.y)) for p in _references(cloud)]
    return [*pairwise(front), *bars, *levels]
