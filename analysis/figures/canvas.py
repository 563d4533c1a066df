"""The paper's column: one size and one set of fonts for every figure, and the texts around the axes.

3.3 inches wide, nothing smaller than 6 pt. matplotlib is imported when a figure is drawn and never asks for a display.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from analysis.data.text import one_line
from analysis.figures.geometry import Scale
from analysis.figures.labels import XY
from analysis.figures.style import BASELINE_DASHES, GRID, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

WIDTH, HEIGHT = 3.3, 2.55
"""Inches: a column of a two-column paper."""
PAGE_WIDTH = 6.9
"""Inches: both columns and what is between them, for figures of many panels."""
FONT_SIZE, SMALLEST = 6.5, 6.0
"""Points: of names and tick labels; of everything else that is written into the axes, and the least there is."""
POINTS, PNG_DPI = 72, 300
"""To the inch."""
RC: Any = {
    "font.size": 7,
    "axes.labelsize": 7.5,
    "axes.titlesize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
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
    # Names come from users: `lr=$x` and `a_b^c` are names and not formulas, which may end in an error.
    "text.parse_math": False,
    # Text stays text: journals refuse Type 3 fonts, and a name in an SVG can be searched.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    # Ids in an SVG are random without it, and equal figures would be different files.
    "svg.hashsalt": "mlkv",
}
_BAR_OPACITY = 0.6
"""Error bars are paler than their points, as they cross names and other points."""
_EDGE = 3.0
"""Points between a remark and the edges of the figure."""
_LINE_SPACING = 1.25
"""Of a line's height by its font size."""
_PART_GAP = "   "
_MOST_PARTS = 8
_LONGEST_NAME = 30
"""Letters; longer ones would leave no room for the figure."""


class NeedsFigure(ValueError):
    """Axes were given to a figure that has several of its own."""


_given: ContextVar[Axes | None] = ContextVar("axes of the caller", default=None)


@contextmanager
def drawing_into(axes: Axes | None) -> Iterator[None]:
    """Within it a figure of one panel is drawn into these axes; None: into a figure of its own."""
    token = _given.set(axes)
    try:
        yield
    finally:
        _given.reset(token)


