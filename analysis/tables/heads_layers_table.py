"""The table of fewer heads with fewer owners: what both cost together, against what each costs alone."""

from __future__ import annotations

from analysis.data.metrics import Metric, fixed
from analysis.statistics.compare import corrected_p
from analysis.statistics.estimate import ALPHA, Difference, p_text
from analysis.statistics.heads_layers import Fits, Together, fits, overall, together
from analysis.statistics.landscape import Landscape, landscapes
from analysis.statistics.sources import Source
from analysis.tables.columns import WITHIN_NOISE
from analysis.tables.table import Cell, Column, Table, make_table


def heads_layers(source: Source, published: Source | None = None) -> Table | None:
    """A row for every number of owners and heads; None where no layout that saves in both ways is measured with those
    that save in one alone."""
    metric = source.results.estimates.metric("quality")
    found = [(landscape, row) for landscape in landscapes(source) for row in together(landscape)]
    if not found or metric is None:
        return None
    places, rows = [landscape for landscape, _ in found], [row for _, row in found]
    columns = [
        Column("owners × heads", "name", [Cell(f"{row.owners}×{row.heads}") for row in rows]),
        *([Column("base", "shape", [Cell(each.title) for each in places])] if any(p.title for p in places) else []),
        Column("layouts", "shape", [Cell(str(row.layouts), row.layouts) for row in rows]),
        Column("fewer heads alone", "part", [_number(row.heads_alone.value, metric) for row in rows]),
        Column("fewer owners alone", "part", [_number(row.layers_alone.value, metric) for row in rows]),
        Column("sum", "part", [_number(row.heads_alone.value + row.layers_alone.value, metric) for row in rows]),
        Column("together", "score", [_estimate(row.both, metric) for row in rows]),
        Column("together − sum", "difference", _interactions(rows, metric)),
    ]
    distinct = list({id(each): each for each in places}.values())
    notes = [line for each in distinct for line in _notes(each, metric)]
    return make_table(columns, baselines=[None] * len(rows), states=["DONE"] * len(rows), notes=[*notes, *_WORDS])


_WORDS = (
    "damage: the score above that of the base's own layout trained equally, mean over the measured groupings of "
    "neighbouring layers; ±: half of the 95 % interval over seeds and samples",
    "together − sum: above 0 both cost more than each alone, below 0 less; 0: they add up",
    f"{WITHIN_NOISE.strip()}: within noise of 0, corrected for the number of rows (Holm)",
)


def _interactions(rows: list[Together], metric: Metric) -> list[Cell]:
    cells = []
    for row, p in zip(rows, corrected_p([row.interaction.p for row in rows]), strict=True):
        cell = _estimate(row.interaction, metric)
        mark = WITHIN_NOISE if p is not None and p > ALPHA else ""
        cells.append(Cell(cell.text + mark, cell.number, stderr=cell.stderr))
    return cells


def _number(value: float, metric: Metric) -> Cell:
    digits = metric.digits + 1
    return Cell(fixed(round(value * metric.scale, digits) + 0.0, digits, "+"), value)  # + 0.0: never -0.0000


def _estimate(cost: Difference, metric: Metric) -> Cell:
    cell = _number(cost.value, metric)
    if cost.interval is None:
        return cell
    reach = (cost.interval[1] - cost.interval[0]) / 2
    return Cell(f"{cell.text} ± {fixed(reach * metric.scale, metric.digits + 1)}", cost.value, stderr=cost.error)


def _notes(landscape: Landscape, metric: Metric) -> list[str]:
    where, notes = f"{landscape.title}: " if landscape.title else "", []
    if (mean := overall(landscape)) and mean.interval:
        low, high = (_number(end, metric).text for end in mean.interval)
        text, p = _number(mean.value, metric).text, p_text(mean.p or 0.0)
        notes.append(f"{where}mean of together − sum over all layouts: {text} (95 % interval {low} to {high}, {p})")
    if shape := fits(landscape):
        notes.append(f"{where}{_shape(shape, metric)}")
    return notes


def _shape(shape: Fits, metric: Metric) -> str:
    def number(value: float) -> str:
        return f"{value * metric.scale:.{metric.digits + 1}f}"

    nearer = "neither is nearer" if shape.nearer.low <= 0 <= shape.nearer.high else "the product is nearer"
    nearer = "the sum is nearer" if shape.nearer.high < 0 else nearer
    return (
        f"damage of {shape.groupings} groupings × {shape.heads} numbers of heads (standard deviation "
        f"{number(shape.spread)}) is off a sum of two effects by {number(shape.sum)}, off a product by "
        f"{number(shape.product)}, root mean squares; by {number(shape.nearer.value)} more (95 % interval "
        f"{number(shape.nearer.low)} to {number(shape.nearer.high)}): {nearer}"
    )
