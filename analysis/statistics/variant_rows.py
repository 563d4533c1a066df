"""The long table brought to a row per variant: its scores, its measurements, its state and its cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from analysis.data import frame, replicates, signatures
from analysis.data.frame import Row
from analysis.data.means import mean
from analysis.data.measured import CACHE_PER_TOKEN, OUT_OF_MEMORY, SPEED
from analysis.data.metrics import COMPUTED, CONVERTED_PREFIX
from analysis.data.signatures import Sign
from analysis.data.states import TRUSTED, UNPLANNED, severity
from analysis.statistics.columns import N_SHOT, SOURCE, join_parts
from analysis.statistics.estimates import Scored
from mlkv.signature import UNSTABLE
from sweeps.steps.registry import scored_kinds
from sweeps.store.schema import CONVERTED

NOT_PLANNED = "not planned"
ACCURACY = "accuracy"
"""Of a cell: the mean itself, as it was published together with its parts."""
_SCORED = ("variant", "kind", "task", "metric", "value", "stderr", "state", "step")
_CELL = ("variant", "kind", "task", "metric", "batch", "context")
"""The key of a cell: no two rows of the long table have all of it in common."""

Score = tuple[float | None, float | None, str | None]
"""Value, standard error, and why there is no value."""


def variant_rows(table: pd.DataFrame) -> tuple[list[Row], list[str]]:
    by_variant: dict[str, list[Row]] = {}
    for row in _cells(table):
        by_variant.setdefault(row["variant"], []).append(row)
    planned = _planned(table)
    return [_variant_row(rows, planned) for rows in by_variant.values()], list(planned.scores)


def _cells(table: pd.DataFrame) -> list[Row]:
    """The rows, each cell once. Raises ValueError for a variant of two sweeps, which would be compared with the
    baseline of the other one, and for two values of one cell."""
    found: dict[tuple[object, ...], Row] = {}
    sweeps: dict[str, str] = {}
    for row in frame.records(table):
        if sweeps.setdefault(row["variant"], row["sweep"]) != row["sweep"]:
            both = f"{sweeps[row['variant']]} and {row['sweep']}"
            raise ValueError(f"variant = {row['variant']}: is in {both}; give one of them another name, or take one")
        there = found.setdefault(tuple(row[name] for name in _CELL), row)
        if there["value"] != row["value"]:
            of = " ".join(str(row[name]) for name in _CELL[1:] if row[name] is not None)
            raise ValueError(f"variant = {row['variant']}: {of} is {there['value']} and {row['value']}")
    return list(found.values())


@dataclass(frozen=True)
class _Planned:
    """The scores of a table: every variant has their columns, also one that lacks some of them."""

    axis: str | None
    """Column of the main axis; None where that is the accuracy."""
    parts: list[str]
    """Columns that the accuracy averages."""
    scores: dict[str, tuple[str, str | None, str]]


def _planned(table: pd.DataFrame) -> _Planned:
    rows = frame.records(table[["kind", "task", "metric", "in_axis", "in_accuracy"]])
    axis, parts = (
        list(dict.fromkeys(_column(row) for row in rows if row[mark])) for mark in ("in_axis", "in_accuracy")
    )
    return _Planned(axis[0] if axis else None, parts, _score_names(table))


def scored_cells(table: pd.DataFrame) -> dict[tuple[str, str], Scored]:
    """Every score that there is, by variant and column."""
    wanted = table.loc[
        table["kind"].isin(_kinds()) & table["value"].notna() & table["metric"].notna(),
        list(_SCORED),
    ]
    found: dict[tuple[str, str], Scored] = {}
    for row in frame.records(wanted):
        if _trusted(row):
            cell = Scored(row["value"], row["stderr"], row["step"], row["task"] or row["kind"], row["metric"])
            found.setdefault((row["variant"], _column(row)), cell)
    return found


def _score_names(table: pd.DataFrame) -> dict[str, tuple[str, str | None, str]]:
    """Column name → (kind, task, metric), evaluations first."""
    scored = table["metric"].notna() & ((table["metric"] != ACCURACY) | table["task"].notna())
    kinds = _kinds()
    rows = table[scored & table["kind"].isin(kinds)]
    keys = rows[["kind", "task", "metric"]].drop_duplicates().itertuples(index=False)
    found = [(k, None if t is pd.NA else t, m) for k, t, m in keys]
    found.sort(key=lambda key: kinds.index(key[0]))
    return {
        _column({"kind": kind, "task": task, "metric": metric}): (kind, task, metric) for kind, task, metric in found
    }


def _kinds() -> list[str]:
    """Kinds of the rows that hold scores of a variant, in the order of their columns."""
    first, *others = scored_kinds()
    return [first, CONVERTED, *others, COMPUTED]


def _variant_row(rows: list[Row], planned: _Planned) -> Row:
    row: Row = {name: rows[0][name] for name in frame.IDENTITY}
    row |= {name: rows[0][name] for name in ("sources", "overrides", "approximate", "passes")}
    row["signatures"] = signatures.joined(_signs(rows))
    row[SOURCE] = rows[0]["sweep"]
    row["accuracy_parts"] = join_parts(planned.parts)
    accuracy = _mean([_marked(rows, "in_accuracy", part) for part in planned.parts])
    printed = [r for r in rows if r["kind"] == "evaluate" and r["metric"] == ACCURACY and r["task"] is None]
    accuracy = _printed(printed[0], accuracy) if printed else accuracy
    row |= _score("accuracy", accuracy)
    row["quality_score"] = planned.axis or "accuracy"
    row |= _score("quality", _marked(rows, "in_axis", planned.axis) if planned.axis else accuracy)
    for name, key in planned.scores.items():
        row |= _score(name, _single(_rows_of(rows, *key)))
    row |= {f"{r['task']}{N_SHOT}": r["n_shot"] for r in rows if r["kind"] == "evaluate" and r["n_shot"] is not None}
    row["state"], row["reason"] = _overall(rows)
    return row | _measured([r for r in rows if r["kind"] == "measure"]) | _cost(rows)


def _signs(rows: list[Row]) -> Iterator[Sign]:
    """Of a score by its column, of a training by its kind."""
    for row in rows:
        if row.get("signature") is not None and _trusted(row):
            word, _, why = row["signature"].partition(": ")
            yield Sign(word, row["kind"] if word == UNSTABLE else _column(row), why)


def _rows_of(rows: list[Row], kind: str, task: str | None, metric: str) -> list[Row]:
    """The rows of one score; while its step has recorded nothing, the row with the step's state."""
    of_step = [row for row in rows if row["kind"] == kind and row["task"] == task]
    unfinished = [row for row in of_step if row["metric"] is None or not _trusted(row)]
    return [row for row in of_step if row["metric"] == metric] or unfinished