def new_figure(height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty figure of one column and its axes. It belongs to no window and to no global state. Within
    `drawing_into`, the caller's."""
    if given := _given.get():
        return given.figure.figure, given
    figure = _figure(height)
    return figure, figure.add_subplot()


def new_panels(rows: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels in reading order that share their vertical axis. Raises NeedsFigure for several within `drawing_into`."""
    if rows * columns == 1:
        figure, axes = new_figure(height)
        return figure, [axes]
    figure = _figure_of_panels(height)
    return figure, list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)


def new_stack(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels below each other that share their horizontal axis. Raises NeedsFigure for several within
    `drawing_into`."""
    if panels == 1:
        figure, axes = new_figure(height)
        return figure, [axes]
    figure = _figure_of_panels(height)
    return figure, list(figure.subplots(panels, 1, sharex=True, squeeze=False).flat)


def new_grid(panels: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels in reading order, as wide as a page, that share no axis; rows are `height` inches. Raises NeedsFigure
    within `drawing_into`."""
    rows = -(-panels // columns)
    figure = _figure_of_panels(rows * height, PAGE_WIDTH)
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(panels)]


def _figure_of_panels(height: float, width: float = WIDTH) -> Figure:
    if _given.get():
        raise NeedsFigure("ax: this figure has panels of its own; leave it out")
    return _figure(height, width)


def _figure(height: float, width: float = WIDTH) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Letters are a little wider at some resolutions, so the layout is computed at that of the PNG.
    figure = Figure(figsize=(width, height), dpi=PNG_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def set_axes(axes: Axes, x: Scale, x_label: str, y: Scale, y_label: str) -> None:
    """Give both axes their ends, ticks, labels and grid; a label that is longer than its axis goes on in a second
    line."""
    axes.set_xscale("log" if x.log else "linear")
    axes.set_yscale("log" if y.log else "linear")
    axes.set_xlim(x.low, x.high)
    axes.set_ylim(y.low, y.high)
    axes.set_xticks([tick.value for tick in x.ticks], [tick.text for tick in x.ticks])
    axes.set_yticks([tick.value for tick in y.ticks], [tick.text for tick in y.ticks])
    axes.minorticks_off()
    axes.grid(True, color=GRID, linewidth=RC["grid.linewidth"])
    axes.set_axisbelow(True)
    # The vertical axis is as high as the figure, less half an inch or so below it.
    width, height = _size_of_given() or (WIDTH * POINTS, (HEIGHT - 0.5) * POINTS)
    wrap(axes.set_xlabel(x_label), width - 2 * _EDGE)
    wrap(axes.set_ylabel(y_label), height - 2 * _EDGE)


def _size_of_given() -> XY | None:
    """Width and height of the caller's axes in points."""
    if not (axes := _given.get()):
        return None
    box, unit = axes.get_window_extent(), axes.figure.dpi / POINTS
    return box.width / unit, box.height / unit


def draw_points(
    axes: Axes,
    points: Sequence[XY],
    *,
    marker: str,
    size: float,
    colour: str,
    y_errors: Sequence[float] | None = None,
    x_errors: Sequence[XY] | None = None,
    hollow: bool = False,
    opacity: float = 1.0,
) -> None:
    """Points that look the same, with their standard errors; those along x have a part on the left and one on the
    right, as a bar ends where a logarithmic axis does. A "+" has no area and is drawn in its own colour alone."""
    outlined = hollow or marker == "+"
    markers, caps, bars = axes.errorbar(
        [x for x, _ in points],
        [y for _, y in points],
        yerr=y_errors,
        xerr=list(zip(*x_errors, strict=True)) if x_errors else None,
        fmt=marker,
        markersize=size,
        color=colour,
        markerfacecolor="white" if hollow else colour,
        markeredgecolor=colour if outlined else "white",
        markeredgewidth=0.9 if outlined else 0.5,
        elinewidth=0.7,
        capsize=1.4,
        capthick=0.7,
        zorder=3 + opacity,  # faint points below the others
    )
    markers.set_alpha(opacity)
    for bar in (*caps, *bars):
        bar.set_alpha(opacity * _BAR_OPACITY)


def draw_level(axes: Axes, y: float, baseline: str | None) -> None:
    """A baseline's score as a line across the axes."""
    axes.axhline(y, color=MUTED, linewidth=0.7, dashes=BASELINE_DASHES[baseline or ""], zorder=1)


def footer(figure: Figure, lines: Sequence[str]) -> None:
    """Quiet remarks below the axes. What is wider than the figure goes on in another line, if possible where parts of
    a line are three spaces apart. The figure has room for one line; it becomes higher by the others, so that the axes
    keep their height. In a caller's figure they are below the label of the horizontal axis."""
    if not lines:
        return
    style: dict[str, Any] = {"fontsize": SMALLEST, "color": MUTED, "fontstyle": "italic"}
    if (axes := _given.get()) and (size := _size_of_given()):

        def below(renderer: Any) -> Any:
            """Where the axis with its labels is when the text is drawn."""
            return axes.xaxis.get_tightbbox(renderer) or axes.bbox

        place: dict[str, Any] = {
            "xycoords": ("axes fraction", below),
            "textcoords": "offset points",
            "ha": "center",
            "va": "top",
        }
        wrap(axes.annotate("\n".join(lines), (0.5, 0), (0, -_EDGE), annotation_clip=False, **place, **style), size[0])
        return
    text = figure.supxlabel("\n".join(lines), **style)
    wrap(text, figure.get_figwidth() * POINTS - 2 * _EDGE)
    further = text.get_text().count("\n")
    figure.set_figheight(figure.get_figheight() + further * SMALLEST * _LINE_SPACING / POINTS)


def extend_footer(figure: Figure, lines: Sequence[str]) -> None:
    """Further remarks below those of a whole figure."""
    if not lines:
        return
    before = figure.get_supxlabel()
    written = before.count("\n")
    figure.set_figheight(figure.get_figheight() - written * SMALLEST * _LINE_SPACING / POINTS)
    footer(figure, [*filter(None, before.split("\n")), *lines])


def first_parts(parts: Sequence[str]) -> list[str]:
    """A line of a footer made of very many parts: the first ones. Empty without parts."""
    shown = [*parts[:_MOST_PARTS], *(["…"] if len(parts) > _MOST_PARTS else [])]
    return [_PART_GAP.join(shown)] if shown else []


def wrap(text: Text, room: float) -> None:
    """Break lines that are longer than `room` points."""

    def fits(piece: str) -> bool:
        text.set_text(piece)
        return max(text_size(text)) <= room

    lines = text.get_text().split("\n")
    text.set_text("\n".join(piece for line in lines for piece in _split(line, fits)))


def _split(line: str, fits: Callable[[str], bool], gaps: Sequence[str] = (_PART_GAP, " ", "")) -> list[str]:
    """Pieces that fit, cut at the first gap where one is, else at a later one: between parts, words, letters."""
    if fits(line) or not gaps:
        return [line]
    pieces: list[str] = []
    for part in line.split(gaps[0]) if gaps[0] else line:
        if pieces and fits(longer := f"{pieces[-1]}{gaps[0]}{part}"):
            pieces[-1] = longer
        else:
            pieces += _split(part, fits, gaps[1:])
    return pieces


def text_size(text: Text) -> tuple[float, float]:
    """Width and height of a text in points, as it is drawn."""
    box, unit = text.get_window_extent(), text.figure.dpi / POINTS
    return (box.width / unit, box.height / unit)


def shorten(name: str) -> str:
    """A name as figures write it: on one line, and not too long."""
    name = one_line(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
