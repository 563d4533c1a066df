"""The table of recovery: for each layout and recipe, what conversion lost, what the longest uptraining left of it, and
the tokens at which shares of it were recovered."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.data.metrics import METRICS, Metric
from analysis.data.units import count as short_count
from analysis.statistics.recovery import SHARES, Curve, Point, Recovery, TokensTo, recovery, tokens_to
from analysis.statistics.recovery_law import Law, law
from analysis.statistics.results import Results
from analysis.statistics.scores import score_column
from analysis.statistics.sources import Source
from analysis.tables.columns import AT_CONVERSION, NOTHING, count, notes_on_seeds, table_of, word
from analysis.tables.merge_published import IS_PUBLISHED
from analysis.tables.table import Cell, Column, Table

REFERENCES = {"mha": "the base's own layout, trained equally", "untouched": "the untouched base"}


def recovery_table(source: Source, published: Source | None = None) -> Table | None:
    """A row per layout and recipe; None where no conversion was scored."""
    found = recovery(source.results)
    if found is None:
        return None
    metric, curves, missing = METRICS[found.metric], found.curves, found.missing
    rows = [{**row, IS_PUBLISHED: False} for row in [*(c.row for c in curves), *(row for row, _ in missing.values())]]
    empty = [Cell("")] * len(missing)
    why = [Cell(word(reason), missing=reason) for _, reason in missing.values()]
    columns = [
        Column("variant", "name", [Cell(name) for name in [*(curve.name for curve in curves), *missing]]),
        Column("KV bytes/token", "cost", [count(row["kv_bytes_per_token"]) for row in rows]),
        Column("lengths", "shape", [*(count(len(curve.points) - 1) for curve in curves), *empty]),
        Column("longest, tokens", "part", [*map(_longest, curves), *empty]),
        Column(AT_CONVERSION, "score", [*(_gap(curve.points[0], metric) for curve in curves), *why]),
        Column("gap at the longest", "score", [*(_last_gap(curve, metric) for curve in curves), *empty]),
        *[column for share in SHARES for column in _recovered(found, share, empty)],
        *(by_law := _by_law(found, metric, empty)),
    ]
    notes = [*notes_on_recovery(found, score_label(found)), *(_ON_THE_LAW if by_law else ())]
    return table_of(rows, columns, [*notes, *notes_on_seeds(source.results)])


_ON_THE_LAW = (
    "by the law: the gap at the longest that g(t) = g(0) · (1 + t/s)^-b foretells, fitted to the gaps up to a third "
    "of its tokens; off by: that minus the measured one, with its 95 % interval",
)


def _by_law(found: Recovery, metric: Metric, empty: list[Cell]) -> list[Column]:
    """What a law that has seen a third of the tokens says of the end; none where no curve has enough lengths in it."""
    laws = [law(curve, found.metric) for curve in found.curves]
    if not any(laws):
        return []
    return [
        Column("by the law", "part", [*(_foretold(each, metric) for each in laws), *empty]),
        Column("off by", "part", [*(_off(each, metric) for each in laws), *empty]),
    ]


def _foretold(found: Law | None, metric: Metric) -> Cell:
    """Signed as the gaps beside it: of a score that is better when higher, a loss is below zero."""
    if found is None:
        return Cell("")
    value = -found.predicted if metric.higher_is_better else found.predicted
    return Cell(metric.difference(value), value)


def _off(found: Law | None, metric: Metric) -> Cell:
    if found is None:
        return Cell("")
    sign = -1.0 if metric.higher_is_better else 1.0
    text = metric.difference(sign * found.off_value)
    if found.off:
        ends = sorted(sign * end for end in (found.off.low, found.off.high))
        text = f"{text} ({metric.difference(ends[0])} to {metric.difference(ends[1])})"
    return Cell(text, sign * found.off_value)


def score_label(found: Recovery) -> str:
    return score_column(found.column).label


def recovery_columns(results: Results, variants: Sequence[str]) -> tuple[list[Column], list[str]]:
    """The tokens to recover each share, for these rows of a table with a row for each length, and the notes on them; no
    column where no recipe has two lengths."""
    found = recovery(results)
    if found is None or found.lengths < 2:
        return [], []
    columns = []
    for share in SHARES:
        cells = {
            name: _tokens(curve, tokens_to(share, curve, found.metric))
            for curve in found.curves
            for name in curve.variants
        }
        columns.append(Column(_header(share), "part", [cells.get(name, Cell("")) for name in variants]))
    return columns, notes_on_recovery(found, score_label(found))


def _recovered(found: Recovery, share: float, empty: list[Cell]) -> list[Column]:
    tokens = [tokens_to(share, curve, found.metric) for curve in found.curves]
    cells = [_tokens(curve, each) for curve, each in zip(found.curves, tokens, strict=True)]
    return [
        Column(_header(share), "score", [*cells, *empty]),
        Column(f"95 % interval of {100 * share:g} %", "part", [*(Cell(_interval(each)) for each in tokens), *empty]),
    ]


def _header(share: float) -> str:
    return f"tokens to recover {100 * share:g} %"


def _longest(curve: Curve) -> Cell:
    tokens = curve.points[-1].tokens
    return Cell(short_count(tokens), tokens) if tokens else Cell("")


def _gap(point: Point, metric: Metric) -> Cell:
    gap = point.gap
    reach = f" ± {metric.text((gap.interval[1] - gap.interval[0]) / 2)}" if gap.interval else ""
    return Cell(f"{metric.difference(gap.value)}{reach}", gap.value)


def _last_gap(curve: Curve, metric: Metric) -> Cell:
    return _gap(curve.points[-1], metric) if len(curve.points) > 1 else Cell("")


def _tokens(curve: Curve, found: TokensTo) -> Cell:
    """`53 K`; `not within 266 K` where the longest uptraining does not get there."""
    if len(curve.points) == 1:
        return NOTHING
    if found.tokens is None:
        return Cell("no gap")
    if math.isinf(found.tokens):
        return Cell(f"not within {short_count(curve.points[-1].tokens)}")
    return Cell(short_count(found.tokens), found.tokens)


def _interval(found: TokensTo) -> str:
    if found.interval is None or found.interval[0] == math.inf:
        return ""
    low, high = map(_end, found.interval)
    return low if low == high else f"{low} to {high}"


def _end(tokens: float) -> str:
    return "never" if math.isinf(tokens) else short_count(tokens)


def notes_on_recovery(found: Recovery, label: str) -> list[str]:
    """What the tokens to recover a share of the gap are measured on, and how."""
    return [
        f"tokens to recover x %: uptraining after which {label} has lost x % of its gap at conversion to "
        f"{REFERENCES[found.reference]}; between lengths linear in the logarithm of tokens, before the first in tokens",
    ]