def _column(row: Row) -> str:
    source = f"{CONVERTED_PREFIX}{row['task']}" if row["kind"] == CONVERTED else row["task"] or row["kind"]
    return f"{source}.{row['metric']}"


def _measured(rows: list[Row]) -> Row:
    """The cache's bytes per token as allocated, and the decode speed of the fastest cell."""
    caches, _, missing = _single([row for row in rows if row["metric"] == CACHE_PER_TOKEN])
    if rows and missing == NOT_PLANNED:
        ran_out = any(row["metric"] == OUT_OF_MEMORY for row in rows)
        missing = (
            "OUT OF MEMORY in every cell" if ran_out else NOT_PLANNED if _trusted(rows[0]) else why_missing(rows[0])
        )
    speeds = [row for row in rows if row["metric"] == SPEED and row["value"] is not None]
    fastest = max(speeds, key=lambda row: row["value"], default=dict.fromkeys(("value", "stderr", "n", "machine")))
    return {
        "measured_bytes_per_token": caches,
        "measured_bytes_per_token_missing": missing,
        "tokens_per_second": fastest["value"],
        "tokens_per_second_stderr": fastest["stderr"],
        "tokens_per_second_n": fastest["n"],
        "machine": fastest["machine"],
    }


def _score(name: str, score: Score) -> Row:
    return {
        name: score[0],
        f"{name}_stderr": score[1],
        f"{name}_missing": score[2],
        f"{name}_seeds": int(score[0] is not None),
    }


def _trusted(row: Row) -> bool:
    return row["state"] in TRUSTED


def _single(rows: list[Row]) -> Score:
    if not rows:
        return None, None, NOT_PLANNED
    row = rows[0]
    if row["value"] is None or not _trusted(row):
        return None, None, why_missing(row)
    return row["value"], row["stderr"], None


def _marked(rows: list[Row], mark: str, column: str) -> Score:
    """A variant's score of the main axis or of a part of the accuracy; a variant without such a row lacks it."""
    found = [row for row in rows if row[mark] and _column(row) == column]
    return _single(found) if found else (None, None, f"no {column}")


def _mean(parts: list[Score]) -> Score:
    """The mean of the parts with the error √(Σse²)/n; empty if a part is missing.

    A mean over the parts that are there would compare variants on different tasks.
    """
    missing = [why for _, _, why in parts if why]
    if missing or not parts:
        return None, None, missing[0] if missing else NOT_PLANNED
    value, stderr = mean([value for value, _, _ in parts if value is not None], [stderr for _, stderr, _ in parts])
    return value, stderr, None


def _printed(row: Row, recomputed: Score) -> Score:
    """A published mean, which was computed before its parts were rounded; its error is that of the parts."""
    value, _, missing = _single([row])
    return value, recomputed[1], missing


def why_missing(row: Row) -> str:
    """`RUNNING step 40 of 300`, `FAILED: loss is not finite`, `BLOCKED by base-… (out of memory)`."""
    if _trusted(row):
        return row["reason"] or "no value"
    joiner = " " if row["state"] in ("RUNNING", "BLOCKED") else ": "
    return f"{row['state']}{joiner}{row['reason']}" if row["reason"] else row["state"]


def _overall(rows: list[Row]) -> tuple[str, str | None]:
    """The state of the variant's worst step, with its reason."""
    unfinished = [row for row in rows if row["state"] not in TRUSTED and row["state"] != UNPLANNED]
    if not unfinished:
        return rows[0]["state"] if rows[0]["state"] in TRUSTED else "PENDING", None
    worst = min(unfinished, key=lambda row: severity(row["state"]))
    return worst["state"], f"{worst['step']}: {worst['reason']}" if worst["reason"] else worst["step"]


def _cost(rows: list[Row]) -> Row:
    """Seconds of all the variant's steps, each counted once; steps that variants share count in each of them. `costs`
    has a row for each step."""
    steps = {row["step"]: row for row in rows if row["step"] is not None}
    peaks = [row["peak_memory_bytes"] for row in steps.values() if row["peak_memory_bytes"] is not None]
    return {"costs": steps, **replicates.spent(steps), "peak_memory_bytes": max(peaks, default=None)}
