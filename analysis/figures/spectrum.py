"""The spectrum figure: quality against the number of KV layers, a line for each number of heads and pattern."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.figures.canvas import QUIET, EndName, name_ends, new_figure, score_axis, styled
from analysis.figures.cloud import main_cloud
from analysis.figures.pareto import LINE_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.figures.cloud import Cloud, Point
    from analysis.statistics.results import Results

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#A3507F", "#B87900", "#333333", "#2E8BB8")
MARKERS = "o^vPDs<"
Key = tuple[int, int, str]
"""KV heads, bytes of one head's keys and values, and pattern: what a line holds fixed."""


@dataclass(frozen=True)
class Series:
    """Points of one number of KV heads (and pattern), by KV layers; several at one place are seeds or recipes."""

    name: str
    points: dict[int, list[Point]]

    def means(self) -> list[tuple[int, float]]:
        return [(m, math.fsum(p.y for p in self.points[m]) / len(self.points[m])) for m in sorted(self.points)]


def series(results: Results) -> tuple[Cloud | None, list[Series]]:
    """The main cloud, and of it the lines with at least two numbers of KV layers, most heads first."""
    cloud = main_cloud(results)
    if cloud is None:
        return None, []
    points = {point.variant: point for point in cloud.contenders}
    lines: dict[Key, dict[int, list[Point]]] = {}
    for row in results.rows():
        heads = row["kv_heads"]
        if row["variant"] in points and row["pattern"] and heads and heads.isdigit():
            line = lines.setdefault((int(heads), row["kv_bytes_per_token"] // row["budget"], row["pattern"]), {})
            line.setdefault(row["kv_layers"], []).append(points[row["variant"]])
    _share_full_layouts(lines)
    longest = sorted((key for key in lines if len(lines[key]) > 1), key=lambda key: -len(lines[key]))[: len(COLOURS)]
    kept = sorted(longest, reverse=True)
    return cloud, [Series(_name(key, kept), lines[key]) for key in kept]


def _share_full_layouts(lines: dict[Key, dict[int, list[Point]]]) -> None:
    """A layout in which every layer keeps its own is no pattern's: it ends the lines of all patterns of its heads."""
    full = max((m for line in lines.values() for m in line), default=0)
    for heads in {key[:2] for key in lines}:
        ends = [point for key, line in lines.items() if key[:2] == heads for point in line.get(full, [])]
        for key, line in lines.items():
            if key[:2] == heads and ends:
                line.setdefault(full, ends)


def _name(key: Key, kept: list[Key]) -> str:
    """`2 heads`, with the pattern and the head's bytes where lines differ in them: `cla, 1 head of 512 B`."""
    heads, size, pattern = key
    pattern = f"{pattern}, " if len({other[2] for other in kept}) > 1 else ""
    size_of = f" of {size:,} B" if len({other[1] for other in kept}) > 1 else ""
    return f"{pattern}{heads} head{'s' if heads > 1 else ''}{size_of}"


@styled
def spectrum_figure(results: Results) -> Figure | None:
    """Quality against KV layers at fixed heads, or None where no number of heads has two numbers of KV layers."""
    cloud, lines = series(results)
    if cloud is None or not lines:
        return None
    figure, axes = new_figure()
    _frame(axes, cloud, sorted({m for line in lines for m in line.points}))
    score_axis(axes, [(point.y, point.stderr) for point in cloud.points])
    names = []
    for i, line in enumerate(lines):
        _draw(axes, line, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        names.append(EndName(line.name, line.means()[-1][1], COLOURS[i % len(COLOURS)]))
    for point in (point for point in cloud.points if point.baseline in LINE_NAMES):
        dashes = (1.2, 1.8) if point.baseline == "untouched" else (5, 2)
        axes.axhline(point.y, color=QUIET, linewidth=0.7, dashes=dashes, zorder=1)
        names.append(EndName(_short(point), point.y, QUIET))
    name_ends(figure, axes, names)
    return figure


def _short(point: Point) -> str:
    return "untouched" if point.baseline == "untouched" else point.variant


def _frame(axes: Axes, cloud: Cloud, layers: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlabel("KV layers")
    axes.set_ylabel(cloud.axis_label)
    axes.grid(True)
    axes.set_xlim(layers[0] / 1.15, layers[-1] * 1.15)
    shown = told_apart(layers)
    axes.set_xticks(shown, [str(m) for m in shown])
    axes.set_xticks([m for m in layers if m not in shown], minor=True)
    axes.xaxis.set_minor_formatter(lambda *_: "")


def told_apart(layers: list[int], ratio: float = 1.2) -> list[int]:
    """The numbers whose labels find room on a logarithmic axis, the largest among them."""
    shown = [layers[-1]]
    for m in reversed(layers[:-1]):
        if shown[-1] / m >= ratio:
            shown.append(m)
    return shown[::-1]


def _draw(axes: Axes, line: Series, colour: str, marker: str) -> None:
    means = line.means()
    axes.plot([m for m, _ in means], [y for _, y in means], color=colour, linewidth=0.9, alpha=0.7, zorder=2)
    for m, points in line.points.items():
        errors = [point.stderr for point in points]
        axes.errorbar(
            [m] * len(points),
            [point.y for point in points],
            yerr=None if None in errors else errors,  # type: ignore[arg-type]
            fmt=marker,
            color=colour,
            markersize=3.8,
            markeredgecolor="white",
            markeredgewidth=0.4,
            elinewidth=0.7,
            capsize=1.3,
            zorder=3,
        )
