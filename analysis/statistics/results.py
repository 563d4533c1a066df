"""Results: a row per variant or per layout, with the scores that are compared and the samples behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.data import frame, replicates
from analysis.data.computed import with_computed
from analysis.data.frame import Row
from analysis.data.samples import Samples
from analysis.statistics.columns import BASELINES, COMPARED, LATER, N_SHOT, SOURCE, columns, dtype, split_parts
from analysis.statistics.compare import TableStatistics, compare
from analysis.statistics.conversion import add_gaps
from analysis.statistics.estimates import Estimates, Scored
from analysis.statistics.variant_rows import ACCURACY, scored_cells, variant_rows


@dataclass(frozen=True, eq=False)
class Results:
    """The rows that every table and figure shows, with the scores and samples that compare them.

    `frame` has a row per variant in plan order, with the columns of statistics/columns.py. `quality` is the sweep's
    main axis (`quality_score` names its column), `accuracy` the mean over `accuracy_parts` with the standard error
    √(Σse²)/n; either is empty unless all of it is there. `estimates` holds the scores with their errors, and reads the
    samples behind them. `statistics` are those of all the rows together. `references` are the baselines of a selection
    that are not in it: rows differ from them, and nothing else is compared with them.
    """

    frame: pd.DataFrame
    estimates: Estimates
    statistics: TableStatistics
    references: tuple[Row, ...] = ()

    @classmethod
    def from_frame(cls, table: pd.DataFrame) -> Results:
        """Results from a frame alone: one that was read from a file (results.csv, Parquet), or several concatenated.

        A frame holds no samples and no single seeds, so that rows are compared by their standard errors, anew and with
        one another. Raises ValueError for a missing column, for a variant that has two rows, and for rows whose main
        axis or mean accuracy are not the same.
        """
        table = frame.typed(table, {str(name): dtype(str(name)) for name in table})
        _check(table)
        rows = frame.records(table)
        axis, parts = _axis(rows)
        members = {row["variant"]: [row] for row in rows}
        return _compared(rows, list(map(str, table)), Estimates(members, _cells_of(rows), axis, parts))

    def select(self, variants: Iterable[str], *, references: bool = False) -> Results:
        """The results of these variants (layouts, where a row is one) alone, in their order in the table.

        Whatever compares rows is computed anew among them: ties, corrected p-values, the probability of being
        Pareto-optimal, the hypervolume. A difference from a baseline that was not selected is empty, or with
        `references` stays one. Raises ValueError for a variant that is not in the table.
        """
        wanted, own = dict.fromkeys(variants), {row["variant"]: row for row in self.rows()}
        if unknown := [name for name in wanted if name not in own]:
            raise ValueError(f"variant = {unknown[0]}: not in these results (there are {', '.join(own) or 'none'})")
        rows = [row for name, row in own.items() if name in wanted]
        others = {row["variant"]: row for row in (*own.values(), *self.references)} if references else {}
        needed = dict.fromkeys(row[baseline] for row in rows for baseline in BASELINES if row[baseline] not in wanted)
        unselected = [others[name] for name in needed if name in others]
        estimates = self.estimates.select([*wanted, *(row["variant"] for row in unselected)])
        return _compared(rows, list(map(str, self.frame)), estimates, unselected)

    def compared_rows(self) -> list[Row]:
        """All that is compared: the rows, and the baselines that are not among them."""
        return [*self.rows(), *self.references]

    def rows(self) -> list[Row]:
        """The frame's rows, with None for what is missing."""
        return frame.records(self.frame)


def results(table: pd.DataFrame, samples: Samples | None = None) -> Results:
    """The results of a long table, a row per variant; compared by `samples` where there are any, else by standard
    errors. Raises ValueError for a variant of two sweeps, and for two values of one cell."""
    table = with_computed(table)
    rows, scores = variant_rows(table)
    for row in rows:
        row |= {"seeds": row["quality_seeds"], "seeds_planned": 1}
    return _of_rows(rows, {row["variant"]: [row] for row in rows}, table, scores, samples)


def by_layout(table: pd.DataFrame, samples: Samples | None = None) -> Results:
    """The same with one row for all seeds of a layout: their mean and its standard error; `seeds` is their number."""
    table = with_computed(table)
    rows, scores = variant_rows(table)
    merged, members = replicates.merge(rows, [*COMPARED, *scores])
    return _of_rows(merged, members, table, scores, samples)


def _of_rows(
    rows: list[Row], members: replicates.Members, table: pd.DataFrame, scores: Sequence[str], samples: Samples | None
) -> Results:
    axis, parts = _axis(rows)
    shots = dict.fromkeys(name for row in rows for name in row if name.endswith(N_SHOT))
    names = columns(scores, parts, shots, several=len({row[SOURCE] for row in rows}) > 1)
    return _compared(rows, names, Estimates(members, scored_cells(table), axis, parts, samples))


def _compared(rows: list[Row], names: Sequence[str], estimates: Estimates, references: Sequence[Row] = ()) -> Results:
    """The rows with all that compares them, as a frame of these columns."""
    add_gaps(rows, estimates, references)
    statistics = compare(rows, estimates, references)
    return Results(frame.make(rows, {name: dtype(name) for name in names}), estimates, statistics, tuple(references))


def _axis(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """The column of the main axis, and those of the accuracy's parts: the same in all rows."""
    return (rows[0]["quality_score"], split_parts(rows[0]["accuracy_parts"])) if rows else (ACCURACY, [])


def _check(table: pd.DataFrame) -> None:
    for name in columns([], [], []):
        if name not in table and name not in LATER:
            raise ValueError(f"results: no column {name}")
    for name in ("quality_score", "accuracy_parts"):
        if len(found := table[name].unique()) > 1:
            raise ValueError(f"{name} = {' and '.join(map(str, found))}: these rows are not comparable")
    if repeated := table["variant"][table["variant"].duplicated()].to_list():
        raise ValueError(f"variant = {repeated[0]}: has two rows; give one of them another name")


def _cells_of(rows: Sequence[Row]) -> dict[tuple[str, str], Scored]:
    """Every score in the columns of a frame."""
    names = [name.removesuffix("_missing") for name in (rows[0] if rows else ()) if name.endswith("_missing")]
    return {
        (row["variant"], name): Scored(row[name], row[f"{name}_stderr"], None, *name.rsplit(".", 1))
        for row in rows
        for name in names
        if "." in name and row[name] is not None
    }
