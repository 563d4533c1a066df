"""Names written next to the points of a figure: none covers a point or another name (see analysis.figures.labels)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.figures import labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 3.6
"""Points between a marker's centre and its name."""
_MARKER = 2.6
Segment = tuple[labels.XY, labels.XY]


@dataclass(frozen=True)
class Name:
    """A text that wants to stand near a point given in data coordinates."""

    text: str
    x: float
    y: float
    style: dict[str, Any]


def write_names(
    figure: Figure,
    axes: Axes,
    names: Sequence[Name],
    *,
    points: Sequence[labels.XY],
    segments: Sequence[Segment] = (),
    near: int | None = None,
) -> None:
    """Write those names that find room, the first ones first. `points` are never covered and `segments` (data
    coordinates both) if there is another place; names from number `near` on are left out rather than moved far."""
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    anchors = [_pixels(axes, (name.x, name.y)) for name in names]
    sizes = [_size(figure, name) for name in names]
    places = labels.place(
        anchors,
        sizes,
        taken=[_box(_pixels(axes, point), _MARKER * unit) for point in points],
        lines=[(_pixels(axes, a), _pixels(axes, b)) for a, b in segments],
        bounds=axes.get_window_extent().extents,
        gap=GAP * unit,
        near=near,
    )
    for name, anchor, size, place in zip(names, anchors, sizes, places, strict=True):
        if place:
            x, y = (place[0] - anchor[0]) / unit, (place[1] - anchor[1]) / unit
            _write(axes, name, (x, y, x + size[0] / unit, y + size[1] / unit))


def _write(axes: Axes, name: Name, box: labels.Box) -> None:
    """Write a name into a box given in points from its anchor, with a hairline where that is far away."""
    text = axes.annotate(
        name.text, (name.x, name.y), (box[0], box[1]), textcoords="offset points", ha="left", va="bottom", **name.style
    )
    text.set_in_layout(False)
    end = labels.nearest(box, (0.0, 0.0))
    if math.hypot(*end) > 1.6 * GAP:
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": name.style["color"], "shrinkA": 0, "shrinkB": 2.5}
        axes.annotate("", (name.x, name.y), end, textcoords="offset points", arrowprops=line).set_in_layout(False)


def _size(figure: Figure, name: Name) -> labels.XY:
    """Width and height of a name in pixels."""
    text = figure.text(0, 0, name.text, va="bottom", **name.style)
    extent = text.get_window_extent()
    text.remove()
    return (extent.width, extent.height)


def _pixels(axes: Axes, point: labels.XY) -> labels.XY:
    across, up = axes.transData.transform(point)
    return (float(across), float(up))


def _box(centre: labels.XY, radius: float) -> labels.Box:
    x, y = centre
    return (x - radius, y - radius, x + radius, y + radius)
