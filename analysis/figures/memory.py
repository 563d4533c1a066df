"""The memory figure: bytes of KV cache against batch size or context, the formula as lines, measurements as points.

A cell that ran out of memory is a cross where the formula would have put it. Variants of one size share a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis.data.measured import CACHE, CACHE_PER_TOKEN, OUT_OF_MEMORY, PEAK
from analysis.data.numbers import on_log_axis
from analysis.data.units import size as size_text
from analysis.figures.canvas import footer, new_figure, set_axes
from analysis.figures.geometry import NAME_ROOM, byte_ticks, log_scale
from analysis.figures.measurements import (
    AXIS_LABELS,
    Axis,
    Measurement,
    Measurements,
    drawn_measurements,
)
from analysis.figures.names import EndName, name_ends
from analysis.figures.style import ALARM, family_style
from analysis.statistics.sources import Source
from mlkv.cache.formats import AS_COMPUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_TOKENS = 2**40
"""Of a cache; more are not tokens but a wrong measurement."""
Bytes = dict[int, float]
"""By what is on the axis: batch size or context."""


@dataclass(frozen=True)
class Line:
    """Layouts whose caches have one size: what was measured for each family, and what ran out of memory.

    The cache takes `unit` bytes for each of x + `extra`, where x is the batch size or the context. `fixed` is what it
    holds of the other one: tokens or sequences.
    """

    layouts: tuple[str, ...]
    fixed: int
    unit: float
    extra: int
    caches: dict[str, Bytes]
    peaks: dict[str, list[tuple[int, float]]]
    failed: set[int]

    def formula(self, x: float) -> float:
        """Bytes of the cache."""
        return self.unit * (x + self.extra)

    @property
    def sizes(self) -> set[int]:
        """Every batch size or context that was tried."""
        return self.failed.union(*self.caches.values())

    @property
    def label(self) -> str:
        names = ", ".join(self.layouts[:2])
        return names if len(self.layouts) <= 2 else f"{names}, +{len(self.layouts) - 2}"

    @property
    def colour(self) -> str:
        return family_style(next(iter(self.caches))).colour


def lines(table: pd.DataFrame) -> list[Line]:
    """Lines of a long table, the largest cache first; empty without measurements of caches."""
    return _lines(drawn_measurements(table))


def _lines(measurements: Measurements) -> list[Line]:
    by_variant: dict[str, list[Measurement]] = {}
    for cell in measurements.cells:
        if on_log_axis(cell.kv_bytes_per_token):
            by_variant.setdefault(cell.variant, []).append(cell)
    by_size: dict[tuple[float, int, float], list[Measurement]] = {}
    for own in by_variant.values():
        if tokens := _tokens(own):
            factor = _wider(own)
            by_size.setdefault(((own[0].kv_bytes_per_token or 0) * factor, tokens, factor), []).extend(own)
    drawn = [_line(measurements.axis, *size, by_size[size]) for size in sorted(by_size, reverse=True)]
    return [line for line in drawn if line.sizes]


def _tokens(cells: list[Measurement]) -> int:
    """Tokens that a variant's cache held at the context of its first cell: the context and, where the step recorded the
    bytes per token, what was decoded after it (also fewer than the context, where a window bounds the cache). 0 at an
    unknown context."""
    caches = {(cell.batch, cell.context): cell.value for cell in cells if cell.metric == CACHE}
    first = cells[0].context
    for cell in cells:
        if cell.metric == CACHE_PER_TOKEN and (cache := caches.get((cell.batch, cell.context))):
            tokens = cache / (cell.value * cell.batch) - cell.context + first
            return round(tokens) if 0.5 < tokens < _MOST_TOKENS else first
    return first


def _wider(cells: list[Measurement]) -> float:
    """How many times the formula's bytes a variant's caches had: 2 where keys that are counted at 16 bits were kept at
    32 (as published for MLKV). 1 unless all its cells agree on one such factor."""
    extra = _tokens(cells) - cells[0].context
    ratios = [
        cell.value / ((cell.kv_bytes_per_token or 0) * (cell.context + extra) * cell.batch)
        for cell in cells
        if cell.metric == CACHE
    ]
    # Two per cent: what a cache holds beyond the formula, as by rounding its length up, is no other width of numbers.
    factors = {factor for ratio in ratios for factor in (0.5, 1.0, 2.0) if abs(ratio / factor - 1) < 0.02}
    return factors.pop() if len(factors) == 1 else 1.0


def _line(axis: Axis, size: float, tokens: int, factor: float, cells: list[Measurement]) -> Line:
    width = "" if factor == 1 else f" ×{factor:g}"
    of_batch = axis == "batch"
    # Variants of one family and size have one cache, so that the last measurement holds for all of them. Their peaks
    # differ: what a run takes beside its cache depends on the layout too.
    caches: dict[str, Bytes] = {cell.family or "": {} for cell in cells}
    peaks: dict[str, set[tuple[int, float]]] = {family: set() for family in caches}
    for cell in cells:
        if cell.metric == CACHE:
            caches[cell.family or ""][cell.x] = cell.value
        elif cell.metric == PEAK:
            peaks[cell.family or ""].add((cell.x, cell.value))
    return Line(
        fixed=tokens if of_batch else cells[0].batch,
        layouts=tuple(dict.fromkeys(f"{cell.layout}{_cache(cell)}{width}" for cell in cells)),
        unit=size * (tokens if of_batch else cells[0].batch),
        extra=0 if of_batch else max(0, tokens - cells[0].context),
        caches=caches,
        peaks={family: sorted(cells_of) for family, cells_of in peaks.items()},
        failed={cell.x for cell in cells if cell.metric == OUT_OF_MEMORY},
    )


def _cache(cell: Measurement) -> str:
    """` int4` where the cache is not the model's own."""
    return "" if cell.cache in (None, AS_COMPUTED) else f" {cell.cache}"


