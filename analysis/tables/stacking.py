"""The table of savings on top of one another: a row for each variant that saves bytes in several ways."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.data.metrics import METRICS, Metric, fixed
from analysis.statistics.compare import corrected_p
from analysis.statistics.estimate import ALPHA, Difference
from analysis.statistics.interaction import SAVINGS, Stacked, stacked
from analysis.statistics.sources import Source
from analysis.tables.columns import WITHIN_NOISE, count
from analysis.tables.table import Cell, Column, Table, make_table


def stacking(source: Source, published: Source | None = None) -> Table | None:
    """What each saving costs in the main axis, alone and together; None where no variant has several."""
    results = source.results
    found = stacked(results, source.table)
    metric = results.estimates.metric("quality")
    if not found or metric is None:
        return None
    rows = {row["variant"]: row for row in results.rows()}
    bytes_of = {name: row["kv_bytes_per_token"] for name, row in rows.items()}
    columns = [
        Column("variant", "name", [Cell(each.variant) for each in found]),
        Column("KV bytes/token", "cost", [count(bytes_of[each.variant]) for each in found]),
        Column("smaller by", "cost", [_ratio(bytes_of[each.reference], bytes_of[each.variant]) for each in found]),
        *(_alone(way, found, metric) for way in SAVINGS),
        Column("sum", "part", [_number(sum(cost.value for _, cost in each.parts.values()), metric) for each in found]),
        Column("together", "score", [_estimate(each.together, metric) for each in found]),
        Column("together − sum", "difference", _interactions(found, metric)),
    ]
    return make_table(
        columns,
        baselines=[None] * len(found),
        states=[rows[each.variant]["state"] for each in found],
        notes=_notes(found, source),
    )


def _alone(way: str, found: Sequence[Stacked], metric: Metric) -> Column:
    cells = [_number(each.parts[way][1].value, metric) if way in each.parts else Cell("") for each in found]
    return Column(f"{way} alone", "part", cells)


def _interactions(found: Sequence[Stacked], metric: Metric) -> list[Cell]:
    corrected = corrected_p([each.interaction.p for each in found])
    cells = []
    for each, p in zip(found, corrected, strict=True):
        cell = _estimate(each.interaction, metric)
        within = WITHIN_NOISE if p is not None and p > ALPHA else ""
        cells.append(Cell(cell.text + within, cell.number, stderr=cell.stderr))
    return cells


def _number(value: float, metric: Metric) -> Cell:
    """Two digits more than a score has: these are differences of differences."""
    digits = metric.digits + 2
    return Cell(fixed(round(value * metric.scale, digits) + 0.0, digits, "+"), value)  # + 0.0: never -0.00000


def _estimate(cost: Difference, metric: Metric) -> Cell:
    """With half of its 95 % interval."""
    cell = _number(cost.value, metric)
    if cost.interval is None:
        return cell
    reach = (cost.interval[1] - cost.interval[0]) / 2
    return Cell(f"{cell.text} ± {fixed(reach * metric.scale, metric.digits + 2)}", cost.value, stderr=cost.error)


def _ratio(reference: int | None, own: int | None) -> Cell:
    return Cell(f"{reference / own:,.3g}×", reference / own) if reference and own else Cell("")


def _notes(found: Sequence[Stacked], source: Source) -> list[str]:
    results = source.results
    axis = results.frame["quality_score"].iloc[0]
    references = ", ".join(dict.fromkeys(each.reference for each in found))
    paired = "on the same samples (paired)" if results.estimates.is_paired(results.rows(), "quality") else "by errors"
    known = METRICS.get(str(axis).rpartition(".")[2])
    worse = "above 0 is worse" if known and not known.higher_is_better else "below 0 is worse"
    return [
        f"differences of {axis} from {references}: {worse}; ±: half of the 95 % interval, {paired}",
        "together − sum: what the savings cost together minus the sum of what each costs alone; 0: they add up",
        f"{WITHIN_NOISE.strip()}: within noise of 0, {len(found)} comparisons corrected (Holm)",
    ]
