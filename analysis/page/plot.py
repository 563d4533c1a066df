"""The quality/memory plot laid out in pixels for the page's interactive plot (templates/report.js draws it)."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.figures import labels
from analysis.figures.geometry import Scale
from analysis.figures.labels import XY
from analysis.figures.pareto_data import ParetoData, ParetoPoint
from analysis.figures.pareto_layout import NameWish, ParetoLayout, pareto_layout
from analysis.figures.style import family_style

MOST_NAMES = 40
_LETTER, _LINE_HEIGHT = 7.8, 15.0
"""Width of an average bold letter and height of a line at the page's 12.5 px label size; fonts differ, so a name is
anchored on the side of its point."""
MARKER, GAP = 6.0, 8.0
"""Half a marker, and the distance from its centre to its name."""


@dataclass(frozen=True)
class Frame:
    """Pixels: the size of the drawing, and where its axes begin and end."""

    width: float = 760.0
    height: float = 520.0
    left: float = 70.0
    right: float = 736.0
    top: float = 18.0
    bottom: float = 468.0


FRAME = Frame()

# The markers of the paper's figures as SVG paths, about 12 px wide.
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
    "d": "M0,-7L4.2,0L0,7L-4.2,0z",
    "8": "M-2.6,-6.2H2.6L6.2,-2.6V2.6L2.6,6.2H-2.6L-6.2,2.6V-2.6z",
    "*": "M0,-6.8L1.6,-2.3L6.5,-2.1L2.7,0.9L4.0,5.5L0,2.8L-4.0,5.5L-2.7,0.9L-6.5,-2.1L-1.6,-2.3z",
}


@dataclass(frozen=True)
class PixelAxis:
    """Maps the values of a scale to pixels: its low end to `start`, its high end to `end`."""

    scale: Scale
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * self.scale.share(value)

    def value(self, pixel: float) -> float:
        """The value drawn at a pixel: the inverse."""
        return self.scale.value((pixel - self.start) / (self.end - self.start))

    @property
    def ticks(self) -> list[tuple[float, str]]:
        return [(self(tick.value), tick.text) for tick in self.scale.ticks]


@dataclass(frozen=True)
class Label:
    """A text's baseline position, and which part of the text is there: `start`, `middle` or `end`."""

    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class Mark:
    """A point as it is drawn; `label` is where its name goes, or None where there is no room."""

    point: ParetoPoint
    x: float
    y: float
    bar: tuple[float, float] | None
    label: Label | None


@dataclass(frozen=True)
class Level:
    """A baseline's score as a line across, with its name where there is room for it."""

    y: float
    baseline: str
    name: str
    label: Label | None


@dataclass(frozen=True)
class FrontLine:
    """From a front point to the next; `undecided` where noise leaves open whether one of them is on the front."""

    x1: float
    y1: float
    x2: float
    y2: float
    undecided: bool


@dataclass(frozen=True)
class Family:
    """A legend entry; `coverage` is the share of the plot's box that the family dominates alone."""

    name: str
    colour: str
    dark: str
    shape: str
    coverage: float


@dataclass(frozen=True)
class Plot:
    data: ParetoData
    x: PixelAxis
    y: PixelAxis
    marks: list[Mark]
    front: list[FrontLine]
    levels: list[Level]
    families: list[Family]


def layout_plot(data: ParetoData) -> Plot | None:
    """The plot of all variants that have a score, or None while no variant has it."""
    if not data.points:
        return None
    layout = pareto_layout(data, [], most_ticks=9, most_names=MOST_NAMES)
    x, y = PixelAxis(layout.x, FRAME.left, FRAME.right), PixelAxis(layout.y, FRAME.bottom, FRAME.top)
    written = _labels(data, layout, x, y)
    by_point = {name.point.variant: label for name, label in written if name.role == "point"}
    return Plot(
        data=data,
        x=x,
        y=y,
        marks=[
            Mark(
                point=point,
                x=x(point.x),
                y=y(point.y),
                bar=(y(point.y - point.stderr), y(point.y + point.stderr)) if point.stderr else None,
                label=by_point.get(point.variant),
            )
            for point in sorted(data.points, key=lambda p: p.on_front)  # later marks cover earlier ones
        ],
        front=[
            FrontLine(x(line.start.x), y(line.start.y), x(line.end.x), y(line.end.y), line.undecided)
            for line in layout.front
        ],
        levels=[
            Level(y(name.y), name.point.baseline or "", name.text, label)
            for name, label in written
            if name.role == "level"
        ],
        families=_families(data),
    )


def _labels(data: ParetoData, layout: ParetoLayout, x: PixelAxis, y: PixelAxis) -> list[tuple[NameWish, Label | None]]:
    """Every name, with its place where there is room."""
    places = labels.place(
        [(x(name.x), y(name.y)) for name in layout.names],
        [name_size(name.text) for name in layout.names],
        taken=[(x(p.x) - MARKER, y(p.y) - MARKER, x(p.x) + MARKER, y(p.y) + MARKER) for p in data.points],
        lines=[((x(a), y(b)), (x(c), y(d))) for (a, b), (c, d) in layout.obstacles],
        bounds=(FRAME.left, FRAME.top, FRAME.right, FRAME.bottom),
        gap=GAP,
        near=layout.near,
    )
    return [
        (name, label_at(name.text, x(name.x), place) if place else None)
        for name, place in zip(layout.names, places, strict=True)
    ]


def name_size(text: str) -> XY:
    """Estimated width and height of a label."""
    return len(text) * _LETTER, _LINE_HEIGHT


def label_at(text: str, x: float, corner: XY) -> Label:
    """The label whose estimated box has this top left corner, for a point at `x`."""
    width, baseline = name_size(text)[0], corner[1] + 0.76 * _LINE_HEIGHT
    if corner[0] >= x:
        return Label(corner[0], baseline, "start")
    if corner[0] + width <= x:
        return Label(corner[0] + width, baseline, "end")
    return Label(corner[0] + width / 2, baseline, "middle")


def _families(data: ParetoData) -> list[Family]:
    """The families that occur, for a legend, with what each covers alone."""
    names = dict.fromkeys(point.family or "?" for point in data.points)
    styles = {name: family_style(name) for name in names}
    return [
        Family(name, style.colour, style.dark, SHAPES[style.marker], data.coverage(name))
        for name, style in styles.items()
    ]
