"""The layout figure: a row for each layout, a column for each layer, owners with their KV heads, and their readers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from analysis.data.published import layout_of
from analysis.data.reference import read
from analysis.figures.canvas import SMALLEST, footer, new_figure, shorten
from analysis.figures.geometry import evenly
from analysis.figures.style import MUTED, family_style
from mlkv.layout import KVLayout
from mlkv.patterns import name_of
from sweeps.store.schema import VariantRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.statistics.sources import Source

MOST_ROWS = 30
_ROW_HEIGHT, _MARGIN = 0.26, 0.42
"""Inches of a row, and below all rows."""
_BOX_HEIGHT, _BOX_WIDTH = 0.7, 0.84
"""Of a layer's box, in rows and columns."""
_GAP = 0.06
"""Between keys and values that are apart, in rows."""
_LEAST_SHARE = 0.2
"""Height of a single head among very many, as a share of the box."""
_MOST_STRIPES = 12
"""Up to so many query heads an owner's KV heads are drawn one by one."""
_EMPTY = "#eceff3"
_HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 0.6}


@dataclass(frozen=True)
class NamedLayout:
    name: str
    family: str | None
    layout: KVLayout
    head_dim: int = 0
    """0 where it is not known; the size of a latent is drawn by it."""


def layouts_of(source: Source) -> list[NamedLayout]:
    """The different layouts, where a plan or the published file has them; equal ones under the first one's name."""
    first: dict[KVLayout, NamedLayout] = {}
    for named in _known(source):
        first.setdefault(named.layout, named)
    return list(first.values())


def _known(source: Source) -> list[NamedLayout]:
    if source.parts:
        return [named for part in source.parts for named in _known(part.source)]
    if source.sweep:
        return [_of_plan(row) for row in source.sweep.variants]
    rows = set(source.table["variant"])
    return [named for named in _of_file(source.name) if named.name in rows]


def _of_plan(row: VariantRow) -> NamedLayout:
    # The untouched base has the layout of a variant and is named like it.
    name = name_of(row.layout) if row.baseline == "untouched" else row.variant
    return NamedLayout(name, row.family, row.layout, row.head_dim)


def _of_file(name: str) -> list[NamedLayout]:
    """Without those whose pattern is none of ours."""
    layouts: list[NamedLayout] = []
    for row in read("layouts"):
        if row["set"] == name.rpartition("/")[2] and row["layers"] and row["heads"]:
            with suppress(ValueError):
                layouts.append(NamedLayout(row["variant"], row["family"], layout_of(row)))
    return layouts


def layouts_figure(source: Source, published: Source | None = None) -> Figure | None:
    """A drawing of each different layout, or None where none is known."""
    layouts = layouts_of(source)
    if not layouts:
        return None
    shown = evenly(layouts, MOST_ROWS)
    figure, axes = new_figure(_ROW_HEIGHT * len(shown) + _MARGIN)
    layers = max(named.layout.layers for named in shown)
    for row, named in enumerate(shown):
        _draw(axes, named, row, family_style(named.family).colour)
        axes.text(layers + 0.1, row, _summary(named.layout), va="center", fontsize=SMALLEST, color=MUTED)
    _set_axes(axes, shown, layers)
    rest = f"   {len(shown)} of {len(layouts)} layouts" if len(shown) < len(layouts) else ""
    latent = "   bar without lines: a latent, by its bytes" if any(named.layout.latent for named in shown) else ""
    apart = "   two bars: keys above, values below" if any(named.layout.apart for named in shown) else ""
    footer(figure, [f"bar: KV heads of an owner   dot: a layer that reads them{latent}{apart}{rest}"])
    return figure


def _summary(layout: KVLayout) -> str:
    """`4 × 3 = 12`: KV layers times heads; of a latent `4 × r 48`, with its largest rank; where keys and values are
    apart, the heads of each in all: `K 12 V 3`."""
    if layout.apart:
        return f"K {sum(layout.keys.kv_heads):,} V {sum(layout.values.kv_heads):,}"
    if layout.latent:
        return f"{layout.kv_layers} × r {max(layout.latent.ranks):,}"
    if len(set(layout.kv_heads)) > 1:
        return f"{layout.budget:,} heads"
    return f"{layout.kv_layers} × {layout.kv_heads[0]} = {layout.budget:,}"


