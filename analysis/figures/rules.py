"""The figure of rules that place owners: how much each loses, relative to a layout taken at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.figures.canvas import FONT_SIZE, SMALLEST, draw_points, footer, new_figure, set_axes
from analysis.figures.geometry import linear_scale
from analysis.figures.style import MUTED, SERIES_COLOURS, SERIES_MARKERS
from analysis.statistics.landscape import Landscape, landscapes
from analysis.statistics.pair_matrices import matrices_of
from analysis.statistics.rules import RANDOM, Scored, rules_of, scored
from analysis.statistics.sources import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW_HEIGHT, _MARGIN = 0.14, 0.75
"""Inches of a rule, and of what is below them."""


def shares(source: Source) -> dict[str, list[Scored]]:
    """By base, the rules that have a regret over that of a layout taken at random: among layouts with as many owners
    and heads, or where there are no such, of as many bytes."""
    every = landscapes(source)
    return {landscape.title: found for landscape in every if (found := _shares(source, landscape, every))}


def _shares(source: Source, landscape: Landscape, every: Sequence[Landscape]) -> list[Scored]:
    rules = scored(landscape, rules_of(landscape, matrices_of(source, landscape), every))
    return [each for each in rules if each.of_random and each.rule != RANDOM and each.by_bytes == rules[0].by_bytes]


def rules_figure(source: Source, published: Source | None = None) -> Figure | None:
    """A row for each rule, least regret first; None where no rule has layouts to choose among."""
    found = shares(source)
    if not found:
        return None
    names = list(dict.fromkeys(each.rule for rules in found.values() for each in rules))
    shown = {title: {each.rule: each.of_random for each in rules if each.of_random} for title, rules in found.items()}
    figure, axes = new_figure(len(names) * _ROW_HEIGHT + _MARGIN)
    values = [end for rules in shown.values() for each in rules.values() for end in (each.low, each.value, each.high)]
    scale = linear_scale([0.0, 1.0, *(max(0.0, value) for value in values)], most=6)
    rows = linear_scale([-0.5, len(names) - 0.5], margin=0.0)
    set_axes(axes, scale, "regret (random: 1)", rows, "")
    axes.invert_yaxis()
    axes.set_yticks(range(len(names)), names, fontsize=FONT_SIZE)
    for level in (0, 1):
        axes.axvline(level, color=MUTED, linewidth=0.7, zorder=1)
    offsets = [0.25 * (i - (len(found) - 1) / 2) for i in range(len(found))]
    for (title, rules), offset, colour, marker in zip(
        shown.items(), offsets, SERIES_COLOURS, SERIES_MARKERS, strict=False
    ):
        places = [(each.value, names.index(rule) + offset) for rule, each in rules.items()]
        errors = [
            (max(0.0, each.value - max(0.0, each.low)), max(0.0, each.high - each.value)) for each in rules.values()
        ]
        draw_points(axes, places, marker=marker, size=3.6, colour=colour, x_errors=errors)
        axes.plot([], [], marker, color=colour, markersize=3.6, label=title)
    if len(found) > 1:
        axes.legend(fontsize=SMALLEST, frameon=False, handletextpad=0.1)
    by_bytes = {each.by_bytes for rules in found.values() for each in rules}
    among = " or ".join("of as many bytes" if each else "with as many owners and heads" for each in sorted(by_bytes))
    footer(
        figure,
        [f"0: the best measured layout {among}   1: one taken at random   bars: 95 % intervals"],
    )
    return figure
