"""The table of measured memory and decoding speed: a row per variant, context and machine, with the columns of the MLKV
paper.

Where our measurements are from several machines, a column has a letter for each: their speeds are not comparable.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from analysis.data import frame, machine
from analysis.data.frame import Row
from analysis.data.measured import CACHE, OUT_OF_MEMORY, PEAK, PUBLISHED_MEMORY, SAME_CONTEXT, SPEED
from analysis.statistics.variant_rows import why_missing
from analysis.tables.columns import FINAL, NOTHING, shape_columns, table_of, word
from analysis.tables.merge_published import IS_PUBLISHED, ROW
from analysis.tables.table import Cell, Column, Role, Table

MEMORY = (PEAK, PUBLISHED_MEMORY)
"""The memory of a run beyond the weights: under the name of our steps, and under the name of published results."""

Grid = dict[int, dict[str, float]]
"""Batch size → metric → value."""
Setting = tuple[int | None, machine.Machine]
"""Context and machine."""
Measured = dict[str, dict[Setting, Grid]]
"""Variant → setting → grid."""
Entry = tuple[Row, Setting, Grid]


def memory_table(rows: Sequence[Row], tables: Mapping[bool, pd.DataFrame]) -> Table | None:
    """The table of the rows of merge_published, from our long table (False) and the published one (True); None where
    nothing is measured or planned to be."""
    measured = {published: _measurements(table) for published, table in tables.items()}
    planned = {published: _reasons(table) for published, table in tables.items()}
    entries = [(row, setting, grid) for row in rows for setting, grid in _grids(row, measured)]
    if not any(measured.values()) and not any(planned.values()):
        return None
    own_rows = [row for row, _, _ in entries]
    common = _common_batch(grid for _, _, grid in entries)
    small, at = common or 0, "" if common is None else f" @{common}"
    unit, size = _unit([grid[small][CACHE] for _, _, grid in entries if CACHE in grid.get(small, {})])
    missing = [None if r["state"] in FINAL else planned[r[IS_PUBLISHED]].get(r[ROW], "not measured") for r in own_rows]

    def column(header: str, role: Role, value: Callable[[Grid], float | None], digits: int = 0) -> Column:
        per = size if unit in header else 1.0
        pairs = zip(entries, missing, strict=True)
        cells = [_cell(value(grid), None if grid else why, digits, per) for (_, _, grid), why in pairs]
        return Column(header, role, cells)

    contexts = [Cell("" if context is None else f"{context:,}", context) for _, (context, _), _ in entries]
    marks = machine.marks(name for row, (_, name), grid in entries if grid and not row[IS_PUBLISHED])
    columns = [
        *(column for column in shape_columns(own_rows) if column.role != "shape"),
        *([Column("context", "shape", contexts)] if len({cell.number for cell in contexts} - {None}) > 1 else []),
        *([Column("machine", "cost", [_mark(entry, marks) for entry in entries])] if marks else []),
        column(f"cache {unit}{at}", "score", lambda grid: grid.get(small, {}).get(CACHE), 1),
        column(f"memory {unit}{at}", "part", lambda grid: _memory(grid.get(small, {})), 1),
        column(f"tokens/s{at}", "part", lambda grid: grid.get(small, {}).get(SPEED), 2),
        column("peak tokens/s", "score", lambda grid: _peak(grid)[0], 2),
        column("at batch", "score", lambda grid: _peak(grid)[1]),
        column("largest batch", "score", _largest),
        column("tokens/s there", "part", lambda grid: grid.get(_largest(grid) or 0, {}).get(SPEED), 2),
    ]
    if any(_failed(grid) for _, _, grid in entries):
        columns.append(column("no memory at", "difference", lambda grid: min(_failed(grid), default=None)))
    measurable = [
        column
        for column in columns
        if column.role in ("name", "cost", "shape") or any(cell.number is not None for cell in column.cells)
    ]
    notes = _notes(entries) + ([_APART, *machine.key(marks)] if marks else [])
    return table_of(own_rows, measurable if any(measured.values()) else columns, notes)


_APART = "machine: where it was measured; speeds and memory of different machines are not comparable"


def _mark(entry: Entry, marks: Mapping[machine.Machine, str]) -> Cell:
    row, (_, name), grid = entry
    return Cell(marks[name] if grid and not row[IS_PUBLISHED] else "")


def _notes(entries: Sequence[Entry]) -> list[str]:
    grids = [(row[IS_PUBLISHED], grid) for row, _, grid in entries if grid]
    notes = ["@: batch size; largest batch: of those measured, the largest with a result"]
    if any(_failed(grid) for _, grid in grids):
        notes.append("no memory at: the smallest batch that ran out of memory")
    if len({published for published, _ in grids}) > 1:
        notes.append("memory: ours is the run's peak allocation; published: the mean that nvidia-smi reports")
    return notes


def _measurements(table: pd.DataFrame) -> Measured:
    """Every measured value; a context that is close to a variant's longest counts as the longest."""
    rows = frame.records(table[(table["kind"] == "measure") & table["batch"].notna() & table["value"].notna()])
    longest: dict[str, int] = {}
    for row in rows:
        longest[_layout_name(row)] = max(longest.get(_layout_name(row), 0), row["context"] or 0)
    found: Measured = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        context = row["context"]
        if context and context >= SAME_CONTEXT * longest[_layout_name(row)]:
            context = longest[_layout_name(row)]
        found[_layout_name(row)][context, row["machine"]].setdefault(row["batch"], {})[row["metric"]] = row["value"]
    return found


def _layout_name(row: Row) -> str:
    """The name that seeds of one layout share, as they share one measurement."""
    return str(row["replicate_of"] or row["variant"])


def _grids(row: Row, measured: Mapping[bool, Measured]) -> list[tuple[Setting, Grid]]:
    found = measured[row[IS_PUBLISHED]].get(row[ROW], {})
    return sorted(found.items(), key=lambda each: (each[0][0] or 0, each[0][1] or "")) or [((None, None), {})]


def _reasons(table: pd.DataFrame) -> dict[str, str]:
    """Variant → why it has no measurement, for those that have none."""
    planned = frame.records(table[table["kind"] == "measure"])
    return {_layout_name(row): why_missing(row) for row in reversed(planned)}


def _cell(value: float | None, why: str | None, digits: int, per: float) -> Cell:
    """`why` says why there is no value; None where no more can come."""
    if value is not None:
        return Cell(f"{value / per:,.{digits}f}", value)
    return NOTHING if why is None else Cell(word(why), missing=why)


def _common_batch(grids: Iterable[Grid]) -> int | None:
    """The smallest batch size that all have measured; None where nothing is measured."""
    shared = [set(grid) - _failed(grid) for grid in grids if grid]
    if not shared:
        return None
    return min(set.intersection(*shared) or set.union(*shared), default=0)


def _unit(caches: list[float]) -> tuple[str, float]:
    return ("KiB", 2.0**10) if caches and min(caches) < 2**20 else ("MiB", 2.0**20)


def _memory(values: Mapping[str, float]) -> float | None:
    return next((values[name] for name in MEMORY if name in values), None)


def _peak(grid: Grid) -> tuple[float | None, int | None]:
    speeds = {values[SPEED]: batch for batch, values in grid.items() if SPEED in values}
    best = max(speeds, default=None)
    return best, None if best is None else speeds[best]


def _failed(grid: Grid) -> set[int]:
    return {batch for batch, values in grid.items() if OUT_OF_MEMORY in values}


def _largest(grid: Grid) -> int | None:
    return max(set(grid) - _failed(grid), default=None)
