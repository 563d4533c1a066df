"""The table of a decoding step: what it holds in memory, how long it takes, and how near that is to what memory gives.

A row per variant, context and machine, at the largest batch size that all of them have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.data import frame, machine
from analysis.data.frame import Row
from analysis.data.measured import (
    BY_LAYER_SPEED,
    CACHE,
    COPY_SPEED,
    DECODE_PEAK,
    FORMULA,
    LARGEST,
    ONCE_SPEED,
    PREFILL_PEAK,
    STEP_OVER_MHA,
    STEP_SECONDS,
    WEIGHTS,
)
from analysis.statistics.sources import Source
from analysis.statistics.variant_rows import why_missing
from analysis.tables.columns import FINAL, NOTHING, count, shape_columns, table_of, word
from analysis.tables.merge_published import ROW, merge_published
from analysis.tables.table import Cell, Column, Role, Table

Place = tuple[int, machine.Machine]
"""Context and machine."""
_MIB, _GIGA, _MILLI = 2.0**20, 1e9, 1e-3


class Measurements:
    """What was measured of one variant on one machine: values with their standard errors, by metric, batch size and
    context. Where a metric is of no batch or of no context, that is None."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, int | None, int | None], Cell] = {}

    def add(self, row: Row) -> None:
        place = row["metric"], row["batch"], row["context"]
        self._values[place] = Cell("", row["value"], stderr=row["stderr"])

    def batches(self, context: int) -> set[int]:
        return {b for name, b, c in self._values if name == STEP_SECONDS and c == context and b is not None}

    @property
    def contexts(self) -> set[int]:
        return {c for name, _, c in self._values if name == STEP_SECONDS and c is not None}

    def find(self, metric: str, batch: int, context: int) -> Cell | None:
        """Of the cell, else of the context, else of all."""
        places = ((batch, context), (None, context), (None, None))
        return next((self._values[metric, *place] for place in places if (metric, *place) in self._values), None)

    def value(self, metric: str, batch: int, context: int) -> float | None:
        found = self.find(metric, batch, context)
        return None if found is None else found.number


def decoding_table(source: Source, published: Source | None) -> Table | None:
    """None where no step was timed together with copies: earlier measurements lack that."""
    measured = _measurements(source.table)
    if not any(each.contexts for own in measured.values() for each in own.values()):
        return None
    rows = merge_published(source.results, None)
    entries = [(row, place, each) for row in rows for place, each in _of_row(row, measured)]
    batches = [each.batches(place[0]) for _, place, each in entries if place and each]
    batch = max(set.intersection(*batches) or set.union(*batches))
    marks = machine.marks(place[1] for _, place, each in entries if place and each)
    reasons = _reasons(source.table)
    own_rows = [row for row, _, _ in entries]

    def column(header: str, role: Role, metric: str, per: float = 1.0, digits: int = 1) -> Column:
        def cell(row: Row, place: Place | None, each: Measurements | None) -> Cell:
            found = each.find(metric, batch, place[0]) if place and each else None
            if found is None or found.number is None:
                return _missing(row, reasons)
            return _printed(found.number / per, found.stderr and found.stderr / per, digits)

        return Column(header, role, [cell(*entry) for entry in entries])

    columns = [
        *(column for column in shape_columns(own_rows) if column.role not in ("shape", "cost")),
        Column("context", "shape", [count(place and place[0]) for _, place, _ in entries]),
        *([Column("machine", "cost", [_mark(place, marks) for _, place, _ in entries])] if marks else []),
        column("weights MiB", "part", WEIGHTS, _MIB),
        column("cache MiB", "score", CACHE, _MIB),
        column("prefill peak MiB", "part", PREFILL_PEAK, _MIB),
        column("decode peak MiB", "part", DECODE_PEAK, _MIB),
        column("step ms", "score", STEP_SECONDS, _MILLI, 2),
        column("step / MHA", "score", STEP_OVER_MHA, 1.0, 2),
        column("GB/s", "score", ONCE_SPEED, _GIGA, 2),
        column("GB/s by layer", "part", BY_LAYER_SPEED, _GIGA, 2),
        column("copy GB/s", "difference", COPY_SPEED, _GIGA, 1),
        column("batch that fits", "score", LARGEST, 1.0, 0),
    ]
    shown = [c for c in columns if c.role in ("name", "cost", "shape") or any(x.number is not None for x in c.cells)]
    return table_of(own_rows, shown, _notes(entries, shown, batch, marks))


Entry = tuple[Row, Place | None, Measurements | None]


def _measurements(table: pd.DataFrame) -> dict[str, dict[machine.Machine, Measurements]]:
    """By variant and machine."""
    found: dict[str, dict[machine.Machine, Measurements]] = defaultdict(lambda: defaultdict(Measurements))
    for row in frame.records(table[(table["kind"] == "measure") & table["value"].notna()]):
        found[_layout_name(row)][row["machine"]].add(row)
    return found


def _layout_name(row: Row) -> str:
    """The name that seeds of one layout share, as they share one measurement."""
    return str(row["replicate_of"] or row["variant"])


def _of_row(
    row: Row, measured: Mapping[str, Mapping[machine.Machine, Measurements]]
) -> Sequence[tuple[Place | None, Measurements | None]]:
    own = measured.get(row[ROW], {})
    places = sorted((context, name or "", name) for name, each in own.items() for context in each.contexts)
    return [((context, name), own[name]) for context, _, name in places] or [(None, None)]


def _reasons(table: pd.DataFrame) -> dict[str, str]:
    """Variant → why it has no measurement."""
    rows = frame.records(table[table["kind"] == "measure"])
    return {_layout_name(row): why_missing(row) for row in reversed(rows)}


def _missing(row: Row, reasons: Mapping[str, str]) -> Cell:
    why = None if row["state"] in FINAL else reasons.get(row[ROW])
    return NOTHING if why is None or row["state"] == "DONE" else Cell(word(why), missing=why)


def _printed(value: float, stderr: float | None, digits: int) -> Cell:
    error = "" if stderr is None else f" ± {stderr:,.{digits}f}"
    return Cell(f"{value:,.{digits}f}{error}", value, stderr=stderr)


def _mark(place: Place | None, marks: Mapping[machine.Machine, str]) -> Cell:
    return Cell(marks[place[1]] if place else "")


def _notes(
    entries: Sequence[Entry], columns: Sequence[Column], batch: int, marks: Mapping[machine.Machine, str]
) -> list[str]:
    known = {column.header for column in columns}
    notes = [
        f"batch {batch:,}; peaks: the most memory beside the weights; ±: standard error of the repetitions",
        "GB/s: the weights and each cached byte once, by a step's time; by layer: for each layer its owner's bytes",
    ]
    if "step / MHA" in known:
        notes.append("step / MHA: the median ratio within rounds, in which the variants took turns")
    if "batch that fits" in known:
        notes.append("batch that fits: the largest whose run fits in memory, found by trials to a hundredth")
    if wrong := [row["variant"] for row, place, each in entries if place and each and _differs(each, batch, place[0])]:
        notes.append(f"the cache is not what the formula says: {', '.join(map(str, wrong))}")
    return notes + ([_APART, *machine.key(marks)] if marks else [])


_APART = "machine: where it was measured; speeds and memory of different machines are not comparable"


def _differs(each: Measurements, batch: int, context: int) -> bool:
    counted, formula = (each.value(name, batch, context) for name in (CACHE, FORMULA))
    return None not in (counted, formula) and counted != formula
