"""The table of an elastic training: each layout cut from it beside the same layout trained by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from analysis.data.frame import Row
from analysis.data.metrics import Metric, score_label
from analysis.data.units import count as short
from analysis.statistics.elastic import Comparison, Interval, Pair, comparisons
from analysis.statistics.estimate import ALPHA
from analysis.statistics.results import Results
from analysis.statistics.sources import Source
from analysis.tables.columns import WITHIN_NOISE, count, printed_error
from analysis.tables.table import Cell, Column, Table, make_table


def elastic(source: Source, published: Source | None) -> Table | None:
    """A row for each layout that is scored both ways; the notes have the means and the rankings. None where no layout
    is."""
    results, found = source.results, comparisons(source)
    metric = results.estimates.metric("quality")
    if not found or metric is None:
        return None
    pairs = [pair for comparison in found for pair in comparison.pairs]
    several = len(found) > 1
    recipes = [comparison for comparison in found for _ in comparison.pairs]
    columns = [
        Column("layout", "name", [Cell(name) for name in _names(pairs)]),
        Column("KV heads", "shape", [count(pair.variant.budget) for pair in pairs]),
        *([Column("elastic", "shape", [Cell(each.cut_recipe) for each in recipes])] if several else []),
        *([Column("separate", "shape", [Cell(each.separate_recipe) for each in recipes])] if several else []),
        Column("trained separately", "score", [_score(pair.separate, metric) for pair in pairs]),
        Column("cut from elastic", "score", [_score(pair.cut, metric) for pair in pairs]),
        Column("worse by", "difference", [_excess(pair, metric) for pair in pairs]),
        Column("tokens separately", "part", [count(pair.separate.get("uptrain.tokens")) for pair in pairs]),
    ]
    notes = [line for comparison in found for line in _notes(comparison, results, metric, several)]
    states = [_state(pair) for pair in pairs]
    return make_table(columns, baselines=[None] * len(pairs), states=states, notes=notes)


def _names(pairs: Sequence[Pair]) -> list[str]:
    """`MLKV-6`, and `MLKV-6 3×2` where layouts of one name differ."""
    plain = {pair.variant.layout: f"{pair.variant.family}-{pair.variant.budget}" for pair in pairs}
    taken = Counter(plain.values())
    return [
        plain[layout] if taken[plain[layout]] == 1 else f"{plain[layout]} {layout.kv_layers}×{layout.kv_heads[0]}"
        for layout in (pair.variant.layout for pair in pairs)
    ]


def _score(row: Row, metric: Metric) -> Cell:
    return Cell(
        metric.text(row["quality"], printed_error(row, "quality")), row["quality"], stderr=row["quality_stderr"]
    )


def _excess(pair: Pair, metric: Metric) -> Cell:
    p = pair.excess.p
    mark = WITHIN_NOISE if p is not None and p > ALPHA else ""
    return Cell(metric.difference(pair.excess.value) + mark, pair.excess.value, stderr=pair.excess.error)


def _state(pair: Pair) -> str:
    """The state of the row of the two that is less finished."""
    return str(pair.cut["state"] if pair.separate["state"] == "DONE" else pair.separate["state"])


def _notes(comparison: Comparison, results: Results, metric: Metric, several: bool) -> list[str]:
    """The means of the layouts, what both ways cost, and how well their rankings agree."""
    axis = results.estimates.axis.rpartition(".")
    score = score_label(axis[0], axis[2])
    number = len(comparison.pairs)
    where = f"{comparison.cut_recipe} against {comparison.separate_recipe}: " if several else ""
    notes = []
    if comparison.mean_excess:
        text = _text(comparison.mean_excess, metric.difference)
        notes.append(f"{where}mean excess of {number} layouts cut from the elastic training: {text} ({score})")
    if comparison.share and comparison.gap:
        text = _text(comparison.share, lambda value: f"{value:.0%}")
        gap = metric.difference(comparison.gap)
        notes.append(f"{where}that is {text} of the separate variants' mean gap to the untouched base, {gap}")
    if comparison.tau:
        text = _text(comparison.tau, lambda value: f"{value:.2f}")
        notes.append(f"{where}Kendall's tau of the two rankings of the layouts: {text}")
    if comparison.separate_tokens:
        share = comparison.cut_tokens / comparison.separate_tokens
        notes.append(
            f"{where}tokens: {short(comparison.cut_tokens)} of elastic training for all layouts together, "
            f"{short(comparison.separate_tokens)} separately ({share:.0%})"
        )
    return notes


def _text(interval: Interval, text: Callable[[float], str]) -> str:
    return f"{text(interval.value)} (95 % interval {text(interval.low)} to {text(interval.high)})"
