"""How far each row is from its baseline in one score: the numbers of the tables, for what shows one baseline a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.data.frame import Row
from analysis.statistics.columns import BASELINES, COMPARED
from analysis.statistics.compare import add_comparisons
from analysis.statistics.estimate import ALPHA
from analysis.statistics.results import Results


@dataclass(frozen=True)
class FromBaseline:
    """A row's difference from the row `baseline`, in the unit in which the score is stored, with the ends of its 95 %
    interval and its p-value, which is corrected for all rows (Holm). These are None without an error."""

    baseline: str
    value: float
    low: float | None
    high: float | None
    p: float | None

    @property
    def beyond_noise(self) -> bool:
        return self.p is not None and self.p <= ALPHA


def from_baselines(results: Results, score: str) -> dict[str, FromBaseline]:
    """By variant, for the rows that have the score, as their baseline has: the base trained on equally, or where none
    is planned the untouched one. `score` is a column of the results."""
    rows = results.rows()
    if score not in COMPARED:  # whose differences the frame has
        add_comparisons(rows, score, results.estimates, results.references)
    found = {row["variant"]: _of_row(row, score) for row in rows}
    return {variant: each for variant, each in found.items() if each is not None}


def _of_row(row: Row, score: str) -> FromBaseline | None:
    role = role_of(row)
    if role is None or row[role] == row["variant"] or (value := row[f"{score}_vs_{role}"]) is None:
        return None
    low, high, p = (row[f"{score}_vs_{role}_{end}"] for end in ("low", "high", "p"))
    return FromBaseline(row[role], value, low, high, p)


def role_of(row: Row) -> str | None:
    """Which baseline a row is compared with."""
    order: Sequence[str] = BASELINES[::-1]
    return next((role for role in order if row[role] is not None), None)
