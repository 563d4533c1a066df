"""The recovery figure: how the loss, the tasks and the agreement with the base come back with tokens of uptraining."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.data.metrics import CONVERTED_PREFIX, METRICS, Metric
from analysis.data.numbers import on_axis
from analysis.data.units import count
from analysis.figures.canvas import draw_level, draw_points, footer, new_stack, set_axes
from analysis.figures.geometry import Scale, Tick, evenly, linear_scale, round_ticks
from analysis.figures.names import EndName, name_ends
from analysis.figures.style import MUTED, family_style, shades_by_name
from analysis.statistics.recovery import of_recipes, tokens_of
from analysis.statistics.scores import score_column
from analysis.statistics.variant_rows import ACCURACY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.data.frame import Row
    from analysis.statistics.results import Results
    from analysis.statistics.sources import Source

MOST_CURVES = 10
_PANEL_HEIGHT, _MARGIN = 1.45, 0.45
"""Inches of a panel, and of what is below the last one."""
_LEAST_GAP, _GAP_SHARE, _LEAST_ROOM, _ROOM = 0.3, 0.15, 0.02, 0.06
"""Decades from the first length to the place of 0, at least and as a share of the axis; decades beyond the axis's ends,
likewise."""
_BITS, _AGREEMENT = "bits_per_byte.bits_per_byte", "agreement.agreement"


@dataclass(frozen=True)
class Drawn:
    """A curve in printed units: `points` are (tokens, score, standard error over seeds or None), the fewest tokens
    first."""

    name: str
    family: str | None
    points: tuple[tuple[float, float, float | None], ...]
    baseline: bool = False


@dataclass(frozen=True)
class Panel:
    """A score. `level` is that of the untouched base."""

    label: str
    curves: list[Drawn]
    level: float | None


def panels(results: Results) -> list[Panel]:
    """One for each of loss, mean accuracy and agreement that has a curve; none where no recipe has two lengths."""
    rows = results.rows()
    recipes = of_recipes(rows, results.estimates)
    if not any(_lengths(group) > 1 for group in recipes.values()):
        return []
    references = of_recipes(rows, results.estimates, baseline="mha")
    found = [_panel(column, label, recipes, references, rows) for column, label in _columns(results, rows)]
    return [panel for panel in found if any(len(curve.points) > 1 for curve in panel.curves)]


def _lengths(group: Sequence[Row]) -> int:
    return len({tokens for row in group if (tokens := tokens_of(row)) is not None})


def _columns(results: Results, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The scores that there are, with what their axes say."""
    axis = results.estimates.axis
    metric = METRICS.get(axis.rpartition(".")[2])
    loss = axis if metric and not metric.higher_is_better else _BITS
    labels = {
        loss: score_column(loss).label,
        ACCURACY: "mean accuracy, %" if len(results.estimates.parts) > 1 else "accuracy, %",
        _AGREEMENT: "agreement, %",
    }
    return [(column, label) for column, label in labels.items() if any(row.get(column) is not None for row in rows)]


def _panel(
    column: str,
    label: str,
    recipes: dict[str, list[Row]],
    references: dict[str, list[Row]],
    rows: Sequence[Row],
) -> Panel:
    metric = METRICS[column.rpartition(".")[2]]
    curves = [_drawn(name, group, column, metric) for name, group in recipes.items()]
    baselines = [_drawn(name, group, column, metric, baseline=True) for name, group in references.items()]
    levels = [row[column] for row in rows if row["baseline"] == "untouched" and row.get(column) is not None]
    level = levels[0] * metric.scale if levels and on_axis(levels[0] * metric.scale) else None
    return Panel(label, [curve for curve in (*curves, *baselines) if curve.points], level)


def _drawn(name: str, group: Sequence[Row], column: str, metric: Metric, baseline: bool = False) -> Drawn:
    """Its points, the first one that of the conversion where that was scored."""
    found = [
        (tokens, point) for row in group if (tokens := tokens_of(row)) is not None and (point := _score(row, column))
    ]
    converted = next((point for row in group if (point := _score(row, f"{CONVERTED_PREFIX}{column}"))), None)
    by_tokens = dict(found) | ({0.0: converted} if converted and 0.0 not in dict(found) else {})
    points = [(tokens, value * metric.scale, error) for tokens, (value, error) in sorted(by_tokens.items())]
    bars = [(tokens, value, None if error is None else error * metric.scale) for tokens, value, error in points]
    return Drawn(name, group[0]["family"], tuple(bar for bar in bars if on_axis(bar[1])), baseline)


