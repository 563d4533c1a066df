"""The memory figure: bytes of KV cache against batch size or context, the formula as lines, measurements as points.

A cell that ran out of memory is a cross where the formula would have put it. Variants of one size share a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis.data import frame
from analysis.data.frame import Row
from analysis.data.units import size as size_text
from analysis.figures.canvas import ALARM, EndName, evenly, name_ends, new_figure, note, styled
from analysis.figures.style import look
from analysis.figures.ticks import byte_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CACHE, PEAK, PER_TOKEN, OUT_OF_MEMORY = "cache_bytes", "peak_bytes", "cache_bytes_per_token", "oom"
"""What a measure step records: the cache, what the whole run added, the cache per token, and cells that ran out."""


Cells = dict[int, float]
"""Bytes by what was swept: batch size or context."""
_ALIKE = 0.99
"""Contexts count as the longest from this share of it on (the published runs end at 2,047 or 2,045 tokens)."""
AXES = {"batch": "batch size", "context": "context, tokens"}


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
    caches: dict[str, Cells]
    peaks: dict[str, list[tuple[int, float]]]
    failed: set[int]

    def formula(self, x: float) -> float:
        """Bytes of the cache."""
        return self.unit * (x + self.extra)

    @property
    def swept(self) -> set[int]:
        return self.failed.union(*self.caches.values())

    @property
    def label(self) -> str:
        names = ", ".join(self.layouts[:2])
        return names if len(self.layouts) <= 2 else f"{names}, +{len(self.layouts) - 2}"

    @property
    def colour(self) -> str:
        return look(next(iter(self.caches))).colour


def measured(table: pd.DataFrame) -> tuple[str, list[Row]]:
    """What was swept, `batch` or, at a single batch size, `context`; and the numbers of it, at the longest context.
    Numbers at an unknown context (of an import) are taken where there are no others."""
    rows = [r for r in frame.records(table) if r["kind"] == "measure" and r["batch"] and r["value"] is not None]
    rows = [row for row in rows if row["context"]] or rows
    if len({row["batch"] for row in rows}) == 1 and len({row["context"] for row in rows}) > 1:
        return "context", [row for row in rows if row["context"]]
    longest = max((row["context"] or 0 for row in rows), default=0)
    return "batch", [row for row in rows if (row["context"] or 0) >= _ALIKE * longest]


def left_out(table: pd.DataFrame) -> list[str]:
    """A remark on the layouts that were measured, but at other contexts than those that are drawn."""
    drawn = {row["variant"] for row in measured(table)[1]}
    of_all = table[(table["kind"] == "measure") & table["batch"].notna() & table["value"].notna()]
    others = len(set(of_all["variant"]) - drawn)
    return [f"{others} measured at other contexts: not drawn"] if others else []


def lines(table: pd.DataFrame) -> list[Line]:
    """Lines of a long table, the largest cache first; empty without measurements of caches."""
    axis, rows = measured(table)
    by_variant: dict[str, list[Row]] = {}
    for row in rows:
        if row["kv_bytes_per_token"]:
            by_variant.setdefault(row["variant"], []).append(row)
    by_size: dict[tuple[float, int, float], list[Row]] = {}
    for own in by_variant.values():
        if tokens := _tokens(own):
            factor = _wider(own)
            by_size.setdefault((own[0]["kv_bytes_per_token"] * factor, tokens, factor), []).extend(own)
    found = [_line(axis, *size, by_size[size]) for size in sorted(by_size, reverse=True)]
    return [line for line in found if line.swept]


def _tokens(rows: list[Row]) -> int:
    """How many tokens a variant's full cache held beyond the context, plus the context of the first cell; 0 where
    nothing was measured, or at an unknown context. What was decoded after the context counts where the step recorded
    bytes per token."""
    caches = {(row["batch"], row["context"]): row["value"] for row in rows if row["metric"] == CACHE}
    for row in rows:
        if row["metric"] == PER_TOKEN and (cache := caches.get((row["batch"], row["context"]))):
            return round(cache / (row["value"] * row["batch"])) - int(row["context"] or 0) + _first(rows)
    return _first(rows)


def _first(rows: list[Row]) -> int:
    return int(rows[0]["context"] or 0) if rows else 0


def _wider(rows: list[Row]) -> float:
    """How many times the formula's bytes a variant's caches had: 2 where keys that are counted at 16 bits were kept at
    32 (as published for MLKV). 1 unless all its cells agree on one such factor."""
    extra = _tokens(rows) - _first(rows)
    ratios = [
        row["value"] / (row["kv_bytes_per_token"] * (row["context"] + extra) * row["batch"])
        for row in rows
        if row["metric"] == CACHE
    ]
    agreed = {factor for ratio in ratios for factor in (0.5, 1.0, 2.0) if abs(ratio / factor - 1) < 0.02}
    return agreed.pop() if len(agreed) == 1 else 1.0


def _line(axis: str, size: float, tokens: int, factor: float, rows: list[Row]) -> Line:
    told = "" if factor == 1 else f" ×{factor:g}"
    of_batch = axis == "batch"
    return Line(
        fixed=tokens if of_batch else rows[0]["batch"],
        layouts=tuple(dict.fromkeys(f"{row['family']}-{row['budget']}{told}" for row in rows)),
        unit=size * (tokens if of_batch else rows[0]["batch"]),
        extra=0 if of_batch else tokens - _first(rows),
        caches=_cells(rows, axis, CACHE),
        peaks=_peaks(rows, axis),
        failed={row[axis] for row in rows if row["metric"] == OUT_OF_MEMORY},
    )


def _cells(rows: list[Row], axis: str, metric: str) -> dict[str, Cells]:
    """By family: variants of one family and size have one cache, so the last measurement stands for all of them."""
    found: dict[str, Cells] = {row["family"] or "": {} for row in rows}
    for row in rows:
        if row["metric"] == metric:
            found[row["family"] or ""][row[axis]] = row["value"]
    return found


def _peaks(rows: list[Row], axis: str) -> dict[str, list[tuple[int, float]]]:
    """By family, of every layout: what a run takes beside its cache depends on more than the cache's size."""
    found: dict[str, list[tuple[int, float]]] = {row["family"] or "": [] for row in rows}
    for row in rows:
        if row["metric"] == PEAK:
            found[row["family"] or ""].append((row[axis], row["value"]))
    return {family: sorted(set(peaks)) for family, peaks in found.items()}