def memory_figure(source: Source, published: Source | None = None) -> Figure | None:
    """KV cache against batch size (or context) of every measured variant, or None where nothing is measured."""
    measurements = drawn_measurements(source.table)
    drawn = _lines(measurements)
    if not drawn:
        return None
    figure, axes = new_figure()
    sizes = sorted(set().union(*(line.sizes for line in drawn)))
    _set_axes(axes, measurements, drawn, sizes)
    for line in drawn:
        _draw_line(axes, line, (sizes[0], sizes[-1]))
    footer(figure, [_legend(drawn), *measurements.remarks([CACHE, CACHE_PER_TOKEN, PEAK])])
    several = len({line.fixed for line in drawn}) > 1
    names = [f"{line.label} @{line.fixed:,}" if several else line.label for line in drawn]
    ends = [EndName(name, line.formula(sizes[-1]), line.colour) for name, line in zip(names, drawn, strict=True)]
    name_ends(figure, axes, ends)
    return figure


def _legend(drawn: list[Line]) -> str:
    """What the marks mean, of those that are there."""
    parts = ["line: formula", "marker: measured cache"]
    parts += ["dash: peak of the run"] if any(cells for line in drawn for cells in line.peaks.values()) else []
    parts += ["×: out of memory"] if any(line.failed for line in drawn) else []
    return "   ".join(parts)


def _set_axes(axes: Axes, measurements: Measurements, drawn: list[Line], sizes: list[int]) -> None:
    values = [value for line in drawn for cells in line.caches.values() for value in cells.values()]
    values += [peak for line in drawn for peaks in line.peaks.values() for _, peak in peaks]
    values += [line.formula(x) for line in drawn for x in (sizes[0], sizes[-1])]
    scale = log_scale(values, byte_ticks, room=NAME_ROOM, text=size_text)
    label = _cache_label(measurements.axis, {line.fixed for line in drawn})
    set_axes(axes, measurements.scale(sizes), AXIS_LABELS[measurements.axis], scale, label)


def _cache_label(axis: Axis, fixed: set[int]) -> str:
    """With the tokens (or sequences) that the caches hold, where they agree; else each name has its own after an @."""
    unit = "token" if axis == "batch" else "sequence"
    if len(fixed) > 1:
        return f"KV cache ({unit}s: number after @)"
    (count,) = fixed
    return f"KV cache of {count:,} {unit}{'' if count == 1 else 's'}"


def _draw_line(axes: Axes, line: Line, span: tuple[int, int]) -> None:
    """The formula, the first family's points filled, further families' as rings around them, peaks and crosses."""
    axes.plot(span, [line.formula(x) for x in span], color=line.colour, linewidth=0.7, alpha=0.6, zorder=2)
    for ring, (family, cells) in enumerate(line.caches.items()):
        style = family_style(family)
        axes.plot(
            list(cells),
            list(cells.values()),
            style.marker,
            markersize=3.4 + 1.8 * ring,
            markerfacecolor="none" if ring else style.colour,
            markeredgecolor=style.colour if ring else "white",
            markeredgewidth=0.7 if ring else 0.3,
            zorder=3 + ring,
        )
        peaks = line.peaks[family]
        axes.plot([x for x, _ in peaks], [peak for _, peak in peaks], "_", color=style.colour, markersize=5, alpha=0.6)
    failed = sorted(line.failed)
    axes.plot(failed, [line.formula(x) for x in failed], "x", color=ALARM, markersize=5, zorder=9)