def _score(row: Row, column: str) -> tuple[float, float | None] | None:
    """A value, and its standard error where that is over seeds."""
    if row.get(column) is None:
        return None
    several = (row.get(f"{column}_seeds") or 0) > 1
    return row[column], row.get(f"{column}_stderr") if several else None


def recovery_figure(source: Source, published: Source | None = None) -> Figure | None:
    """Panels over one axis of tokens, which has a place for 0: right after conversion. The base's own layout trained
    equally is grey and dashed, the untouched base a dotted line across."""
    shown = panels(source.results)
    if not shown:
        return None
    names = list(dict.fromkeys(curve.name for panel in shown for curve in panel.curves if not curve.baseline))
    chosen = set(evenly(names, MOST_CURVES))
    x = token_scale([tokens for panel in shown for curve in panel.curves for tokens, *_ in curve.points])
    figure, axes = new_stack(len(shown), len(shown) * _PANEL_HEIGHT + _MARGIN)
    for i, (place, panel) in enumerate(zip(axes, shown, strict=True)):
        curves = [curve for curve in panel.curves if curve.baseline or curve.name in chosen]
        _draw(place, curves, panel, x, is_last=i == len(shown) - 1)
    some = [f"{len(chosen)} of {len(names)} curves"] if len(chosen) < len(names) else []
    dashed = any(curve.baseline for panel in shown for curve in panel.curves)
    dotted = any(panel.level is not None for panel in shown)
    roles = {"dashed: trained equally": dashed, "dotted across: untouched base": dotted}
    lines = [*some, *(text for text, is_drawn in roles.items() if is_drawn)]
    footer(figure, ["   ".join(lines)] if lines else [])
    for place, panel in zip(axes, shown, strict=True):
        ends = [curve for curve in panel.curves if curve.baseline or curve.name in chosen]
        name_ends(figure, place, [EndName(curve.name, curve.points[-1][1], _colour(curve)) for curve in ends])
    return figure


def _colour(curve: Drawn) -> str:
    return MUTED if curve.baseline else family_style(curve.family).colour


@dataclass(frozen=True)
class TokenScale:
    """An axis of decades of tokens on which 0 has a place, `zero`, before the fewest tokens above it."""

    scale: Scale
    zero: float

    def place(self, tokens: float) -> float:
        return math.log10(tokens) if tokens > 0 else self.zero


def token_scale(tokens: Sequence[float]) -> TokenScale:
    """Around these numbers of tokens, of which one at least is above 0."""
    above = [number for number in tokens if number > 0]
    low, high = math.log10(min(above)), math.log10(max(above))
    zero = low - max(_LEAST_GAP, _GAP_SHARE * (high - low))
    has_zero = len(above) < len(tokens)
    start = zero if has_zero else low
    room = max(_LEAST_ROOM, _ROOM * (high - start))
    ticks = [tick for tick in round_ticks(10**low / 1.01, 10**high * 1.01, 5) if tick > 0]
    shown = [Tick(math.log10(tick), count(tick)) for tick in ticks]
    zeros = [Tick(zero, "0")] if has_zero else []
    return TokenScale(Scale(start - room, high + room, [*zeros, *shown]), zero)


def _draw(axes: Axes, curves: Sequence[Drawn], panel: Panel, x: TokenScale, *, is_last: bool) -> None:
    ends = [value + side * (error or 0) for curve in curves for _, value, error in curve.points for side in (-1, 1)]
    y = linear_scale([*ends, *([] if panel.level is None else [panel.level])], most=5)
    set_axes(axes, x.scale, "tokens of uptraining (0: right after conversion)" if is_last else "", y, panel.label)
    axes.tick_params(labelbottom=is_last)
    if panel.level is not None:
        draw_level(axes, panel.level, "untouched")
    colours = shades_by_name([(curve.name, curve.family) for curve in curves if not curve.baseline])
    for curve in curves:
        colour = MUTED if curve.baseline else colours[curve.name]
        places = [(x.place(tokens), value) for tokens, value, _ in curve.points]
        # From 0 the distance along the axis means nothing.
        first = 1 if curve.points[0][0] == 0 else 0
        line: dict[str, Any] = {"color": colour, "linewidth": 1.0, "zorder": 2}
        axes.plot(*zip(*places[first:], strict=True), "--" if curve.baseline else "-", **line)
        if first and len(places) > 1:
            axes.plot(*zip(*places[:2], strict=True), ":", **line)
        errors = [error or 0.0 for *_, error in curve.points]
        style = family_style(curve.family)
        draw_points(axes, places, marker=style.marker, size=3, colour=colour, y_errors=errors if any(errors) else None)
