"""The table of rules that place owners: a row for each, with what it loses and how well it ranks layouts."""

from __future__ import annotations

from collections.abc import Callable

from analysis.data.metrics import Metric
from analysis.statistics.elastic import Interval
from analysis.statistics.landscape import Landscape, landscapes
from analysis.statistics.pair_matrices import matrices_of
from analysis.statistics.rules import Scored, cells, floor, rules_of, scored
from analysis.statistics.sources import Source
from analysis.tables.table import Cell, Column, Table, make_table


def rules_table(source: Source, published: Source | None = None) -> Table | None:
    """A row for each rule, least regret first; None where no number of owners and heads has two measured layouts."""
    metric, every = source.results.estimates.metric("quality"), landscapes(source)
    found = [(each, scored(each, rules_of(each, matrices_of(source, each), every))) for each in every]
    rows = [(landscape, rule) for landscape, rules in found for rule in rules]
    if not rows or metric is None:
        return None
    rules = [rule for _, rule in rows]
    titles = Column("base", "shape", [Cell(landscape.title) for landscape, _ in rows])
    columns = [
        Column("rule", "name", [Cell(rule.rule) for rule in rules]),
        *([titles] if any(cell.text for cell in titles.cells) else []),
        Column("cells", "shape", [Cell(str(rule.cells), rule.cells) for rule in rules]),
        Column("regret", "score", [_excess(rule.regret, metric) for rule in rules]),
        Column("of random's", "difference", [_share(rule.of_random) for rule in rules]),
        Column("best in", "chance", [_best(rule) for rule in rules]),
        Column("tau", "difference", [_correlation(rule.tau) for rule in rules]),
        Column("rho", "part", [_correlation(rule.rho) for rule in rules]),
        Column("regret at equal bytes", "part", [_excess(rule.at_bytes, metric) for rule in rules]),
    ]
    notes = [line for landscape, ranked in found if ranked for line in _notes(landscape, metric)]
    return make_table(columns, baselines=[None] * len(rows), states=["DONE"] * len(rows), notes=[*notes, *_WORDS])


_WORDS = (
    "regret: the score of a rule's pick above that of the best layout with as many owners and heads; at equal bytes: "
    "above the best measured layout of the same cache; mean over cells",
    "of random's: regret over that of a layout taken at random, in the same cells; tau, rho: Kendall's and Spearman's "
    "correlation of a rule's numbers with the scores within cells",
    "in brackets: 95 % interval over seeds and samples, as far as they are known; the spread of seeds is pooled over "
    "layouts",
)


def _excess(interval: Interval, metric: Metric) -> Cell:
    """Above 0 is worse, whatever the metric."""
    digits = metric.digits + 1
    low, high = max(interval.low, 0.0), max(interval.high, 0.0)  # no layout is better than the best
    return _cell(interval, lambda value: f"{value * metric.scale:.{digits}f}", low, high)


def _share(interval: Interval | None) -> Cell:
    if interval is None:
        return Cell("")
    return _cell(interval, lambda value: f"{value:.0%}", max(interval.low, 0.0), max(interval.high, 0.0))


def _correlation(interval: Interval | None) -> Cell:
    if interval is None:
        return Cell("")
    return _cell(interval, lambda value: f"{value:.2f}", max(interval.low, -1.0), min(interval.high, 1.0))


def _cell(interval: Interval, text: Callable[[float], str], low: float, high: float) -> Cell:
    return Cell(f"{text(interval.value)} ({text(low)} to {text(high)})", interval.value)


def _best(rule: Scored) -> Cell:
    return Cell("") if rule.best is None else Cell(f"{rule.best} of {rule.cells}", rule.best / rule.cells)


def _notes(landscape: Landscape, metric: Metric) -> list[str]:
    measured = cells(landscape)
    layouts, possible = sum(len(cell.points) for cell in measured), sum(cell.possible for cell in measured)
    where = f"{landscape.title}: " if landscape.title else ""
    seeds = "several seeds" if any(p.score.error for p in landscape.points) else "one seed of each"
    noise = floor(landscape) * metric.scale
    return [
        f"{where}{len(measured)} cells of owners × heads with {layouts} layouts of {possible} measured, {seeds}",
        f"{where}a perfect rule would show a regret of {noise:.{metric.digits + 2}f}, as the best of what is measured "
        "with noise looks better than it is",
    ]