def _set_axes(axes: Axes, shown: list[NamedLayout], layers: int) -> None:
    axes.set_xlim(-0.6, layers - 0.4)
    axes.set_ylim(len(shown) - 0.45, -0.6)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks(range(len(shown)), [shorten(named.name) for named in shown])
    for label, named in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_color(family_style(named.family).colour)
    step = -(-layers // 7) if layers > 12 else 1
    axes.set_xticks(range(0, layers, step), [str(layer) for layer in range(0, layers, step)])
    axes.set_xlabel("layer")


def _draw(axes: Axes, named: NamedLayout, row: int, colour: str) -> None:
    """Boxes of all layers, filled from the bottom by the share of the query heads that have KV heads of their own, of a
    latent by its share of their bytes; threads from the owners to their readers. Where keys and values are apart, each
    has half of the height."""
    layout = named.layout
    if not layout.apart:
        _draw_part(axes, named, Band(row + _BOX_HEIGHT / 2, _BOX_HEIGHT), colour)
        return
    height = (_BOX_HEIGHT - _GAP) / 2
    for part, bottom in ((layout.keys, row - _GAP / 2), (layout.values, row + _BOX_HEIGHT / 2)):
        _draw_part(axes, replace(named, layout=part), Band(bottom, height), colour)


@dataclass(frozen=True)
class Band:
    """Where the boxes of a row stand, in rows."""

    bottom: float
    height: float


def _draw_part(axes: Axes, named: NamedLayout, band: Band, colour: str) -> None:
    from matplotlib.patches import Rectangle

    layout = named.layout
    for layer, owner in enumerate(layout.kv_source_layers):
        left = layer - _BOX_WIDTH / 2
        axes.add_patch(
            Rectangle((left, band.bottom - band.height), _BOX_WIDTH, band.height, facecolor=_EMPTY, edgecolor="none")
        )
        if layer == owner:
            filled = band.height * _filled(named, owner)
            axes.add_patch(
                Rectangle((left, band.bottom - filled), _BOX_WIDTH, filled, facecolor=colour, edgecolor="none")
            )
            if layout.heads <= _MOST_STRIPES and not layout.latent:
                _stripes(axes, layout.heads_of(layer), (left, band.bottom), filled)
    for owner in layout.owners:
        if readers := layout.readers(owner):
            middle = band.bottom - band.height * _filled(named, owner) / 2
            _thread(axes, layout, owner, middle, colour)
            axes.plot(list(readers), [middle] * len(readers), "o", color=colour, markersize=2.4, zorder=4, **_HOLLOW)


def _thread(axes: Axes, layout: KVLayout, owner: int, height: float, colour: str) -> None:
    """From an owner to its last reader, and from its first reader if that is below; over the bars of owners between
    them, with a white edge, so that it is seen whose heads are read."""
    first, *_, last = (*layout.readers(owner), layout.readers(owner)[-1])
    left = first if first < owner else owner + _BOX_WIDTH / 2
    right = last if last > owner else owner - _BOX_WIDTH / 2
    over = any(left < other < right for other in layout.owners if other != owner)
    if over:
        axes.plot([left, right], [height, height], color="white", linewidth=2.2, zorder=2.5)
    axes.plot([left, right], [height, height], color=colour, linewidth=0.7, zorder=2.6 if over else 1.5)


def _filled(named: NamedLayout, owner: int) -> float:
    """Height of an owner's KV heads or its latent, as a share of the box."""
    (heads, keys), (_, values) = named.layout.cached_sizes(owner, named.head_dim)
    share = heads / named.layout.heads
    if named.layout.latent and named.head_dim:
        share *= (keys + values) / (2 * named.head_dim)
    return max(share, _LEAST_SHARE)


def _stripes(axes: Axes, heads: int, corner: tuple[float, float], filled: float) -> None:
    left, bottom = corner
    for head in range(1, heads):
        y = bottom - filled * head / heads
        axes.plot([left, left + _BOX_WIDTH], [y, y], color="white", linewidth=0.3)
