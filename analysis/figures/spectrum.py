"""The spectrum figure: quality against the number of KV layers, a line for each number of heads and pattern."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from analysis.data.numbers import on_log_axis
from analysis.figures.canvas import draw_level, draw_points, new_figure, set_axes
from analysis.figures.geometry import distinct, log_scale, score_scale
from analysis.figures.names import EndName, name_ends
from analysis.figures.pareto_data import ParetoPoint, main_pareto_data
from analysis.figures.style import BASELINE_DASHES, MUTED, SERIES_COLOURS, SERIES_MARKERS
from analysis.statistics.columns import SOURCE
from analysis.statistics.results import Results
from analysis.statistics.sources import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Fixed(NamedTuple):
    """What a line holds fixed. `head_bytes` are those of one head's keys and values for a token; `base` is the
    untouched base, where there are results of several sources."""

    heads: int
    head_bytes: int
    pattern: str
    base: str = ""

    @property
    def besides_pattern(self) -> tuple[int, int, str]:
        return self.heads, self.head_bytes, self.base


@dataclass(frozen=True)
class Series:
    """Points of one number of KV heads (and pattern), by KV layers; several at one place are seeds or recipes."""

    name: str
    points: dict[int, list[ParetoPoint]]

    def means(self) -> list[tuple[int, float]]:
        return [(m, math.fsum(p.y for p in self.points[m]) / len(self.points[m])) for m in sorted(self.points)]


def series(results: Results) -> list[Series]:
    """The lines with at least two numbers of KV layers, most heads first; those with the most points, if there are
    more than colours."""
    data = main_pareto_data(results)
    points = {point.variant: point for point in data.contenders} if data else {}
    lines: dict[Fixed, dict[int, list[ParetoPoint]]] = {}
    for row in results.rows():
        heads = row["kv_heads"]
        layers, budget = row["kv_layers"], row["budget"]
        counted = on_log_axis(layers) and on_log_axis(budget) and heads and heads.isdigit()
        if counted and row["variant"] in points and row["pattern"]:
            base = (row["untouched"] or row[SOURCE]) if row.get(SOURCE) else ""
            fixed = Fixed(int(heads), row["kv_bytes_per_token"] // budget, row["pattern"], base)
            lines.setdefault(fixed, {}).setdefault(layers, []).append(points[row["variant"]])
    _share_full_layouts(lines)
    longest = sorted((key for key in lines if len(lines[key]) > 1), key=lambda key: -len(lines[key]))
    drawn = sorted(longest[: len(SERIES_COLOURS)], reverse=True)
    return [Series(_name(key, drawn), lines[key]) for key in drawn]


def _share_full_layouts(lines: dict[Fixed, dict[int, list[ParetoPoint]]]) -> None:
    """A layout in which every layer has its own heads is no pattern's: it ends the lines of all patterns of them."""
    full = max((m for line in lines.values() for m in line), default=0)
    for heads in {key.besides_pattern for key in lines}:
        alike = [(key, line) for key, line in lines.items() if key.besides_pattern == heads]
        ends = [point for _, line in alike for point in line.get(full, [])]
        for _, line in alike:
            if ends:
                line.setdefault(full, ends)


def _name(key: Fixed, drawn: list[Fixed]) -> str:
    """`2 heads`, with the pattern and the head's bytes where lines differ in them: `cla, 1 head of 512 B`."""
    pattern = f"{key.pattern}, " if len({other.pattern for other in drawn}) > 1 else ""
    size = f" of {key.head_bytes:,} B" if len({other.head_bytes for other in drawn}) > 1 else ""
    base = f"{key.base}: " if len({other.base for other in drawn}) > 1 else ""
    return f"{base}{pattern}{key.heads} head{'s' if key.heads > 1 else ''}{size}"


def spectrum_figure(source: Source, published: Source | None = None) -> Figure | None:
    """Quality against KV layers at fixed heads, or None where no number of heads has two numbers of KV layers."""
    data, lines = main_pareto_data(source.results), series(source.results)
    if data is None or not lines:
        return None
    figure, axes = new_figure()
    layers = sorted({m for line in lines for m in line.points})
    scale = score_scale((point.y, point.stderr) for point in data.points)
    set_axes(axes, log_scale(layers, lambda *_: distinct(layers)), "KV layers", scale, data.axis_label)
    names = []
    for line, colour, marker in zip(lines, SERIES_COLOURS, SERIES_MARKERS, strict=False):
        _draw(axes, line, colour, marker)
        names.append(EndName(line.name, line.means()[-1][1], colour))
    for point in data.points:
        if point.baseline in BASELINE_DASHES:
            draw_level(axes, point.y, point.baseline)
            names.append(EndName("untouched" if point.baseline == "untouched" else point.variant, point.y, MUTED))
    name_ends(figure, axes, names)
    return figure


def _draw(axes: Axes, line: Series, colour: str, marker: str) -> None:
    means = line.means()
    axes.plot([m for m, _ in means], [y for _, y in means], color=colour, linewidth=0.9, alpha=0.7, zorder=2)
    for m, points in line.points.items():
        errors = [point.stderr for point in points if point.stderr is not None]
        places = [(float(m), point.y) for point in points]
        draw_points(
            axes,
            places,
            y_errors=errors if len(errors) == len(points) else None,
            marker=marker,
            size=3.8,
            colour=colour,
        )
