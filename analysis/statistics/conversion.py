"""What conversion costs before any uptraining: a converted checkpoint's scores above the base that it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.data.frame import Row
from analysis.data.metrics import CONVERTED_PREFIX
from analysis.statistics.columns import GAP, is_converted
from analysis.statistics.estimate import Difference, Estimate, difference
from analysis.statistics.estimates import Estimates


def final(column: str) -> str:
    """The column of the same score after uptraining."""
    return column.removeprefix(CONVERTED_PREFIX)


def add_gaps(rows: Sequence[Row], estimates: Estimates, references: Sequence[Row] = ()) -> None:
    """The columns `NAME_gap` of every score of conversions: on the same samples where there are any. `references` are
    baselines outside the table."""
    by_name = {row["variant"]: row for row in (*rows, *references)}
    missing = [name for name in (rows[0] if rows else ()) if is_converted(name) and name.endswith("_missing")]
    for name in (column.removesuffix("_missing") for column in missing):
        for row in rows:
            gap = gap_at_conversion(row, name, by_name, estimates)
            low, high = (gap.interval if gap else None) or (None, None)
            row |= {f"{name}{GAP}": gap and gap.value, f"{name}{GAP}_low": low, f"{name}{GAP}_high": high}


def gap_at_conversion(row: Row, column: str, by_name: Mapping[str, Row], estimates: Estimates) -> Difference | None:
    """How much larger a converted checkpoint's score is than the base's; None where one of the two is missing."""
    converted, base = estimates.of(row, column), base_score(row, column, by_name, estimates)
    return None if converted is None or base is None else difference(converted, base)


def base_score(row: Row, column: str, by_name: Mapping[str, Row], estimates: Estimates) -> Estimate | None:
    """The score of the base of a row: that of the untouched base or, where the sweep has none, of the conversion to the
    base's own layout, which changes nothing."""
    untouched, mha = by_name.get(row["untouched"] or ""), by_name.get(row["mha"] or "")
    if untouched and final(column) in untouched and (found := estimates.of(untouched, final(column))):
        return found
    return estimates.of(mha, column) if mha else None
