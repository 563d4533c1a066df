"""The table of equivalents: after how many tokens, and operations, the base alone is as good as each layout."""

from __future__ import annotations

import math

from analysis.data.metrics import METRICS, Metric
from analysis.data.units import count as short_count
from analysis.statistics.equivalents import FEWEST, BaseLaw, Equivalents, Worth, equivalents
from analysis.statistics.sources import Source
from analysis.tables.columns import NOTHING, count, shape_columns, source_columns, table_of
from analysis.tables.merge_published import IS_PUBLISHED
from analysis.tables.table import Cell, Column, Table

OUTSIDE = " ‡"
"""Behind a number of tokens that no base was trained on."""
_OPERATIONS = 6
"""Of a training, for each parameter and token: two forwards, four backwards."""


def equivalents_table(source: Source, published: Source | None = None) -> Table | None:
    """A row per layout; None where a base has too few lengths for a law, or no layout a loss."""
    found = equivalents(source)
    if found is None or not found.worths:
        return None
    metric, worths = METRICS[found.metric], found.worths
    rows = [{**each.row, IS_PUBLISHED: False} for each in worths]
    parameters = {each.row["variant"]: each.row["parameters"] for each in worths}
    base = max((size for size in parameters.values() if size), default=None)
    columns = [
        shape_columns(rows)[0],
        *source_columns(rows),
        Column("KV bytes/token", "cost", [count(row["kv_bytes_per_token"]) for row in rows]),
        Column("tokens", "shape", [_tokens(each.seen) for each in worths]),
        Column(f"{metric.label} ↓", "score", [_score(each, metric) for each in worths]),
        Column("base tokens", "score", [_worth(each) for each in worths]),
        Column("95 % interval", "part", [Cell(_interval(each)) for each in worths]),
        Column("of its own", "score", [_share(each) for each in worths]),
        Column("base operations", "part", [_operations(each, base) for each in worths]),
    ]
    return table_of(rows, columns, _notes(found, metric))


def _tokens(number: float | None) -> Cell:
    return NOTHING if number is None else Cell(short_count(number), number)


def _score(found: Worth, metric: Metric) -> Cell:
    return Cell(metric.text(found.score.value), found.score.value)


def _worth(found: Worth) -> Cell:
    if math.isinf(found.tokens):
        return Cell("never")
    return Cell(f"{short_count(found.tokens)}{'' if found.inside else OUTSIDE}", found.tokens)


def _interval(found: Worth) -> str:
    if found.interval is None:
        return ""
    low, high = ("never" if math.isinf(end) else short_count(end) for end in found.interval)
    return low if low == high else f"{low} to {high}"


def _share(found: Worth) -> Cell:
    """`0.80×`: a base alone would have needed that share of the tokens; above 1 the layout has saved some."""
    if found.share is None or math.isinf(found.share):
        return NOTHING
    return Cell(f"{found.share:.2f}×{'' if found.inside else OUTSIDE}", found.share)


def _operations(found: Worth, parameters: int | None) -> Cell:
    if parameters is None or math.isinf(found.tokens):
        return NOTHING
    number = _OPERATIONS * parameters * found.tokens
    return Cell(f"{number:.2e}{'' if found.inside else OUTSIDE}", number)


def _notes(found: Equivalents, metric: Metric) -> list[str]:
    law, lengths = found.law, found.law.lengths
    listed = ", ".join(f"{short_count(each.tokens)} {metric.text(each.score.value)}" for each in lengths)
    notes = [
        f"base tokens: after which the base alone, with a schedule to its end, has this {metric.label}, by the law "
        f"L = {law.floor:.4g} + {law.factor:.4g} · (D / {short_count(law.longest)})^-{law.power:.3g}",
        f"the law is fitted to {len(lengths)} lengths ({listed}), none of them farther from it than "
        f"{metric.text(law.residual)}{_foretold(law, metric)}",
        "of its own: those tokens, of all that base and uptraining of the row have seen (a teacher's not counted); "
        "below 1 a base alone would have needed fewer",
        f"base operations: {_OPERATIONS} for each parameter and token",
    ]
    if any(each.interval for each in found.worths):
        notes.append("95 % interval: over held-out samples; another seed of the bases is not in it")
    if any(not each.inside and not math.isinf(each.tokens) for each in found.worths):
        notes.append(f"{OUTSIDE.strip()}: outside of the lengths that were trained, so that the law alone says it")
    if any(math.isinf(each.tokens) for each in found.worths):
        notes.append(f"never: a loss that the law has at no number of tokens (its lowest: {metric.text(law.floor)})")
    return notes


def _foretold(law: BaseLaw, metric: Metric) -> str:
    if law.foretold is None:
        return f"; with more than {FEWEST} the longest would test it"
    off = law.foretold - law.lengths[-1].score.value
    return f"; from the others, the longest is foretold to {metric.difference(off)}"
