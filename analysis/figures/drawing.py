"""`mlkv figure`: any of the figures of any results (a sweep, a published set, imported files) as PNG, PDF and SVG."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.figures.canvas import PNG_DPI, RC, NeedsFigure, drawing_into, extend_footer
from analysis.figures.geometry import number_text
from analysis.figures.kinds import FIGURES
from analysis.statistics.sources import Source
from mlkv.registry import function_of
from sweeps.store.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")


class CannotDraw(ValueError):
    """A figure that was named and cannot be drawn; the message says why, in one line."""


def write_figures(source: Source, kinds: Sequence[str], out_dir: Path, published: Source | None = None) -> list[Path]:
    """Write the figures called `kinds`, or all that there is something to draw for, and return the files.

    `published` are results that the Pareto figures and the loss curves show as well. Raises CannotDraw for an unknown
    kind, and for a named one without anything to draw.
    """
    drawn = {kind: _draw_named(kind, source, published) for kind in kinds} or draw_all(source, published)
    if not drawn:
        raise CannotDraw(
            f"{source.name}: nothing to draw yet; `mlkv status {source.name}` shows the state of its steps"
        )
    files = {out_dir / f"{kind}.{form}": (figure, form) for kind, figure in drawn.items() for form in FORMATS}
    for path, (figure, form) in files.items():
        write_atomic(path, render_bytes(figure, form))
    return list(files)


def draw_all(source: Source, published: Source | None = None) -> dict[str, Figure]:
    """Every figure that there is something to draw for, but none that repeats another."""
    kinds = [kind for kind, row in FIGURES.items() if not (row.repeats and function_of(row.repeats)(source))]
    return {kind: figure for kind in kinds if (figure := draw(kind, source, published))}


def draw(kind: str, source: Source, published: Source | None = None, into: Axes | None = None) -> Figure | None:
    """One figure in the paper's style, or None where there is nothing to draw. Raises KeyError for an unknown kind.

    into: axes of the caller, for a figure of one panel; the figure is then the caller's, and its layout stays as it is.
    """
    import matplotlib
    from matplotlib.figure import Figure as MatplotlibFigure

    with _without_glyph_warnings(), matplotlib.rc_context(RC), FIGURES.running(kind, NeedsFigure), drawing_into(into):
        figure: Figure | None = function_of(FIGURES[kind].draw)(source, published)
        if figure is None:
            return None
        if not isinstance(figure, MatplotlibFigure):
            raise TypeError(f"must give a matplotlib figure or None, not {type(figure).__name__}")
        _write_plain_numbers([into] if into else figure.axes)
        if into:
            figure.draw_without_rendering()  # so that the caller's layout has room for what is written around the axes
        else:
            extend_footer(figure, source.whose)
            _finish(figure)
        return figure


def draw_axes(kind: str, source: Source, published: Source | None = None, ax: Axes | None = None) -> Axes:
    """A figure as its axes, the first panel of several: those of the caller where there are any. Raises CannotDraw,
    and NeedsFigure where a figure of several panels is to be drawn into axes."""
    from matplotlib.axes import Axes as MatplotlibAxes

    if not isinstance(ax, MatplotlibAxes | None):
        raise CannotDraw(f"ax: must be the axes of one panel, not {type(ax).__name__}")
    figure = _draw_named(kind, source, published, ax)
    if ax is not None and ax not in figure.axes:  # drawn by an extension that calls no `new_figure`
        raise NeedsFigure("ax: this figure makes its own axes; leave it out")
    return figure.axes[0] if ax is None else ax


@contextmanager
def _without_glyph_warnings() -> Iterator[None]:
    """A letter that the font has not (of an emoji, of Chinese) is drawn as a box, which is seen without a warning for
    each; an SVG has the letter itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def _draw_named(kind: str, source: Source, published: Source | None, into: Axes | None = None) -> Figure:
    if kind not in FIGURES:
        raise CannotDraw(f"figure = {kind}: choose from {', '.join(FIGURES)}")
    if figure := draw(kind, source, published, into):
        return figure
    raise CannotDraw(f"figure = {kind}: nothing to draw for {source.name}: it needs {FIGURES[kind].needs}")


def _write_plain_numbers(drawn: Sequence[Axes]) -> None:
    """matplotlib's own labels of a logarithmic axis are formulas, which are switched off for the sake of names."""
    from matplotlib.ticker import LogFormatter, NullFormatter

    for axis in (axis for axes in drawn for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatter):
            axis.set_major_formatter(lambda value, _: number_text(value))
            axis.set_minor_formatter(NullFormatter())


def _finish(figure: Figure) -> None:
    """Compute the layout once for all formats, so that they are the same picture."""
    # Twice: the room that names need depends on the size of the axes, and the other way round.
    figure.draw_without_rendering()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def render_bytes(figure: Figure, form: str) -> bytes:
    """The file's bytes; equal figures give equal ones."""
    import matplotlib

    buffer = BytesIO()
    without_date = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(form)
    with _without_glyph_warnings(), matplotlib.rc_context(RC):
        figure.savefig(buffer, format=form, dpi=PNG_DPI, metadata=without_date)
    return buffer.getvalue()
