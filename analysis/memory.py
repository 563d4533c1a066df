"""The memory figure: bytes of KV cache against batch size, the formula as lines, what was measured as points.

A cell that ran out of memory is a cross where the formula would have put it. Variants of one size share a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis import frame
from analysis.canvas import ALARM, EndName, evenly, name_ends, new_figure, note, styled
from analysis.frame import Row
from analysis.style import look
from analysis.ticks import byte_ticks
from analysis.units import size as size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CACHE, PEAK, PER_TOKEN, OUT_OF_MEMORY = "cache_bytes", "peak_bytes", "cache_bytes_per_token", "oom"
"""What a measure step records: the cache, what the whole run added, the cache per token, and cells that ran out."""


Cells = dict[int, float]
"""Bytes by batch size."""


@dataclass(frozen=True)
class Line:
    """Layouts whose caches have one size: what was measured for each family, and the batch sizes that ran out."""

    layouts: tuple[str, ...]
    bytes_per_token: float
    tokens: int
    caches: dict[str, Cells]
    peaks: dict[str, Cells]
    failed: set[int]

    def formula(self, batch: float) -> float:
        """Bytes of the cache at a batch size: bytes per token · tokens · batch."""
        return self.bytes_per_token * self.tokens * batch

    @property
    def batches(self) -> set[int]:
        return self.failed.union(*self.caches.values())

    @property
    def label(self) -> str:
        names = ", ".join(self.layouts[:2])
        return names if len(self.layouts) <= 2 else f"{names}, +{len(self.layouts) - 2}"

    @property
    def colour(self) -> str:
        return look(next(iter(self.caches))).colour


def lines(table: pd.DataFrame) -> list[Line]:
    """Lines of a long table at the longest context measured, the largest cache first; empty without measurements."""
    rows = [r for r in frame.records(table) if r["kind"] == "measure" and r["batch"] and r["kv_bytes_per_token"]]
    longest = max((row["context"] for row in rows if row["metric"] == CACHE), default=None)
    rows = [row for row in rows if row["context"] == longest and row["value"] is not None]
    tokens = _tokens(rows)
    by_size: dict[int, list[Row]] = {}
    for row in rows:
        by_size.setdefault(row["kv_bytes_per_token"], []).append(row)
    wider = _wider(rows, tokens)
    return [_line(size * wider, tokens, by_size[size]) for size in sorted(by_size, reverse=True)]


def _wider(rows: list[Row], tokens: int) -> float:
    """How many times the formula's bytes all caches had: 2 where a cache that is counted at 16 bits was measured at 32
    (as published for MLKV). 1 unless all agree on one such factor."""
    ratios = [
        row["value"] / (row["kv_bytes_per_token"] * tokens * row["batch"]) for row in rows if row["metric"] == CACHE
    ]
    agreed = {factor for ratio in ratios for factor in (0.5, 1.0, 2.0) if abs(ratio / factor - 1) < 0.02}
    return agreed.pop() if len(agreed) == 1 else 1.0


def _tokens(rows: list[Row]) -> int:
    """Tokens in a full cache: the context and what was decoded after it, where the step recorded bytes per token."""
    caches = {(row["variant"], row["batch"]): row["value"] for row in rows if row["metric"] == CACHE}
    for row in rows:
        if row["metric"] == PER_TOKEN and (cache := caches.get((row["variant"], row["batch"]))):
            tokens: float = cache / (row["value"] * row["batch"])
            return round(tokens)
    return int(rows[0]["context"]) if rows else 0


def _line(size: float, tokens: int, rows: list[Row]) -> Line:
    return Line(
        layouts=tuple(dict.fromkeys(f"{row['family']}-{row['budget']}" for row in rows)),
        bytes_per_token=size,
        tokens=tokens,
        caches=_cells(rows, CACHE),
        peaks=_cells(rows, PEAK),
        failed={row["batch"] for row in rows if row["metric"] == OUT_OF_MEMORY},
    )


def _cells(rows: list[Row], metric: str) -> dict[str, Cells]:
    """By family: variants of one family and size have one cache, so the last measurement stands for all of them."""
    found: dict[str, Cells] = {row["family"] or "": {} for row in rows}
    for row in rows:
        if row["metric"] == metric:
            found[row["family"] or ""][row["batch"]] = row["value"]
    return found


@styled
def memory_figure(table: pd.DataFrame) -> Figure | None:
    """KV cache against batch size of every measured variant, or None where nothing is measured."""
    drawn = lines(table)
    if not drawn:
        return None
    figure, axes = new_figure()
    batches = sorted(set().union(*(line.batches for line in drawn)))
    _draw_frame(axes, drawn, batches)
    for line in drawn:
        _draw_line(axes, line, (batches[0], batches[-1]))
    note(axes, _legend(drawn))
    name_ends(figure, axes, [EndName(line.label, line.formula(batches[-1]), line.colour) for line in drawn])
    return figure


def _legend(drawn: list[Line]) -> str:
    """What the marks mean that are there."""
    parts = ["line: formula", "marker: measured cache"]
    parts += ["dash: peak of the run"] if any(cells for line in drawn for cells in line.peaks.values()) else []
    parts += ["×: out of memory"] if any(line.failed for line in drawn) else []
    return "   ".join(parts)


def batch_axis(axes: Axes, batches: list[int]) -> None:
    """A horizontal axis of batch sizes, in octaves."""
    axes.set_xscale("log", base=2)
    axes.set_xlabel("batch size")
    axes.grid(True)
    low, high = batches[0], batches[-1]
    ticks = byte_ticks(low / 1.01, high * 1.01, most=6)
    ticks = ticks if len(ticks) > 1 else evenly(batches, 6)
    axes.set_xlim(low / 1.25, high * 1.25)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])


def _draw_frame(axes: Axes, drawn: list[Line], batches: list[int]) -> None:
    batch_axis(axes, batches)
    axes.set_yscale("log", base=2)
    axes.set_ylabel(f"KV cache of {drawn[0].tokens:,} tokens")
    sizes = [value for line in drawn for cells in line.caches.values() for value in cells.values()]
    sizes += [line.formula(batch) for line in drawn for batch in (batches[0], batches[-1])]
    marks = byte_ticks(min(sizes) / 1.5, max(sizes) * 1.5, most=6)
    axes.set_yticks(marks, [size_text(mark) for mark in marks])
    axes.minorticks_off()


def _draw_line(axes: Axes, line: Line, span: tuple[int, int]) -> None:
    """The formula, the first family's points filled, further families' as rings around them, peaks and crosses."""
    axes.plot(span, [line.formula(batch) for batch in span], color=line.colour, linewidth=0.7, alpha=0.6, zorder=2)
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
        axes.plot(list(peaks), list(peaks.values()), "_", color=shape.colour, markersize=5, alpha=0.6)
    failed = sorted(line.failed)
    axes.plot(failed, [line.formula(batch) for batch in failed], "x", color=ALARM, markersize=5, zorder=9)
