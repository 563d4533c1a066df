"""The figure of differences: how far each variant is from its baseline, with the interval, against bytes per token.

Error bars of scores hide what pairing shows, as two scores over the same samples vary together. Here the bar is that of
the difference, and the point is filled where the difference is beyond noise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analysis.data.frame import Row
from analysis.data.metrics import METRICS, Metric
from analysis.data.numbers import on_axis, on_log_axis
from analysis.figures.canvas import (
    HEIGHT,
    SMALLEST,
    draw_level,
    draw_points,
    footer,
    new_figure,
    new_stack,
    set_axes,
    shorten,
)
from analysis.figures.geometry import NAME_ROOM, Scale, byte_ticks, linear_scale, log_scale
from analysis.figures.names import PointName, name_points
from analysis.figures.pareto_data import MEMORY
from analysis.figures.pareto_layout import BASELINE_NAMES
from analysis.figures.style import MUTED, family_style
from analysis.statistics.columns import COMPARED
from analysis.statistics.differences import FromBaseline, from_baselines, role_of
from analysis.statistics.estimate import ALPHA
from analysis.statistics.results import Results
from analysis.statistics.scores import ScoreColumn, shown_scores
from analysis.statistics.signs import signed
from analysis.statistics.sources import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMES = 32
FILLED = f"filled: beyond noise (p ≤ {ALPHA:.2g}, corrected)   hollow: within noise"
_MOST_FAR = 6
"""Names that may be written far from their points: more would be a thicket of lines."""
_MOST_BASELINES = 3
"""That a remark names."""
_STEP, _WIDEST = 0.016, 0.08
"""Between points of equal bytes, and between the first and the last of very many: shares of the axis. Their bars would
cover one another."""


@dataclass(frozen=True)
class Point:
    """A variant's difference in the metric's printed unit. `reach` is half of the 95 % interval, None where no error is
    known. `x` is where it is drawn, `cost` its bytes."""

    variant: str
    family: str | None
    baseline: str | None
    cost: float
    x: float
    y: float
    reach: float | None
    beyond_noise: bool

    @property
    def ends(self) -> tuple[float, float]:
        return self.y - (self.reach or 0.0), self.y + (self.reach or 0.0)


@dataclass(frozen=True)
class Panel:
    """The differences in one score. `baselines` are the rows that they are from, and `zeros` the points of those that
    are shown; `missing` counts the variants that have a score and no place."""

    label: str
    metric: Metric
    points: list[Point]
    zeros: list[Point]
    baselines: list[Row]
    paired: bool
    missing: int

    @property
    def axis_label(self) -> str:
        better = "higher" if self.metric.higher_is_better else "lower"
        unit = "points, " if self.metric.scale == 100 else ""
        return f"Δ {self.label} ({unit}{better} is better)"


def panels(results: Results) -> list[Panel]:
    """One for the main axis and one for the mean accuracy, where a plan has both; without those that have no point."""
    scores = [score for score in shown_scores(results) if score.column in COMPARED and score.metric in METRICS]
    return [panel for score in scores if (panel := _panel(results, score)).points]


def _panel(results: Results, score: ScoreColumn) -> Panel:
    metric, differences = METRICS[score.metric], from_baselines(results, score.column)
    own, rows = results.rows(), {row["variant"]: row for row in results.compared_rows()}
    points = [_point(row, differences[row["variant"]], metric) for row in own if row["variant"] in differences]
    drawn = [point for point in points if point]
    names = dict.fromkeys(differences[point.variant].baseline for point in drawn)
    zeros = [_point(row, FromBaseline("", 0.0, None, None, None), metric) for row in own if row["variant"] in names]
    return Panel(
        label=score.label,
        metric=metric,
        points=drawn,
        zeros=[point for point in zeros if point],
        baselines=[rows[name] for name in names],
        paired=results.estimates.is_paired(list(rows.values()), score.column),
        missing=sum(row[score.column] is not None and not _is_own_baseline(row) for row in own) - len(drawn),
    )


def _is_own_baseline(row: Row) -> bool:
    role = role_of(row)
    return role is not None and row[role] == row["variant"]


def _point(row: Row, found: FromBaseline, metric: Metric) -> Point | None:
    """None for what an axis has no place for."""
    cost, y = row["kv_bytes_per_token"], found.value * metric.scale
    if not (on_log_axis(cost) and on_axis(y)):
        return None
    reach = None if found.high is None else (found.high - found.value) * metric.scale
    reach = reach if reach is None or on_axis(reach) else None
    return Point(row["variant"], row["family"], row["baseline"], cost, cost, y, reach, found.beyond_noise)


def difference_figure(source: Source, published: Source | None = None) -> Figure | None:
    """None where no variant has a difference from a baseline."""
    shown = panels(source.results)
    if not shown:
        return None
    costs = [point.cost for panel in shown for point in [*panel.points, *panel.zeros]]
    x = log_scale(costs, byte_ticks, 6, NAME_ROOM)
    figure, places = _axes(len(shown))
    moved = [side_by_side(panel, x) for panel in shown]
    for axes, panel in zip(places, moved, strict=True):
        y = linear_scale([0.0, *(end for point in panel.points for end in point.ends)])
        set_axes(axes, x, MEMORY.label if axes is places[-1] else "", y, panel.axis_label)
        _draw(axes, panel)
    footer(figure, [*remarks(shown), *signed(source.results.rows(), "quality")])
    for axes, panel in zip(places, moved, strict=True):
        _write_names(figure, axes, panel, x)
    return figure


def _axes(count: int) -> tuple[Figure, list[Axes]]:
    if count > 1:
        return new_stack(count, count * HEIGHT - 0.4)
    figure, axes = new_figure()
    return figure, [axes]


def side_by_side(panel: Panel, x: Scale) -> Panel:
    """Points of equal bytes beside each other, in the table's order."""
    groups: dict[float, list[Point]] = defaultdict(list)
    for point in [*panel.zeros, *panel.points]:
        groups[point.cost].append(point)
    places: dict[str, float] = {}
    for cost, group in groups.items():
        step = min(_STEP, _WIDEST / len(group))
        for i, point in enumerate(group):
            places[point.variant] = x.value(x.share(cost) + step * (i - (len(group) - 1) / 2))
    zeros, points = ([replace(p, x=places[p.variant]) for p in each] for each in (panel.zeros, panel.points))
    return replace(panel, zeros=zeros, points=points)


