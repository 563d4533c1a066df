"""The layout figure: a row for each variant, a column for each layer, owners with their KV heads and their readers."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from analysis.data.published import read
from analysis.figures.canvas import QUIET, SMALLEST, evenly, new_figure, note, short, styled
from analysis.figures.style import look
from mlkv.layout import KVLayout
from mlkv.patterns import make, name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.statistics.sources import Source

MOST_ROWS = 30
_ROW, _MARGIN = 0.26, 0.42
"""Inches of a row, and below all rows."""
_TALL, _WIDE = 0.7, 0.84
"""Of a layer's box, in rows and columns."""
_LEAST = 0.2
"""Height of a single head among very many, as a share of the box."""
_STRIPES = 12
"""Up to so many query heads an owner's KV heads are drawn one by one."""
_PALE = "#eceff3"
_HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 0.6}
Drawn = tuple[str, str | None, KVLayout]
"""Name, family and layout of a row."""


def layouts_of(source: Source) -> list[Drawn]:
    """The different layouts, where a plan or the published file tells them; equal ones go by the first's name."""
    told = [_of_plan(row) for row in source.sweep.variants] if source.sweep else _of_file(source.name)
    first: dict[KVLayout, Drawn] = {}
    for drawn in told:
        first.setdefault(drawn[2], drawn)
    return list(first.values())


def _of_plan(row: dict[str, Any]) -> Drawn:
    layout = KVLayout.from_dict(row["layout"])
    return (name_of(layout) if row["baseline"] == "untouched" else row["variant"]), row["family"], layout


def _of_file(name: str) -> list[Drawn]:
    """Without those whose pattern is none of ours (readers below their owner)."""
    found: list[Drawn] = []
    for row in read("layouts"):
        if row["set"] == name.rpartition("/")[2] and row["layers"] and row["heads"]:
            shape = (int(row["layers"]), int(row["heads"]), int(row["kv_layers"]), int(row["kv_heads"]))
            with suppress(ValueError):
                found.append((row["variant"], row["family"], make(row["pattern"], *shape)))
    return found


@styled
def layouts_figure(source: Source) -> Figure | None:
    """A drawing of each different layout, or None where none is known."""
    layouts = layouts_of(source)
    if not layouts:
        return None
    shown = evenly(layouts, MOST_ROWS)
    figure, axes = new_figure(_ROW * len(shown) + _MARGIN)
    layers = max(layout.layers for *_, layout in shown)
    for row, (_, family, layout) in enumerate(shown):
        _draw(axes, layout, row, look(family).colour)
        axes.text(layers + 0.1, row, _summary(layout), va="center", fontsize=SMALLEST, color=QUIET)
    _frame(axes, [(name, look(family).colour) for name, family, _ in shown], layers)
    rest = f"   {len(shown)} of {len(layouts)} layouts" if len(shown) < len(layouts) else ""
    note(axes, f"bar: KV heads kept   dot: a layer that reads them{rest}")
    return figure


def _summary(layout: KVLayout) -> str:
    """`4 × 3 = 12`: KV layers times heads."""
    if len(set(layout.kv_heads)) > 1:
        return f"{layout.budget:,} heads"
    return f"{layout.kv_layers} × {layout.kv_heads[0]} = {layout.budget:,}"


def _frame(axes: Axes, names: list[tuple[str, str]], layers: int) -> None:
    axes.set_xlim(-0.6, layers - 0.4)
    axes.set_ylim(len(names) - 0.45, -0.6)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks(range(len(names)), [short(name) for name, _ in names])
    for label, (_, colour) in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(colour)
    step = -(-layers // 7) if layers > 12 else 1
    ticks = [layer for layer in range(layers) if layer % step == 0]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("layer")


def _draw(axes: Axes, layout: KVLayout, row: int, colour: str) -> None:
    """Boxes of all layers, filled from the bottom by the share of the heads that is kept; threads to the readers."""
    from matplotlib.patches import Rectangle

    floor = row + _TALL / 2
    for layer, source in enumerate(layout.kv_source_layers):
        left = layer - _WIDE / 2
        axes.add_patch(Rectangle((left, row - _TALL / 2), _WIDE, _TALL, facecolor=_PALE, edgecolor="none"))
        if layer == source:
            kept = _TALL * max(layout.heads_of(layer) / layout.heads, _LEAST)
            axes.add_patch(Rectangle((left, floor - kept), _WIDE, kept, facecolor=colour, edgecolor="none"))
            if layout.heads <= _STRIPES:
                _stripes(axes, layout.heads_of(layer), (left, floor), kept)
    for owner in layout.owners:
        if readers := layout.readers(owner):
            middle = floor - _TALL * max(layout.heads_of(owner) / layout.heads, _LEAST) / 2
            axes.plot([owner, readers[-1]], [middle, middle], color=colour, linewidth=0.7, zorder=1.5)
            axes.plot(list(readers), [middle] * len(readers), "o", color=colour, markersize=2.4, zorder=4, **_HOLLOW)


def _stripes(axes: Axes, heads: int, corner: tuple[float, float], kept: float) -> None:
    left, floor = corner
    for head in range(1, heads):
        y = floor - kept * head / heads
        axes.plot([left, left + _WIDE], [y, y], color="white", linewidth=0.3)
