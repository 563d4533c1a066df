"""The figures of damage: what each layout costs against the untouched base, by distance and by domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.data.metrics import task_label
from analysis.data.numbers import on_axis
from analysis.figures.canvas import SMALLEST, draw_points, footer, new_figure, new_grid, set_axes, shorten
from analysis.figures.geometry import Scale, Tick, distinct, evenly, linear_scale, log_scale
from analysis.figures.style import MUTED, family_style, shades_by_name
from analysis.statistics.damage import ByDistance, ByDomain, Damage, Line, by_distance, by_domain
from analysis.statistics.sources import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS, PANEL_HEIGHT = 3, 1.75
"""Panels side by side, and inches of a row of them."""
MOST_LINES = 12
"""Layouts that a figure draws, evenly chosen by bytes: more lines and bands hide one another."""
_BAND = 0.13
"""Opacity of an interval."""
_BEYOND = "#f3f1ea"
_NAMES_ABOVE = 4
"""Names side by side, above one panel."""
_LETTERS_ACROSS, _LETTERS_BETWEEN = 130, 7
"""Letters of names that a page is wide, and as how many a marker and the gap behind a name count."""
_NAMES_HEIGHT = 0.16
"""Inches of a row of names."""
_SPREAD = 0.7
"""Of a domain's place, the share that its points take."""


def damage_by_distance(source: Source, published: Source | None = None) -> Figure | None:
    """A panel for each task with members by distance; None where none has a baseline and another layout."""
    shown = by_distance(source.results)
    if not shown:
        return None
    whole = {line.variant: line for each in shown for line in each.lines}
    every = _chosen([*whole.values()])
    colours = _colours(every)
    figure, places = new_grid(len(shown), min(COLUMNS, len(shown)), PANEL_HEIGHT)
    names = {line.variant for line in every}
    for axes, each in zip(places, shown, strict=True):
        _draw_panel(axes, each, [line for line in each.lines if line.variant in names], colours)
    _draw_names(figure, every, colours)
    remarks = _remarks(source, shown[0].baseline["variant"], all(each.paired for each in shown), len(whole))
    beyond = ["shaded: beyond the rows of the corpus, extrapolated"] if any(each.beyond for each in shown) else []
    footer(figure, [*remarks, *beyond])
    return figure


def damage_by_domain(source: Source, published: Source | None = None) -> Figure | None:
    """Points with intervals in a group for each domain; None where no domain has a baseline and another layout."""
    found = by_domain(source.results)
    if found is None:
        return None
    lines = _chosen(found.lines)
    figure, axes = new_figure()
    ends = [end for line in lines for each in line.damage.values() for end in _ends(each)]
    ticks = [Tick(float(i), name) for i, name in enumerate(found.domains)]
    x = Scale(-0.5, len(ticks) - 0.5, ticks)
    set_axes(axes, x, "", linear_scale([0.0, *ends]), _axis_label(found))
    axes.grid(False, axis="x")
    axes.axhline(0.0, color=MUTED, linewidth=0.7, zorder=1)
    colours = _colours(lines)
    for number, line in enumerate(lines):
        _draw_points(axes, line, _SPREAD * ((number + 0.5) / len(lines) - 0.5), colours[line.variant])
    above: Any = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
    axes.legend(fontsize=SMALLEST, frameon=False, handletextpad=0.1, ncols=_NAMES_ABOVE, columnspacing=0.8, **above)
    footer(figure, _remarks(source, found.baseline["variant"], found.paired, len(found.lines)))
    return figure


def _draw_points(axes: Axes, line: Line, shift: float, colour: str) -> None:
    known = [each for each in line.damage.values() if each.high is not None]
    draw_points(
        axes,
        [(place + shift, each.value) for place, each in line.damage.items()],
        y_errors=[(each.high or 0.0) - each.value for each in known] if len(known) == len(line.damage) else None,
        marker=family_style(line.family).marker,
        size=3.4,
        colour=colour,
    )
    axes.plot([], [], family_style(line.family).marker, color=colour, markersize=3.4, label=shorten(line.variant))


