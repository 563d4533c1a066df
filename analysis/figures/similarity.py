"""The similarity figure: a heat map of layer pairs for each measure, and for the damage of sharing.

The diagonal is left empty: a layer is like itself, and loses nothing by reading itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.data.similarity import TITLES, BaseSimilarity
from analysis.figures.canvas import SMALLEST, footer, new_grid, shorten
from analysis.figures.style import GRID
from analysis.statistics.similarity import similarities
from analysis.statistics.sources import Source
from mlkv.similarity.results import DAMAGE, DISTANCE, MEASURES, Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_WITH_VALUES = 12
"""Layers up to which every cell has its value written into it."""
MOST_BASES = 2
_FEW = 8
"""Layers up to which three panels with values fit beside each other."""
_ROW_HEIGHT = {3: 2.05, 2: 2.95}
"""Inches, by panels in a row."""
_MOST_TICKS = 8
_DARK = 0.55
"""Of the colour scale: what lies above has white values."""


@dataclass(frozen=True)
class Panel:
    """values: `[L, L]`; rows are the layers that read. low, high: ends of the colour scale. diverging: around 0."""

    title: str
    values: Floats
    low: float
    high: float
    digits: int
    diverging: bool = False


def similarity_figure(source: Source, published: Source | None = None) -> Figure | None:
    """Heat maps of every base whose layers were compared, or None where there is none."""
    bases = similarities(source)
    if not bases:
        return None
    shown = bases[:MOST_BASES]
    panels = [panel for each in shown for panel in panels_of(each, named=len(shown) > 1)]
    layers = max(len(panel.values) for panel in panels)
    columns = 2 if _FEW < layers <= MOST_WITH_VALUES else 3
    figure, drawn = new_grid(len(panels), columns, _ROW_HEIGHT[columns])
    for place, (axes, panel) in enumerate(zip(drawn, panels, strict=True)):
        _draw(figure, axes, panel)
        axes.set_ylabel("" if place % columns else "layer")
        axes.set_xlabel("layer" if place + columns >= len(panels) else "")
    damage = any(each.found.damage is not None for each in shown)
    how = [
        "damage: the row's layer reads what the column's layer computed   right of the diagonal that is a layer above"
    ]
    rest = [f"{len(shown)} of {len(bases)} bases"] if len(shown) < len(bases) else []
    footer(figure, [*(how if damage else []), *rest])
    return figure


def panels_of(each: BaseSimilarity, *, named: bool = False) -> list[Panel]:
    """One for each measure, and for the damage; measures of one kind have one colour scale."""
    found, prefix = each.found, f"{shorten(each.base)}: " if named else ""
    ckas = [_off_diagonal(values) for name, values in found.layers.items() if name.startswith("cka")]
    cosines = [np.abs(_off_diagonal(values)) for name, values in found.layers.items() if name.startswith("cosine")]
    panels = []
    for name in MEASURES:
        if (values := found.layers.get(name)) is None:
            continue
        low, high, digits = 0.0, float(_off_diagonal(values).max()), 2
        if name.startswith("cka"):
            low, high = min(map(np.min, ckas)), max(map(np.max, ckas))
        elif name.startswith("cosine"):
            high = max(map(np.max, cosines))
            low = -high
        elif name == DISTANCE:
            digits = 1 if high < 100 else 0
        panels.append(Panel(f"{prefix}{TITLES[name]}", values, float(low), float(high), digits, low < 0))
    return panels if found.damage is None else [*panels, _of_damage(found.damage, prefix)]


def _of_damage(damage: Floats, prefix: str) -> Panel:
    """In thousandths of a nat, unless that has more digits than a cell has room for."""
    small = np.abs(damage).max() < 1
    values = damage * (1000 if small else 1)
    unit = "10⁻³ nats per token" if small else "nats per token"
    off = _off_diagonal(values)
    return Panel(f"{prefix}{DAMAGE} ({unit})", values, min(0.0, float(off.min())), float(off.max()), 0 if small else 1)


def _off_diagonal(values: Floats) -> Floats:
    return values[~np.eye(len(values), dtype=bool)]


def _draw(figure: Figure, axes: Axes, panel: Panel) -> None:
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    layers = len(panel.values)
    masked = np.ma.masked_array(panel.values, np.eye(layers, dtype=bool))
    low, high = panel.low, panel.high if panel.high > panel.low else panel.low + 1
    scale = Normalize(low, high)
    image = axes.imshow(masked, cmap="PuOr_r" if panel.diverging else "Blues", norm=scale, interpolation="nearest")
    axes.set_facecolor(GRID)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    step = -(-layers // _MOST_TICKS) if layers > MOST_WITH_VALUES else 1
    axes.set_xticks(range(0, layers, step), [str(layer) for layer in range(0, layers, step)])
    axes.set_yticks(range(0, layers, step), [str(layer) for layer in range(0, layers, step)])
    axes.set_title(panel.title)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALLEST, length=1.5)
    bar.set_ticks([tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high])
    if layers > MOST_WITH_VALUES:
        return
    for row in range(layers):
        for column in range(layers):
            if row != column:
                value = float(panel.values[row, column])
                colour = "white" if _is_dark(float(scale(value)), panel.diverging) else "#222222"
                text = cell_text(value, panel.digits)
                axes.text(column, row, text, ha="center", va="center", fontsize=SMALLEST, color=colour)


def _is_dark(place: float, diverging: bool) -> bool:
    return abs(place - 0.5) * 2 > 0.7 if diverging else place > _DARK


def cell_text(value: float, digits: int) -> str:
    """Without the zero before the point, and `.00` never negative: cells are narrow."""
    text = f"{round(value, digits) + 0.0:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
