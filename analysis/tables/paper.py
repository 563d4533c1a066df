"""The tables of a paper (rows of analysis/tables/kinds.py): `mlkv table NAME KIND` prints one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from analysis.data.frame import Row
from analysis.data.metrics import METRICS
from analysis.statistics.columns import SOURCE
from analysis.statistics.combine import BETWEEN
from analysis.statistics.results import Results
from analysis.statistics.scores import ScoreColumn, other_scores, shown_scores
from analysis.statistics.sources import Source
from analysis.tables.columns import (
    compare_rows,
    count,
    notes_on_bold,
    notes_on_seeds,
    score_columns,
    shape_columns,
    source_columns,
    table_of,
)
from analysis.tables.kinds import TABLES
from analysis.tables.memory_table import memory_table
from analysis.tables.merge_published import IS_PUBLISHED, ROW, merge_published
from analysis.tables.owners import owners_of
from analysis.tables.results_table import of_source
from analysis.tables.table import Cell, Column, Table, header_key
from mlkv.registry import function_of
from sweeps.store.errors import choices


def make_tables(source: Source, kinds: Sequence[str], published: Source | None = None) -> dict[str, Table]:
    """The tables of these kinds, by kind; where no kind is named, all that have something to show.

    Raises ValueError for an unknown kind, for a kind that is named and has nothing to show, and where no kind has.
    """
    made = {kind: _make(kind, source, published) for kind in kinds or TABLES}
    for kind in kinds:
        if made[kind] is None:
            needs = f"; it needs {TABLES[kind].needs}" if TABLES[kind].needs else ""
            raise ValueError(f"table = {kind}: {source.name} has nothing of that kind, planned or finished{needs}")
    if not any(made.values()):
        raise ValueError(f"{source.name}: there is nothing to show in a table, as it has no variants")
    notes = source.notes
    return {kind: replace(table, notes=[*table.notes, *notes]) for kind, table in made.items() if table is not None}


def select_columns(tables: Mapping[str, Table], names: Sequence[str]) -> dict[str, Table]:
    """These columns of the tables that have any of them; `all` names every column. Raises ValueError for a name that
    no table has."""
    wanted = {header_key(name) for name in names}
    if "all" in wanted:
        return dict(tables)
    known = {header_key(header): header.rstrip(" ↑↓") for table in tables.values() for header in table.headers}
    if unknown := [name for name in names if header_key(name) not in known]:
        raise ValueError(f"columns = {unknown[0]}: {choices(unknown[0], known.values())}")
    chosen = {kind: table.select(wanted) for kind, table in tables.items()}
    return {kind: table for kind, table in chosen.items() if len(table.headers) > 1} or chosen


def _make(kind: str, source: Source, published: Source | None) -> Table | None:
    row = TABLES.choose(kind)
    with TABLES.running(kind):
        made = function_of(row.make)(source, published)
        if made is not None and not isinstance(made, Table):
            raise TypeError(f"must give a Table or None, not {type(made).__name__}")
        return made


def configuration(source: Source, published: Source | None) -> Table | None:
    """Layouts: owners, heads, parameters and KV bytes per token, and how many times less than the largest of them."""
    rows = _rows(source, published)
    largest: dict[object, int] = {}
    for row in rows:
        for origin in _origins(row):
            largest[origin] = max(largest.get(origin, 0), row["kv_bytes_per_token"] or 0)
    owners = {False: owners_of(source), True: {} if published is None else owners_of(published)}
    variant, *sources = [shape_columns(rows)[0], *source_columns(rows)]
    layers, heads, *caches, cost = shape_columns(rows)[1 + len(sources) :]
    columns = [
        variant,
        *sources,
        replace(layers, role="score"),
        replace(heads, role="score"),
        Column("KV heads", "shape", [count(row["budget"]) for row in rows]),
        Column("KV layers (0-based)", "part", [Cell(owners[row[IS_PUBLISHED]].get(row[ROW], "")) for row in rows]),
        Column("parameters", "part", [count(row["parameters"]) for row in rows]),
        *caches,
        cost,
        Column("smaller by", "score", [_ratio(row, max(largest[origin] for origin in _origins(row))) for row in rows]),
    ]
    return table_of(rows, columns) if rows else None


def _origins(row: Row) -> list[object]:
    """The sources that a row is of: caches are compared within one of them."""
    return [(row[IS_PUBLISHED], source) for source in (row.get(SOURCE) or "").split(BETWEEN)]


def _ratio(row: Row, largest: int) -> Cell:
    ratio = largest / row["kv_bytes_per_token"] if row["kv_bytes_per_token"] else None
    return Cell("") if ratio is None else Cell(f"{ratio:,.3g}×" if ratio < 1000 else f"{ratio:,.0f}×", ratio)


def losses(source: Source, published: Source | None) -> Table | None:
    """Every score that is better when lower: after training, and on held-out text."""
    rows = _rows(source, published)
    both = [source.results, *([] if published is None else [published.results])]
    scores = {score.label: score for results in both for score in _losses(results)}
    if not scores:
        return None
    own = [score for score in scores.values() if score.column in source.results.frame]
    compare_rows(rows, own, source.results)
    columns = [column for score in scores.values() for column in score_columns(rows, score)]
    notes = [*notes_on_bold(source.results, columns, own), *notes_on_seeds(source.results)]
    return table_of(rows, [*shape_columns(rows), *columns], notes)


def _losses(results: Results) -> list[ScoreColumn]:
    """Losses after training first, and without that of the base's training, which all variants share."""
    scores = [*shown_scores(results), *other_scores(results)]
    known = [score for score in scores if score.metric in METRICS and not METRICS[score.metric].higher_is_better]
    own = [score for score in known if not score.column.startswith("base.")]
    return sorted(own, key=lambda score: not score.column.startswith("uptrain."))


def benchmarks(source: Source, published: Source | None) -> Table | None:
    """The main axis and the tasks' scores, with the differences from the baselines."""
    if not shown_scores(source.results):
        return None
    return of_source(source, published)


def memory(source: Source, published: Source | None) -> Table | None:
    """Cache, memory and speed of decoding by batch size."""
    tables = {False: source.table, **({} if published is None else {True: published.table})}
    return memory_table(_rows(source, published), tables)


def _rows(source: Source, published: Source | None) -> list[Row]:
    return merge_published(source.results, None if published is None else published.results)