def _draw_panel(axes: Axes, shown: ByDistance, lines: Sequence[Line], colours: dict[str, str]) -> None:
    distances = [float(distance) for distance in shown.distances]
    ends = [end for line in lines for each in line.damage.values() for end in _ends(each)]
    x = log_scale(distances, lambda *_: distinct(distances, 1.9))
    set_axes(axes, x, "tokens", linear_scale([0.0, *ends], most=5), _axis_label(shown))
    axes.set_title(task_label(shown.task))
    axes.axhline(0.0, color=MUTED, linewidth=0.7, zorder=1)
    if shown.beyond:
        within = [distance for distance in distances if distance not in shown.beyond]
        edge = (max(within) * min(shown.beyond)) ** 0.5 if within else x.low
        axes.axvspan(edge, x.high, color=_BEYOND, zorder=0)
    for line in lines:
        _draw_line(axes, line, colours[line.variant])


def _draw_line(axes: Axes, line: Line, colour: str) -> None:
    damage = sorted((distance, each) for distance, each in line.damage.items() if on_axis(each.value))
    known = [(distance, each.low, each.high) for distance, each in damage if each.low is not None]
    if known:
        band: Any = list(zip(*known, strict=True))
        axes.fill_between(*band, color=colour, alpha=_BAND, linewidth=0, zorder=1.5)
    places, values = [distance for distance, _ in damage], [each.value for _, each in damage]
    marker = family_style(line.family).marker
    axes.plot(places, values, marker=marker, markersize=2.6, color=colour, linewidth=0.8, zorder=2)


def _draw_names(figure: Figure, lines: Sequence[Line], colours: dict[str, str]) -> None:
    """The layouts above all panels, as lines end in another order in each; the figure becomes higher by that."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            marker=family_style(line.family).marker,
            markersize=3,
            color=colours[line.variant],
            label=shorten(line.variant),
        )
        for line in lines
    ]
    longest = max(len(shorten(line.variant)) for line in lines)
    across = max(1, min(len(handles), _LETTERS_ACROSS // (longest + _LETTERS_BETWEEN)))
    figure.set_figheight(figure.get_figheight() + _NAMES_HEIGHT * -(-len(lines) // across))
    figure.legend(handles=handles, fontsize=SMALLEST, frameon=False, loc="outside upper center", ncols=across)


def _chosen(lines: Sequence[Line]) -> list[Line]:
    return evenly(sorted(lines, key=lambda line: -(line.bytes or 0.0)), MOST_LINES)


def _colours(lines: Sequence[Line]) -> dict[str, str]:
    return shades_by_name([(line.variant, line.family) for line in lines])


def _ends(damage: Damage) -> list[float]:
    ends = (damage.low, damage.value, damage.high)
    return [end for end in ends if end is not None and on_axis(end)]


def _axis_label(shown: ByDistance | ByDomain) -> str:
    unit = "points" if shown.metric.scale == 100 else ""
    return f"damage ({shown.metric.label}{f', {unit}' if unit else ''})"


def _remarks(source: Source, baseline: str, paired: bool, layouts: int) -> list[str]:
    samples = ", on the same samples" if paired else ""
    rows = source.results.compared_rows()
    kind = next(row["baseline"] for row in rows if row["variant"] == baseline)
    own = "each layout's own base" if sum(row["baseline"] == kind for row in rows) > 1 else shorten(baseline)
    lines = [f"above 0: worse than {own}   95 % interval of the difference{samples}"]
    if layouts > MOST_LINES:
        lines.append(f"{MOST_LINES} of {layouts} layouts")
    if (row := _untouched(source)) and row.get("entry_test.entry_test") == 0:
        lines.append("the base fails the entry test: this says nothing about range")
    return lines


def _untouched(source: Source) -> dict[str, Any] | None:
    return next((row for row in source.results.compared_rows() if row["baseline"] == "untouched"), None)
