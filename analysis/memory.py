"""The memory figure: bytes of KV cache against batch size, the formula as lines, what was measured as points.

A cell that ran out of memory is a cross where the formula would have put it. Variants of one size share a line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis import frame
from analysis.figures import STYLE, new_figure
from analysis.frame import Row
from analysis.style import look
from analysis.ticks import byte_ticks

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
    bytes_per_token: int
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
    return [_line(size, tokens, by_size[size]) for size in sorted(by_size, reverse=True)]


def _tokens(rows: list[Row]) -> int:
    """Tokens in a full cache: the context and what was decoded after it, where the step recorded bytes per token."""
    caches = {(row["variant"], row["batch"]): row["value"] for row in rows if row["metric"] == CACHE}
    for row in rows:
        if row["metric"] == PER_TOKEN and (cache := caches.get((row["variant"], row["batch"]))):
            tokens: float = cache / (row["value"] * row["batch"])
            return round(tokens)
    return int(rows[0]["context"]) if rows else 0


def _line(size: int, tokens: int, rows: list[Row]) -> Line:
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


def memory_figure(table: pd.DataFrame) -> Figure | None:
    """KV cache against batch size of every measured variant, or None where nothing is measured."""
    import matplotlib

    drawn = lines(table)
    if not drawn:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure()
        batches = sorted(set().union(*(line.batches for line in drawn)))
        _draw_frame(axes, drawn, batches)
        for line in drawn:
            _draw_line(axes, line, (batches[0], batches[-1]))
        _write_names(figure, axes, drawn, batches[-1])
    return figure


def _draw_frame(axes: Axes, drawn: list[Line], batches: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("batch size")
    axes.set_ylabel(f"KV cache of {drawn[0].tokens:,} tokens")
    axes.grid(True, color="#e9ebee", linewidth=0.5)
    axes.set_axisbelow(True)
    low, high = batches[0], batches[-1]
    ticks = byte_ticks(low / 1.01, high * 1.01, most=6)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlim(low / 1.25, high * 1.25)
    sizes = [value for line in drawn for cells in line.caches.values() for value in cells.values()]
    sizes += [line.formula(batch) for line in drawn for batch in (low, high)]
    marks = byte_ticks(min(sizes), max(sizes) * 1.01, most=6)
    axes.set_yticks(marks, [bytes_text(mark) for mark in marks])
    axes.minorticks_off()


def bytes_text(size: float) -> str:
    """`512 KiB`, `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:g} {unit}"
        size /= 1024
    return f"{size:g} TiB"


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
    axes.plot(failed, [line.formula(batch) for batch in failed], "x", color="#b00020", markersize=5, zorder=9)


def _write_names(figure: Figure, axes: Axes, drawn: list[Line], last: int) -> None:
    """Names beside the right ends of the lines, moved apart where lines end close together."""
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    ends = [float(axes.transData.transform((last, line.formula(last)))[1]) / unit for line in drawn]
    for line, end, height in zip(drawn, ends, spread(ends, 7.5), strict=True):
        axes.annotate(
            line.label,
            (1.0, line.formula(last)),
            xytext=(3, height - end),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=6,
            color=line.colour,
            annotation_clip=False,
        )


def spread(heights: Iterable[float], gap: float) -> list[float]:
    """Heights moved as little as needed to be `gap` apart, in their order from high to low."""
    groups: list[list[float]] = []  # names that push each other share the mean of their wishes (isotonic regression)
    wished = [height + gap * i for i, height in enumerate(heights)]
    for wish in wished:
        groups.append([wish])
        while len(groups) > 1 and _mean(groups[-1]) > _mean(groups[-2]):
            pushing = groups.pop()
            groups[-1] += pushing
    tops = [_mean(group) for group in groups for _ in group]
    return [top - gap * i for i, top in enumerate(tops)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
