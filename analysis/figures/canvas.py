"""The paper's column: one size, one set of fonts, and names that stand beside the lines they belong to.

3.3 inches wide, nothing smaller than 6 pt. matplotlib is imported when a figure is drawn and never asks for a display.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from analysis.figures.ticks import nice_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 3.3, 2.55
QUIET, GRID, ALARM = "#6f7682", "#e9ebee", "#b00020"
"""Of notes and reference lines; of grids; of what ran out of memory."""
SMALLEST = 6.0
STYLE: Any = {
    "font.size": 7,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.width": 0.4,
    "xtick.minor.size": 1.5,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.labelcolor": "#222222",
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "mlkv",
}
_LINE_HEIGHT = 7.5
"""Points from one name to the next in a column of names."""
_LETTERS, _MOST_PARTS = 84, 8
"""Of a remark: letters in a line, and the most items in a list."""
_LONGEST = 30
"""Letters of a name; longer ones would leave no room for the figure."""

P = ParamSpec("P")
T = TypeVar("T")


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """A function that draws in the paper's style."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inside


def new_figure(height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty figure that belongs to no window and no global state."""
    figure = _figure(height)
    return figure, figure.add_subplot()


def new_panels(rows: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels in reading order that share their vertical axis."""
    figure = _figure(height)
    return figure, list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)


def _figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def note(axes: Axes, text: str) -> None:
    """A quiet remark under the axes, as part of the figure."""
    axes.figure.supxlabel(text, fontsize=SMALLEST, color=QUIET, fontstyle="italic")


def wrapped(parts: Sequence[str]) -> list[str]:
    """Lines of a remark that are no wider than the figure; of very many parts, the first."""
    shown = [*parts[:_MOST_PARTS], *(["…"] if len(parts) > _MOST_PARTS else [])]
    return textwrap.wrap("   ".join(shown), _LETTERS, break_long_words=True) if shown else []


def short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def score_axis(axes: Axes, values: Iterable[tuple[float, float | None]]) -> None:
    """A vertical axis over values and their standard errors, with ticks of its own: those that matplotlib chooses
    depend on the resolution, and with them the room that their labels take."""
    pairs = [(value, error or 0.0) for value, error in values]
    low, high = min(value - error for value, error in pairs), max(value + error for value, error in pairs)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    ticks, digits = nice_ticks(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)
    axes.set_yticks(ticks, [f"{tick:.{digits}f}".replace("-", "−") for tick in ticks])


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
    unit = figure.dpi / 72
    low, high = (edge / unit for edge in (axes.get_window_extent().y0, axes.get_window_extent().y1))
    ordered = sorted(names, key=lambda name: -name.y)
    kept = evenly(ordered, int((high - low) / _LINE_HEIGHT))
    ends = [float(axes.transData.transform((1.0, name.y))[1]) / unit for name in kept]
    moved = [b - a for a, b in zip(ends, within(spread(ends, _LINE_HEIGHT), _LINE_HEIGHT, low, high), strict=True)]
    away = 9.0 if any(abs(distance) > _LINE_HEIGHT / 2 for distance in moved) else 3.0
    for name, distance in zip(kept, moved, strict=True):
        _name_end(axes, name, (away, distance))


def _name_end(axes: Axes, name: EndName, moved: tuple[float, float]) -> None:
    led = abs(moved[1]) > _LINE_HEIGHT / 2
    style = {"fontsize": SMALLEST, "color": name.colour, "va": "center", "annotation_clip": False}
    line = {"arrowstyle": "-", "linewidth": 0.4, "color": name.colour, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)}
    axes.annotate(
        short(name.text),
        (1.0, name.y),
        xytext=moved,
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        arrowprops=line if led else None,
        **style,  # type: ignore[arg-type]
    )


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, first and last among them."""
    if len(items) <= most:
        return list(items)
    if most < 2:
        return list(items[:most])
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def spread(heights: Iterable[float], gap: float) -> list[float]:
    """Heights moved as little as needed to be `gap` apart, in their order from high to low."""
    groups: list[list[float]] = []  # names that push each other share the mean of their wishes (isotonic regression)
    wished = [height + gap * i for i, height in enumerate(heights)]
    for wish in wished:
        groups.append([wish])
        while len(groups) > 1 and _mean(groups[-1]) > _mean(groups[-2]):
            pushing = groups.pop()
            groups[-1] += pushing
    tops = [_mean(group) for group in groups for _ in group]
    return [top - gap * i for i, top in enumerate(tops)]


def within(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights that are `gap` apart, from high to low, pushed back between the edges; there has to be room for all."""
    top = [min(height, high - gap * i) for i, height in enumerate(heights)]
    return [max(height, low + gap * (len(top) - 1 - i)) for i, height in enumerate(top)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
