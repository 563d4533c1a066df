"""The tables of a paper, by kind: `mlkv table NAME KIND` prints one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from analysis.data.frame import Row
from analysis.data.metrics import METRICS
from analysis.statistics.compare import add_intervals, add_ties
from analysis.statistics.results import Results
from analysis.statistics.scores import ScoreColumn, other_scores, shown_scores
from analysis.statistics.sources import Source
from analysis.tables.beside import PUBLISHED, ROW, lines
from analysis.tables.memory_table import memory_sheet
from analysis.tables.owners import owners_of
from analysis.tables.results_table import (
    count,
    notes_on_bold,
    score_columns,
    seeds_note,
    shape_columns,
    sheet,
    sheet_of,
)
from analysis.tables.sheet import Cell, Column, Sheet

TITLES = {
    "configuration": "configurations",
    "losses": "losses",
    "benchmarks": "benchmarks",
    "memory": "memory and throughput",
}
"""The kinds there are, in the order of a paper."""


def paper_sheets(source: Source, kinds: Sequence[str], beside: Source | None = None) -> dict[str, Sheet]:
    """The tables of these kinds, by kind; of all that have something to tell where none is named.

    Raises ValueError for an unknown kind, and for one asked for by name that has nothing to tell.
    """
    for kind in kinds:
        if kind not in TITLES:
            raise ValueError(f"table = {kind}: choose from {', '.join(TITLES)}")
    found = {kind: _MAKERS[kind](source, beside) for kind in kinds or TITLES}
    if lacking := [kind for kind in kinds if found[kind] is None]:
        raise ValueError(f"table = {lacking[0]}: {source.name} has nothing of that kind, planned or finished")
    return {kind: made for kind, made in found.items() if made is not None}


def configuration(source: Source, beside: Source | None) -> Sheet | None:
    """Layouts: owners, heads, parameters and KV bytes per token, and how many times less than the largest of them."""
    rows = _lines(source, beside)
    largest = {told: _largest([row for row in rows if row[PUBLISHED] == told]) for told in (False, True)}
    owners = {False: owners_of(source), True: {} if beside is None else owners_of(beside)}
    shape = shape_columns(rows)
    columns = [
        *shape[:3],
        Column("KV heads", "shape", [count(row["budget"]) for row in rows]),
        Column("KV layers (0-based)", "part", [Cell(owners[row[PUBLISHED]].get(row[ROW], "")) for row in rows]),
        Column("parameters", "part", [count(row["parameters"]) for row in rows]),
        shape[3],
        Column("smaller by", "score", [_times(row, largest[row[PUBLISHED]]) for row in rows]),
    ]
    return sheet_of(rows, columns) if rows else None


def _largest(rows: Sequence[Row]) -> int:
    return max((row["kv_bytes_per_token"] or 0 for row in rows), default=0)


def _times(row: Row, largest: int) -> Cell:
    times = largest / row["kv_bytes_per_token"] if row["kv_bytes_per_token"] else None
    return Cell("") if times is None else Cell(f"{times:,.3g}×" if times < 1000 else f"{times:,.0f}×", times)


def losses(source: Source, beside: Source | None) -> Sheet | None:
    """Every score that is a loss or made of one: after training, and on held-out text."""
    rows = _lines(source, beside)
    tables = [source.results, *([] if beside is None else [beside.results])]
    scores = {score.label: score for table in tables for score in _losses(table)}
    if not scores:
        return None
    ours, estimates = [row for row in rows if not row[PUBLISHED]], source.results.estimates
    for score in scores.values():
        if score.column in source.results.frame and f"{score.column}_tied" not in source.results.frame:
            add_intervals(ours, score.column, estimates)
            add_ties(ours, score.column, estimates)
    columns = [column for score in scores.values() for column in score_columns(rows, score)]
    own = [score for score in scores.values() if score.column in source.results.frame]
    notes = [*notes_on_bold(source.results, columns, own), *seeds_note(source.results)]
    return sheet_of(rows, [*shape_columns(rows), *columns], notes)


def _losses(results: Results) -> list[ScoreColumn]:
    """After training first; the base's training is the same for all."""
    found = [*shown_scores(results), *other_scores(results)]
    known = [score for score in found if score.metric in METRICS and not METRICS[score.metric].higher_is_better]
    return sorted((s for s in known if not s.column.startswith("base.")), key=lambda s: s.column[:8] != "uptrain.")


def benchmarks(source: Source, beside: Source | None) -> Sheet | None:
    """The main axis and the tasks' scores, with the drop from the baselines."""
    if not shown_scores(source.results):
        return None
    return sheet(source.results, None if beside is None else beside.results)


def memory(source: Source, beside: Source | None) -> Sheet | None:
    """Cache, memory and speed of decoding by batch size."""
    tables = {False: source.table, **({} if beside is None else {True: beside.table})}
    return memory_sheet(_lines(source, beside), tables)


def _lines(source: Source, beside: Source | None) -> list[Row]:
    return lines(source.results, None if beside is None else beside.results)


_MAKERS: dict[str, Callable[[Source, Source | None], Sheet | None]] = {
    "configuration": configuration,
    "losses": losses,
    "benchmarks": benchmarks,
    "memory": memory,
}
