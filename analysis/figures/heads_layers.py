"""The figure of fewer heads with fewer owners: what a layout that has both costs, against what each costs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from analysis.data.metrics import score_label
from analysis.figures.canvas import SMALLEST, draw_points, footer, new_figure, set_axes
from analysis.figures.geometry import linear_scale
from analysis.figures.style import MUTED, SERIES_COLOURS, SERIES_MARKERS
from analysis.statistics.heads_layers import singles
from analysis.statistics.landscape import landscapes
from analysis.statistics.sources import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Dot(NamedTuple):
    """A layout in printed units: the damage that adding up predicts, its own, and the standard error of that."""

    name: str
    predicted: float
    damage: float
    error: float | None


def dots(source: Source) -> dict[str, list[Dot]]:
    """By what each series has in common: the heads per owner, and the base where there are several."""
    metric = source.results.estimates.metric("quality")
    scale, found = metric.scale if metric else 1.0, dict[str, list[Dot]]()
    for landscape in landscapes(source):
        for single in singles(landscape):
            heads = single.point.uniform or 0
            where = f"{landscape.title}: " if landscape.title else ""
            error = None if single.damage.error is None else single.damage.error * scale
            dot = Dot(single.point.name, single.predicted.value * scale, single.damage.value * scale, error)
            found.setdefault(f"{where}{heads} head{'s' if heads > 1 else ''} per owner", []).append(dot)
    return found


def heads_layers_figure(source: Source, published: Source | None = None) -> Figure | None:
    """A point for every layout that saves in both ways, on the diagonal where costs add up; None without any."""
    found = dots(source)
    if not found:
        return None
    figure, axes = new_figure()
    every = [dot for series in found.values() for dot in series]
    ends = [value for dot in every for value in (dot.predicted, dot.damage)]
    scale = linear_scale([0.0, *ends], most=6)
    axis = source.results.estimates.axis.rpartition(".")
    label = score_label(axis[0], axis[2])
    set_axes(axes, scale, f"sum of what each costs alone ({label})", scale, f"cost of both together ({label})")
    axes.plot([scale.low, scale.high], [scale.low, scale.high], color=MUTED, linewidth=0.7, zorder=1)
    for (name, series), colour, marker in zip(found.items(), SERIES_COLOURS, SERIES_MARKERS, strict=False):
        errors = [dot.error for dot in series if dot.error is not None]
        draw_points(
            axes,
            [(dot.predicted, dot.damage) for dot in series],
            marker=marker,
            size=3.6,
            colour=colour,
            y_errors=errors if len(errors) == len(series) else None,
        )
        axes.plot([], [], marker, color=colour, markersize=3.6, label=name)
    axes.legend(fontsize=SMALLEST, frameon=False, handletextpad=0.1)
    footer(figure, ["damage against the base's own layout trained equally   on the line: costs add up"])
    return figure
