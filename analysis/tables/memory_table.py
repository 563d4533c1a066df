"""What cache and decoding cost as measured: a row per variant, context and machine, in the columns of the MLKV paper.

Where ours were measured on several machines, a column has a letter for each: their speeds are not to be compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from analysis.data import frame, machine
from analysis.data.frame import Row
from analysis.statistics.variant_rows import why_missing
from analysis.tables.beside import PUBLISHED, ROW
from analysis.tables.results_table import FINAL, NOTHING, shape_columns, sheet_of, word
from analysis.tables.sheet import Cell, Column, Role, Sheet

CACHE, SPEED, OUT_OF_MEMORY = "cache_bytes", "tokens_per_second", "oom"
MEMORY = ("peak_bytes", "memory_bytes")
"""What a run took beyond the weights: as our steps record it, and as others published it."""

Grid = dict[int, dict[str, float]]
"""Batch size → metric → value."""
Place = tuple[int | None, str | None]
"""Context and machine."""
Measured = dict[str, dict[Place, Grid]]
"""By variant, and context and machine."""
Entry = tuple[Row, Place, Grid]


def memory_sheet(rows: Sequence[Row], tables: Mapping[bool, pd.DataFrame]) -> Sheet | None:
    """Of the rows of beside.lines, from the long tables of ours (False) and of what was published (True); None where
    nothing is measured or planned to be."""
    measured = {published: _measurements(table) for published, table in tables.items()}
    planned = {published: _reasons(table) for published, table in tables.items()}
    entries = [(row, place, grid) for row in rows for place, grid in _grids(row, measured)]
    if not any(measured.values()) and not any(planned.values()):
        return None
    told = [row for row, _, _ in entries]
    common = _common_batch(grid for _, _, grid in entries)
    small, at = common or 0, "" if common is None else f" @{common}"
    unit, size = _unit([grid[small][CACHE] for _, _, grid in entries if CACHE in grid.get(small, {})])
    missing = [None if r["state"] in FINAL else planned[r[PUBLISHED]].get(r[ROW], "not measured") for r in told]

    def column(header: str, role: Role, value: Callable[[Grid], float | None], digits: int = 0) -> Column:
        per = size if unit in header else 1.0
        found = [(value(grid), None if grid else why) for (_, _, grid), why in zip(entries, missing, strict=True)]
        cells = [_cell(number, why, digits, per) for number, why in found]
        return Column(header, role, cells)

    contexts = [Cell("" if context is None else f"{context:,}", context) for _, (context, _), _ in entries]
    marks = machine.marks({"machine": name} for row, (_, name), grid in entries if grid and not row[PUBLISHED])
    columns = [
        *(column for column in shape_columns(told) if column.role != "shape"),
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
    measurable = [column for column in columns if column.role in ("name", "cost", "shape") or _told(column)]
    notes = _footnotes(entries) + ([_APART, *machine.key(marks)] if marks else [])
    return sheet_of(told, measurable if any(measured.values()) else columns, notes)


_APART = "machine: where it was measured; speeds and memory of different machines are not to be compared"


def _mark(entry: Entry, marks: Mapping[str | None, str]) -> Cell:
    row, (_, name), grid = entry
    return Cell(marks[name] if grid and not row[PUBLISHED] else "")


def _told(column: Column) -> bool:
    return any(cell.number is not None for cell in column.cells)


def _footnotes(entries: Sequence[Entry]) -> list[str]:
    grids = [(row[PUBLISHED], grid) for row, _, grid in entries if grid]
    notes = ["@: batch size; largest batch: of those measured, the largest with a result"]
    if any(_failed(grid) for _, grid in grids):
        notes.append("no memory at: the smallest batch that ran out")
    if len({published for published, _ in grids}) > 1:
        notes.append("memory: ours is what the run allocated at most; what was published is nvidia-smi's mean")
    return notes


def _measurements(table: pd.DataFrame) -> Measured:
    """A few tokens fewer, where a run was stopped early, are no context of their own."""
    rows = frame.records(table[(table["kind"] == "measure") & table["batch"].notna() & table["value"].notna()])
    longest: dict[str, int] = {}
    for row in rows:
        longest[_called(row)] = max(longest.get(_called(row), 0), row["context"] or 0)
    found: Measured = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        context = row["context"]
        if context and context >= 0.99 * longest[_called(row)]:
            context = longest[_called(row)]
        found[_called(row)][context, row["machine"]].setdefault(row["batch"], {})[row["metric"]] = row["value"]
    return found


def _called(row: Row) -> str:
    """Seeds of one layout have one measurement."""
    return str(row["replicate_of"] or row["variant"])


def _grids(row: Row, measured: Mapping[bool, Measured]) -> list[tuple[Place, Grid]]:
    found = measured[row[PUBLISHED]].get(row[ROW], {})
    return sorted(found.items(), key=lambda each: (each[0][0] or 0, each[0][1] or "")) or [((None, None), {})]


def _reasons(table: pd.DataFrame) -> dict[str, str]:
    """Why variants have no measurement, if they have none."""
    planned = frame.records(table[table["kind"] == "measure"])
    return {_called(row): why_missing(row) for row in reversed(planned)}


def _cell(value: float | None, why: str | None, digits: int, per: float) -> Cell:
    """`why` there is nothing; None where nothing is to come."""
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
