"""What uptraining cost: the parameters that were trained, tokens, time and memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from analysis.data import frame
from analysis.data.frame import Row
from analysis.data.units import duration, size
from analysis.statistics.sources import Source
from analysis.tables.columns import NOTHING, count, shape_columns, table_of
from analysis.tables.merge_published import merge_published
from analysis.tables.table import Cell, Column, Table

TRAINED = "trained_parameters"


def training(source: Source, published: Source | None) -> Table | None:
    """A row per layout that was trained; time and memory of several seeds are their mean and their maximum. None where
    nothing is trained. A training that is not done has a dash."""
    steps: dict[str, dict[str, Row]] = {}
    trained: dict[str, float] = {}
    for row in frame.records(source.table):
        if row["kind"] == "uptrain" and row["step"] is not None:
            name = row["replicate_of"] or row["variant"]
            steps.setdefault(name, {})[row["step"]] = row
            if row["metric"] == TRAINED and row["value"] is not None:
                trained[name] = row["value"]
    rows = [row for row in merge_published(source.results, None) if row["variant"] in steps]
    if not rows:
        return None
    own = [list(steps[row["variant"]].values()) for row in rows]
    done = [any(step["wall_seconds"] is not None for step in of_one) for of_one in own]
    # Code that did not record what it trained trained everything.
    parameters = [trained.get(row["variant"], row["parameters"]) for row in rows]
    columns = [
        shape_columns(rows)[0],
        Column("parameters", "part", [count(row["parameters"]) for row in rows]),
        Column(
            "trained parameters",
            "score",
            [count(n) if of_one else NOTHING for n, of_one in zip(parameters, done, strict=True)],
        ),
        Column("tokens", "score", [count(row.get("uptrain.tokens")) for row in rows]),
        Column("time", "score", _cells(own, "wall_seconds", _mean, duration)),
        Column("peak memory", "score", _cells(own, "peak_memory_bytes", max, lambda number: size(round(number)))),
        Column("tokens/s", "part", [count(row.get("uptrain.tokens_per_second")) for row in rows]),
    ]
    notes = ["time of a rung: with those that it continues"] if _has_lengths(own) else []
    whose = [", ".join(dict.fromkeys(step["origin"] or "here" for step in of_one)) for of_one in own]
    if len(set(whose)) > 1:
        columns.append(Column("from", "score", list(map(Cell, whose))))
        notes.append("from: who trained it; times, speeds and memory of different machines are not comparable")
    return table_of(rows, columns, notes)


def _cells(
    own: Sequence[Sequence[Row]], name: str, of_seeds: Callable[[list[float]], float], text: Callable[[float], str]
) -> list[Cell]:
    known = [[row[name] for row in of_one if row[name] is not None] for of_one in own]
    numbers = [of_seeds(values) if values else None for values in known]
    return [NOTHING if number is None else Cell(text(number), number) for number in numbers]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _has_lengths(own: Sequence[Sequence[Row]]) -> bool:
    return any("uptrain.steps=" in (row["overrides"] or "") for of_one in own for row in of_one)
