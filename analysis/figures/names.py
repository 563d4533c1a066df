"""Names written next to points and behind the ends of lines: none covers a point or another name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.figures import labels
from analysis.figures.canvas import FONT_SIZE, POINTS, SMALLEST, shorten, text_size
from analysis.figures.geometry import evenly
from analysis.figures.labels import XY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 3.6
"""Points between a marker's centre and its name."""
_MARKER = 2.6
"""Points: half a marker."""
_LINE_HEIGHT = 7.5
"""Points from one name to the next behind the ends of lines."""
_HAIRLINE: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.4, "shrinkA": 0}
Segment = tuple[XY, XY]


@dataclass(frozen=True)
class PointName:
    """A name that belongs next to a point given in data coordinates."""

    text: str
    x: float
    y: float
    colour: str
    size: float = FONT_SIZE
    bold: bool = False
    italic: bool = False

    @property
    def style(self) -> dict[str, Any]:
        """As keywords of matplotlib's Text."""
        shape = {"fontweight": "bold" if self.bold else "normal", "fontstyle": "italic" if self.italic else "normal"}
        return {"color": self.colour, "fontsize": self.size, **shape}


def name_points(
    figure: Figure,
    axes: Axes,
    names: Sequence[PointName],
    *,
    points: Sequence[XY],
    segments: Sequence[Segment] = (),
    near: int | None = None,
) -> None:
    """Write those names that have room, the first ones first. `points` are never covered, and `segments` (both in data
    coordinates) only where there is no other place; names from number `near` on are left out rather than moved far.
    The axes have to have their final limits."""
    figure.draw_without_rendering()
    unit = figure.dpi / POINTS
    marker = _MARKER * unit
    anchors = [_pixels(axes, (name.x, name.y)) for name in names]
    sizes = [(width * unit, height * unit) for width, height in (_name_size(figure, name) for name in names)]
    places = labels.place(
        anchors,
        sizes,
        taken=[(x - marker, y - marker, x + marker, y + marker) for x, y in (_pixels(axes, each) for each in points)],
        lines=[(_pixels(axes, a), _pixels(axes, b)) for a, b in segments],
        bounds=axes.get_window_extent().extents,
        gap=GAP * unit,
        near=near,
    )
    for name, anchor, size, place in zip(names, anchors, sizes, places, strict=True):
        if place:
            x, y = (place[0] - anchor[0]) / unit, (place[1] - anchor[1]) / unit
            _name_point(axes, name, (x, y, x + size[0] / unit, y + size[1] / unit))


def _name_point(axes: Axes, name: PointName, box: labels.Box) -> None:
    """Write a name into a box given in points from its anchor, with a hairline where that is far away."""
    text = axes.annotate(
        shorten(name.text),
        (name.x, name.y),
        (box[0], box[1]),
        textcoords="offset points",
        ha="left",
        va="bottom",
        **name.style,
    )
    text.set_in_layout(False)
    end = labels.nearest(box, (0.0, 0.0))
    if math.hypot(*end) > 1.6 * GAP:
        line = {**_HAIRLINE, "color": name.colour, "shrinkB": 2.5}
        axes.annotate("", (name.x, name.y), end, textcoords="offset points", arrowprops=line).set_in_layout(False)


def _name_size(figure: Figure, name: PointName) -> XY:
    """Width and height in points."""
    text = figure.text(0, 0, shorten(name.text), va="bottom", **name.style)
    size = text_size(text)
    text.remove()
    return size


def _pixels(axes: Axes, point: XY) -> XY:
    across, up = axes.transData.transform(point)
    return (float(across), float(up))


@dataclass(frozen=True)
class EndName:
    """A name for a line that ends at height `y` (data coordinates) on the right."""

    text: str
    y: float
    colour: str


def name_ends(figure: Figure, axes: Axes, names: Sequence[EndName]) -> None:
    """Names beside the right edge at the heights where their lines end, moved apart where they are close; where there
    is no room for all, evenly chosen ones. A hairline leads to a name that had to move."""
    figure.draw_without_rendering()
    unit = figure.dpi / POINTS
    window = axes.get_window_extent()
    low, high = window.y0 / unit, window.y1 / unit
    shown = evenly(sorted(names, key=lambda name: -name.y), int((high - low) / _LINE_HEIGHT))
    ends = [float(axes.transData.transform((1.0, name.y))[1]) / unit for name in shown]
    moved = [b - a for a, b in zip(ends, labels.stack(ends, _LINE_HEIGHT, low, high), strict=True)]
    away = 9.0 if any(abs(distance) > _LINE_HEIGHT / 2 for distance in moved) else 3.0
    for name, distance in zip(shown, moved, strict=True):
        line = {**_HAIRLINE, "color": name.colour, "shrinkB": 0, "relpos": (0, 0.5)}
        axes.annotate(
            shorten(name.text),
            (1.0, name.y),
            xytext=(away, distance),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            arrowprops=line if abs(distance) > _LINE_HEIGHT / 2 else None,
            fontsize=SMALLEST,
            color=name.colour,
            va="center",
            annotation_clip=False,
        )