@styled
def memory_figure(table: pd.DataFrame) -> Figure | None:
    """KV cache against batch size of every measured variant, or None where nothing is measured."""
    drawn = lines(table)
    if not drawn:
        return None
    figure, axes = new_figure()
    swept = sorted(set().union(*(line.swept for line in drawn)))
    _draw_frame(axes, drawn, measured(table)[0], swept)
    for line in drawn:
        _draw_line(axes, line, (swept[0], swept[-1]))
    note(axes, "\n".join([_legend(drawn), *left_out(table)]))
    name_ends(figure, axes, [EndName(_name(line, drawn), line.formula(swept[-1]), line.colour) for line in drawn])
    return figure


def _legend(drawn: list[Line]) -> str:
    """What the marks mean that are there."""
    parts = ["line: formula", "marker: measured cache"]
    parts += ["dash: peak of the run"] if any(cells for line in drawn for cells in line.peaks.values()) else []
    parts += ["×: out of memory"] if any(line.failed for line in drawn) else []
    return "   ".join(parts)


def swept_axis(axes: Axes, axis: str, values: list[int]) -> None:
    """A horizontal axis of batch sizes or contexts, in octaves."""
    axes.set_xscale("log", base=2)
    axes.set_xlabel(AXES[axis])
    axes.grid(True)
    low, high = values[0], values[-1]
    ticks = byte_ticks(low / 1.01, high * 1.01, most=6)
    ticks = ticks if len(ticks) > 1 else evenly(values, 6)
    axes.set_xlim(low / 1.25, high * 1.25)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])


def _fixed(drawn: list[Line]) -> list[int]:
    """How many tokens (or sequences) the caches hold: one number where all lines agree."""
    return sorted({line.fixed for line in drawn})


def _name(line: Line, drawn: list[Line]) -> str:
    """With its own number of tokens where the lines have several."""
    return line.label if len(_fixed(drawn)) == 1 else f"{line.label} @{line.fixed:,}"


def _draw_frame(axes: Axes, drawn: list[Line], axis: str, swept: list[int]) -> None:
    swept_axis(axes, axis, swept)
    axes.set_yscale("log", base=2)
    axes.set_ylabel(_cache_label(axis, _fixed(drawn)))
    sizes = [value for line in drawn for cells in line.caches.values() for value in cells.values()]
    sizes += [line.formula(x) for line in drawn for x in (swept[0], swept[-1])]
    marks = byte_ticks(min(sizes) / 1.5, max(sizes) * 1.5, most=6)
    axes.set_yticks(marks, [size_text(mark) for mark in marks])
    axes.minorticks_off()


def _cache_label(axis: str, fixed: list[int]) -> str:
    unit = "token" if axis == "batch" else "sequence"
    if len(fixed) == 1:
        return f"KV cache of {fixed[0]:,} {unit}{'' if fixed[0] == 1 else 's'}"
    return f"KV cache of as many {unit}s as are behind @"


def _draw_line(axes: Axes, line: Line, span: tuple[int, int]) -> None:
    """The formula, the first family's points filled, further families' as rings around them, peaks and crosses."""
    axes.plot(span, [line.formula(x) for x in span], color=line.colour, linewidth=0.7, alpha=0.6, zorder=2)
    for ring, (family, cells) in enumerate(line.caches.items()):
        shape = look(family)
        axes.plot(
            list(cells),
            list(cells.values()),
            shape.marker,
            markersize=3.4 + 1.8 * ring,
            markerfacecolor="none" if ring else shape.colour,
            markeredgecolor=shape.colour if ring else "white",
            markeredgewidth=0.7 if ring else 0.3,
            zorder=3 + ring,
        )
        peaks = line.peaks[family]
        axes.plot([x for x, _ in peaks], [peak for _, peak in peaks], "_", color=shape.colour, markersize=5, alpha=0.6)
    failed = sorted(line.failed)
    axes.plot(failed, [line.formula(x) for x in failed], "x", color=ALARM, markersize=5, zorder=9)