def _draw(axes: Axes, panel: Panel) -> None:
    kinds = {row["baseline"] for row in panel.baselines}
    draw_level(axes, 0.0, kinds.pop() if len(kinds) == 1 else "mha")
    for point in panel.zeros:
        axes.plot(point.x, 0.0, family_style(point.family).marker, markersize=4.0, color=MUTED, zorder=3)
    groups: dict[object, list[Point]] = defaultdict(list)
    for point in panel.points:
        key = (point.family, point.baseline == "untouched", point.beyond_noise, point.reach is None)
        groups[key].append(point)
    for group in groups.values():
        _draw_alike(axes, group)


def _draw_alike(axes: Axes, points: list[Point]) -> None:
    """Points that look the same."""
    first, style = points[0], family_style(points[0].family)
    untouched = first.baseline == "untouched"
    draw_points(
        axes,
        [(point.x, point.y) for point in points],
        y_errors=None if first.reach is None else [point.reach or 0.0 for point in points],
        marker="+" if untouched else style.marker,
        size=5.5 if untouched else 4.4,
        colour=style.colour,
        hollow=not first.beyond_noise,
    )


def _write_names(figure: Figure, axes: Axes, panel: Panel, x: Scale) -> None:
    """Baselines and variants within noise of them first, as these are what one looks for, then from the cheapest on."""
    ordered = sorted(panel.points, key=lambda point: (point.beyond_noise, point.cost))[:MOST_NAMES]
    zeros = [PointName(p.variant, p.x, p.y, MUTED, SMALLEST, italic=True) for p in panel.zeros]
    names = [PointName(p.variant, p.x, p.y, family_style(p.family).colour) for p in ordered]
    leading = len(zeros) + sum(not point.beyond_noise for point in ordered)
    name_points(
        figure,
        axes,
        [*zeros, *names][:MOST_NAMES],
        points=[(p.x, p.y) for p in [*panel.zeros, *panel.points]],
        segments=[*(((p.x, p.ends[0]), (p.x, p.ends[1])) for p in panel.points), ((x.low, 0.0), (x.high, 0.0))],
        near=min(leading, _MOST_FAR),
    )


def remarks(shown: list[Panel]) -> list[str]:
    """What the marks mean, a line each."""
    points = [point for panel in shown for point in panel.points]
    paired = ", on the same samples" if all(panel.paired for panel in shown) else ""
    known = any(point.reach is not None for point in points)
    lines = [FILLED, f"bars: 95 % interval of the difference{paired}"] if known else []
    if any(point.reach is None for point in points):
        lines.append("without a bar: no error is known")
    lines.append(_zero([row for panel in shown for row in panel.baselines]))
    if missing := max(panel.missing for panel in shown):
        variants = f"{missing} variant{'s' if missing > 1 else ''}"
        lines.append(f"not drawn, without a baseline's score or bytes: {variants}")
    return lines


def _zero(baselines: Sequence[Row]) -> str:
    """What the line at zero is."""
    names = {shorten(row["variant"]): BASELINE_NAMES[row["baseline"] or ""] for row in baselines}
    if len(names) == 1:
        [(name, role)] = names.items()
        return f"line at 0: {name} ({role})"
    more = f", … ({len(names)})" if len(names) > _MOST_BASELINES else ""
    return f"line at 0: each variant's own baseline, {', '.join([*names][:_MOST_BASELINES])}{more}"
