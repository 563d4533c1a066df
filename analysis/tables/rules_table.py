"""The table of rules that place owners: a row for each, with what it loses and how well it ranks layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from analysis.data.metrics import Metric
from analysis.statistics.elastic import Interval
from analysis.statistics.landscape import Landscape, landscapes
from analysis.statistics.pair_matrices import matrices_of
from analysis.statistics.rules import Scored, byte_cells, floor, place_cells, rules_of, scored
from analysis.statistics.sources import Source
from analysis.tables.table import Cell, Column, Table, make_table


def rules_table(source: Source, published: Source | None = None) -> Table | None:
    """A row for each rule, least regret first; None where no rule has layouts to choose among."""
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
        Column("equal", "shape", [Cell("bytes" if rule.by_bytes else "owners × heads") for rule in rules]),
        Column("cells", "shape", [Cell(str(rule.cells), rule.cells) for rule in rules]),
        Column("regret", "score", [_excess(rule.regret, metric) for rule in rules]),
        Column("of random's", "difference", [_share(rule.of_random) for rule in rules]),
        Column("best in", "chance", [_best(rule) for rule in rules]),
        Column("tau", "difference", [_correlation(rule.tau) for rule in rules]),
        Column("rho", "part", [_correlation(rule.rho) for rule in rules]),
        Column("regret at equal bytes", "part", [_excess(rule.at_bytes, metric) for rule in rules]),
    ]
    notes = [line for landscape, ranked in found for line in _notes(landscape, ranked, metric)]
    return make_table(columns, baselines=[None] * len(rows), states=["DONE"] * len(rows), notes=[*notes, *_WORDS])


_WORDS = (
    "a cell: the measured layouts with equally many owners and heads, which differ only in where owners sit, or all "
    "with equally many bytes; regret: the score of a rule's pick above that of the best layout of the cell; at equal "
    "bytes: above the best measured layout of the same cache; mean over cells",
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


def _notes(landscape: Landscape, ranked: Sequence[Scored], metric: Metric) -> list[str]:
    where = f"{landscape.title}: " if landscape.title else ""
    seeds = "several seeds" if any(p.score.error for p in landscape.points) else "one seed of each"
    found = []
    for by_bytes in sorted({rule.by_bytes for rule in ranked}):
        measured = byte_cells(landscape) if by_bytes else place_cells(landscape)
        layouts, possible = sum(len(cell.points) for cell in measured), sum(cell.possible or 0 for cell in measured)
        kind, of = ("equal bytes", "") if by_bytes else ("owners × heads", f" of {possible}")
        noise = f"{floor(landscape, measured) * metric.scale:.{metric.digits + 2}f}"
        found.append(
            f"{where}{len(measured)} cells of {kind} with {layouts} layouts{of} measured, {seeds}; a perfect rule "
            f"would show a regret of {noise}, as the best of what is measured with noise looks better than it is"
        )
    return found
