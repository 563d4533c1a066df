"""The figures of quality against cost.

Colour and marker both show the family. Points that are surely on the front are filled, undecided ones hollow, dominated
ones faint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.data import machine
from analysis.figures.canvas import SMALLEST, draw_level, draw_points, first_parts, footer, new_figure, set_axes
from analysis.figures.geometry import Scale
from analysis.figures.names import PointName, name_points
from analysis.figures.pareto_data import (
    CONFIDENCE,
    MEMORY,
    SPEED,
    ChooseScore,
    Cost,
    ParetoData,
    ParetoPoint,
    ParetoStatus,
    accuracy_score,
    loss_score,
    pareto_data,
)
from analysis.figures.pareto_layout import NameWish, ParetoLayout, pareto_layout
from analysis.figures.style import MUTED, family_style
from analysis.statistics.sources import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMES = 32
LEGEND = f"filled: on the front (P ≥ {CONFIDENCE:g})   hollow: undecided   faint: dominated"
PAIRED = "bars: one standard error; variants are compared on the same samples"
WITHOUT_ERRORS = "some errors are unknown: the front is that of the numbers alone"
MACHINES = "measured on different machines: each has a front of its own"
PUBLISHED = "grey: published"
_FRONT = "#555b66"
_FAINT = 0.4
"""Opacity of dominated points."""


def accuracy_by_memory(source: Source, published: Source | None = None) -> Figure | None:
    return _figure_of(source, published, accuracy_score, MEMORY)


def accuracy_by_speed(source: Source, published: Source | None = None) -> Figure | None:
    return _figure_of(source, published, accuracy_score, SPEED)


def loss_by_memory(source: Source, published: Source | None = None) -> Figure | None:
    return _figure_of(source, published, loss_score, MEMORY)


def has_no_accuracy(source: Source) -> bool:
    """Whether the main axis is the loss, so that the figure of the accuracy already shows the loss."""
    return accuracy_score(source.results) == loss_score(source.results)


def _figure_of(source: Source, published: Source | None, score_of: ChooseScore, cost: Cost) -> Figure | None:
    score = score_of(source.results)
    data = pareto_data(source.results, score, cost) if score else None
    if data is None or not data.points:
        return None
    return pareto_figure(data, _published_data(published, score_of, data) if published else None)


def _published_data(published: Source, score_of: ChooseScore, own: ParetoData) -> ParetoData | None:
    """Only of the same metric: a perplexity has no place on an axis of accuracies."""
    score = score_of(published.results)
    return pareto_data(published.results, score, own.cost) if score and score.metric == own.metric_name else None


def pareto_figure(data: ParetoData, published: ParetoData | None = None) -> Figure:
    """The points (at least one) with their front, baselines and names; `published` points beside them in grey."""
    figure, axes = new_figure()
    others = published.points if published else []
    layout = pareto_layout(data, others, most_ticks=6, most_names=MOST_NAMES)
    set_axes(axes, layout.x, data.cost.label, layout.y, data.axis_label)
    for points in _by_appearance(data.points):
        _draw_points(axes, points, layout.x)
    if published:
        _draw_published(axes, published)
    _draw_lines(axes, layout)
    footer(figure, _remarks(data, published))
    name_points(
        figure,
        axes,
        [_point_name(name) for name in layout.names],
        points=[(point.x, point.y) for point in [*data.points, *others]],
        segments=layout.obstacles,
        near=layout.near,
    )
    return figure


def _remarks(data: ParetoData, published: ParetoData | None) -> list[str]:
    """What the marks mean, a line each."""
    chances = any(point.chance is not None for point in data.points)
    lines = [LEGEND] if chances else [WITHOUT_ERRORS] if data.contenders else []
    lines += [PAIRED] if data.paired and chances else []
    lines += [MACHINES, *first_parts(machine.key(data.machines))] if data.machines else []
    return [*lines, *data.signed, *([PUBLISHED] if published else [])]


Appearance = tuple[ParetoStatus, str | None, bool, bool, bool]
"""Status, family, whether it is the untouched base, and whether it has error bars along y and x."""


def _by_appearance(points: list[ParetoPoint]) -> list[list[ParetoPoint]]:
    """Points that look the same, dominated ones first: one call of matplotlib draws a thousand as fast as one."""
    groups: dict[Appearance, list[ParetoPoint]] = {}
    for point in sorted(points, key=lambda p: p.pareto_status != "dominated"):
        bars = point.stderr is not None, point.x_stderr is not None
        groups.setdefault((point.pareto_status, point.family, point.baseline == "untouched", *bars), []).append(point)
    return list(groups.values())


def _draw_points(axes: Axes, points: list[ParetoPoint], x: Scale) -> None:
    """Points that look the same."""
    first, style = points[0], family_style(points[0].family)
    reference, hollow = first.baseline == "untouched", first.pareto_status == "undecided"
    faint = first.pareto_status == "dominated" and not reference
    draw_points(
        axes,
        [(point.x, point.y) for point in points],
        y_errors=None if first.stderr is None else [point.stderr or 0.0 for point in points],
        x_errors=None if first.x_stderr is None else [_inside(point.x, point.x_stderr or 0.0, x) for point in points],
        marker="+" if reference else style.marker,
        size=5.5 if reference else 4.4,
        colour=style.colour,
        hollow=hollow,
        opacity=_FAINT if faint else 1.0,
    )


def _inside(value: float, error: float, scale: Scale) -> tuple[float, float]:
    """An error bar's length on both sides, inside the axis."""
    return min(error, value - scale.low), min(error, scale.high - value)


def _draw_published(axes: Axes, published: ParetoData) -> None:
    for point in published.points:
        marker = family_style(point.family).marker
        axes.plot(point.x, point.y, marker, markersize=3.6, color=MUTED, alpha=0.6, zorder=2.5)
    for front in published.fronts:
        axes.plot([p.x for p in front], [p.y for p in front], color=MUTED, linewidth=0.7, linestyle=":", zorder=1.5)


def _draw_lines(axes: Axes, layout: ParetoLayout) -> None:
    for line in layout.front:
        dashes = (0, (3, 2)) if line.undecided else "-"
        across, up = [line.start.x, line.end.x], [line.start.y, line.end.y]
        axes.plot(across, up, color=_FRONT, linewidth=1.0, alpha=0.55, linestyle=dashes, zorder=2)
    for level in layout.levels:
        draw_level(axes, level.y, level.baseline)


def _point_name(name: NameWish) -> PointName:
    if name.role != "point":
        return PointName(name.text, name.x, name.y, MUTED, SMALLEST, italic=True)
    colour, bold = family_style(name.point.family).colour, name.point.pareto_status == "front"
    return PointName(name.text, name.x, name.y, colour, bold=bold)
