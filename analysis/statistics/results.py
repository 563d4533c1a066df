"""The long table pivoted to a row per variant: what results.csv holds and what every table and figure is drawn from.

Each score `x` has four columns: `x` (the value as recorded), `x_stderr`, `x_missing`: why there is no value, and
`x_seeds`: of how many seeds it is the mean (of the main axis: `seeds`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from analysis.data import frame, replicates
from analysis.data.frame import Row
from analysis.data.metrics import score_label
from analysis.data.samples import Samples
from analysis.statistics import compare
from analysis.statistics.estimates import Estimates, Scored

NOT_PLANNED = "not planned"
_TRUSTED = ("DONE", "PUBLISHED", "IMPORTED")
_TRAINING_KINDS = ("base", "uptrain")

ACCURACY = "accuracy"
"""Of a cell: the mean itself, as somebody published it beside its parts."""
_SCORED = ("variant", "kind", "task", "metric", "value", "stderr", "state", "step")
_JUDGED = ("quality", "accuracy")
_CELL = ("variant", "kind", "task", "metric", "batch", "context")
"""What a row of the long table is about: no two have all of it."""

_ENDS = {"_stderr": "Float64", "_missing": "string", "_seeds": "Int64"}
"""What follows a score's column, with dtypes."""

Score = tuple[float | None, float | None, str | None]
"""Value, standard error, and why there is no value."""


def results(table: pd.DataFrame, samples: Samples | None = None) -> pd.DataFrame:
    """A row per variant in plan order. `quality` is the sweep's main axis (`quality_score` names its column),
    `accuracy` the mean over `accuracy_parts` with stderr √(Σse²)/n; either is empty unless all of it is there.

    The columns of analysis.statistics.compare come from `samples` where there are any, else from standard errors;
    `attrs["judged"]` says how.
    """
    rows, scores = _variant_rows(table)
    for row in rows:
        row |= {"seeds": row["quality_seeds"], "seeds_planned": 1}
    return _judged(rows, {row["variant"]: [row] for row in rows}, table, scores, samples)


def by_layout(table: pd.DataFrame, samples: Samples | None = None) -> pd.DataFrame:
    """The same with one row for all seeds of a layout: their mean and its standard error; `seeds` says of how many."""
    rows, scores = _variant_rows(table)
    merged, members = replicates.merge(rows, ["quality", "accuracy", *scores])
    return _judged(merged, members, table, scores, samples)


def _variant_rows(table: pd.DataFrame) -> tuple[list[Row], list[str]]:
    by_variant: dict[str, list[Row]] = {}
    for row in _cells(table):
        by_variant.setdefault(row["variant"], []).append(row)
    planned = _planned(table)
    return [_variant_row(rows, planned) for rows in by_variant.values()], list(planned.scores)


def _cells(table: pd.DataFrame) -> list[Row]:
    """The rows, each cell once. Raises ValueError for a variant of two sweeps, and for two values of one cell."""
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
    """What every variant of a table is scored by, also one that lacks some of it."""

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


def _judged(
    rows: list[Row], members: replicates.Members, table: pd.DataFrame, scores: list[str], samples: Samples | None
) -> pd.DataFrame:
    _add_drops(rows)
    axis, parts = (rows[0]["quality_score"], _parts(rows)) if rows else (ACCURACY, [])
    estimates = Estimates(members, _scored(table), axis, parts, samples)
    judged = compare.judge(rows, estimates)
    pivot = frame.make(rows, {name: _dtype(name) for name in _columns(scores, parts, _shots(rows))})
    pivot.attrs |= {"judged": judged, "estimates": estimates}
    return pivot


def estimates_of(pivot: pd.DataFrame) -> Estimates:
    """What is known of the errors in a pivot, whichever of its rows were selected. Raises ValueError for a table that
    is no pivot of one long table: one that was read from a file, or put together."""
    found = pivot.attrs.get("estimates")
    if not isinstance(found, Estimates):
        raise ValueError("pivot: was not made by results or by_layout; make it anew, of the long tables put together")
    return found


def _parts(rows: list[Row]) -> list[str]:
    return (rows[0]["accuracy_parts"] or "").split() if rows else []


def _scored(table: pd.DataFrame) -> dict[tuple[str, str], Scored]:
    """Every score that there is, by variant and column."""
    kinds = ["evaluate", *_TRAINING_KINDS]
    wanted = table.loc[table["kind"].isin(kinds) & table["value"].notna() & table["metric"].notna(), list(_SCORED)]
    found: dict[tuple[str, str], Scored] = {}
    for row in frame.records(wanted):
        if _trusted(row):
            cell = Scored(row["value"], row["stderr"], row["step"], row["task"] or row["kind"], row["metric"])
            found.setdefault((row["variant"], _column(row)), cell)
    return found


@dataclass(frozen=True)
class Shown:
    """A score that readers are shown: its column in the pivot, its metric, and its heading."""

    column: str
    metric: str
    label: str


def shown_scores(pivot: pd.DataFrame) -> list[Shown]:
    """The main axis, the accuracy and its parts, as the plan names them; empty where it names none."""
    if pivot.empty:
        return []
    axis, parts = pivot["quality_score"].iloc[0], pivot["accuracy_parts"].iloc[0]
    columns = [] if parts is pd.NA else str(parts).split()
    mean = [Shown("accuracy", "accuracy", f"mean of {len(columns)}")] if columns else []
    own_axis = [] if axis == "accuracy" else [_shown(str(axis), "quality")]
    if mean and not own_axis:
        mean = [Shown("quality", "accuracy", mean[0].label)]
    return [*own_axis, *mean, *map(_shown, columns)]


def named_scores(pivot: pd.DataFrame) -> list[Shown]:
    """The same without the mean, each in the column of its own name: as another table may have them too."""
    named = [score for score in shown_scores(pivot) if score.metric != ACCURACY]
    return [_shown(str(pivot["quality_score"].iloc[0])) if score.column == "quality" else score for score in named]


def other_scores(pivot: pd.DataFrame) -> list[Shown]:
    """Every other recorded score: further metrics of the tasks, training losses."""
    names = [name.removesuffix("_missing") for name in map(str, pivot) if name.endswith("_missing") and "." in name]
    shown = {score.label for score in shown_scores(pivot)}
    return [score for score in map(_shown, names) if score.label not in shown]


def _shown(name: str, column: str | None = None) -> Shown:
    source, metric = name.rsplit(".", 1)
    return Shown(column or name, metric, score_label(source, metric))


def _score_names(table: pd.DataFrame) -> dict[str, tuple[str, str | None, str]]:
    """Column name → (kind, task, metric), evaluations first."""
    scored = table["metric"].notna() & ((table["metric"] != ACCURACY) | table["task"].notna())
    rows = table[scored & table["kind"].isin(["evaluate", *_TRAINING_KINDS])]
    keys = rows[["kind", "task", "metric"]].drop_duplicates().itertuples(index=False)
    found = [(k, None if t is pd.NA else t, m) for k, t, m in keys]
    found.sort(key=lambda key: ("evaluate", "uptrain", "base").index(key[0]))
    return {f"{task or kind}.{metric}": (kind, task, metric) for kind, task, metric in found}


_LEADING = {
    **{name: frame.COLUMNS[name] for name in frame.IDENTITY},
    "quality_score": "string",
    "quality": "Float64",
    "quality_stderr": "Float64",
    "quality_missing": "string",
    "quality_vs_untouched": "Float64",
    "quality_vs_mha": "Float64",
    "accuracy_parts": "string",
    "accuracy": "Float64",
    "accuracy_stderr": "Float64",
    "accuracy_missing": "string",
    "accuracy_seeds": "Int64",
    "accuracy_vs_untouched": "Float64",
    "accuracy_vs_mha": "Float64",
}
_TRAILING = {
    "seeds": "Int64",
    "seeds_planned": "Int64",
    "measured_bytes_per_token": "Float64",
    "measured_bytes_per_token_missing": "string",
    "tokens_per_second": "Float64",
    "tokens_per_second_stderr": "Float64",
    "tokens_per_second_n": "Int64",
    "machine": "string",
    "state": "string",
    "reason": "string",
    "wall_seconds": "Float64",
    "device_seconds": "Float64",
    "peak_memory_bytes": "Int64",
}


def _columns(scores: Iterable[str], parts: Iterable[str], shots: Iterable[str]) -> list[str]:
    recorded = [f"{name}{end}" for name in scores for end in ("", *_ENDS)]
    return [*_LEADING, *recorded, *shots, *_TRAILING, *compare.columns([*_JUDGED, *parts])]


def _dtype(column: str) -> str:
    known = {**_LEADING, **_TRAILING, **compare.columns([*_JUDGED, column.removesuffix("_tied")])}
    if column.endswith(_N_SHOT):
        return "Int64"
    return known.get(column) or next((dtype for end, dtype in _ENDS.items() if column.endswith(end)), "Float64")


_N_SHOT = ".n_shot"


def _shots(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if name.endswith(_N_SHOT)))


def _variant_row(rows: list[Row], planned: _Planned) -> Row:
    row: Row = {name: rows[0][name] for name in frame.IDENTITY}
    row["accuracy_parts"] = " ".join(planned.parts) or None
    mean = _mean([_marked(rows, "in_accuracy", part) for part in planned.parts])
    printed = [r for r in rows if r["kind"] == "evaluate" and r["metric"] == ACCURACY and r["task"] is None]
    mean = _printed(printed[0], mean) if printed else mean
    row |= _score("accuracy", mean)
    row["quality_score"] = planned.axis or "accuracy"
    row |= _score("quality", _marked(rows, "in_axis", planned.axis) if planned.axis else mean)
    for name, key in planned.scores.items():
        row |= _score(name, _single(_rows_of(rows, *key)))
    row |= {f"{r['task']}{_N_SHOT}": r["n_shot"] for r in rows if r["kind"] == "evaluate" and r["n_shot"] is not None}
    row["state"], row["reason"] = _overall(rows)
    return row | _measured([r for r in rows if r["kind"] == "measure"]) | _cost(rows)


def _rows_of(rows: list[Row], kind: str, task: str | None, metric: str) -> list[Row]:
    """Those of one score; while its step has recorded nothing, the one that says how far the step is."""
    of_step = [row for row in rows if row["kind"] == kind and row["task"] == task]
    unfinished = [row for row in of_step if row["metric"] is None or not _trusted(row)]
    return [row for row in of_step if row["metric"] == metric] or unfinished


def _column(row: Row) -> str:
    return f"{row['task'] or row['kind']}.{row['metric']}"


def _measured(rows: list[Row]) -> Row:
    """The cache's bytes per token as allocated, beside the formula's, and the decode speed of the fastest cell."""
    caches, _, missing = _single([row for row in rows if row["metric"] == "cache_bytes_per_token"])
    if rows and missing == NOT_PLANNED:
        ran_out = any(row["metric"] == "oom" for row in rows)
        missing = (
            "OUT OF MEMORY in every cell" if ran_out else NOT_PLANNED if _trusted(rows[0]) else why_missing(rows[0])
        )
    speeds = [row for row in rows if row["metric"] == "tokens_per_second" and row["value"] is not None]
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
    return row["state"] in _TRUSTED


def _single(rows: list[Row]) -> Score:
    if not rows:
        return None, None, NOT_PLANNED
    row = rows[0]
    if row["value"] is None or not _trusted(row):
        return None, None, why_missing(row)
    return row["value"], row["stderr"], None


def _marked(rows: list[Row], mark: str, column: str) -> Score:
    """A variant's score of the main axis or of a part of the accuracy, also where it has none at all."""
    found = [row for row in rows if row[mark] and _column(row) == column]
    return _single(found) if found else (None, None, f"no {column}")


def _mean(parts: list[Score]) -> Score:
    """Mean over the parts, stderr √(Σse²)/n; nothing if a part is missing, no stderr if a part has none."""
    missing = [why for _, _, why in parts if why]
    if missing or not parts:
        return None, None, missing[0] if missing else NOT_PLANNED
    values, errors = [part[0] for part in parts], [part[1] for part in parts]
    known = [error for error in errors if error is not None]
    stderr = math.sqrt(math.fsum(e * e for e in known)) / len(parts) if len(known) == len(parts) else None
    return math.fsum(v for v in values if v is not None) / len(parts), stderr, None


def _printed(row: Row, recomputed: Score) -> Score:
    """A mean that was published itself, made of parts that were not rounded before; its error is that of the parts."""
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
    unfinished = [row for row in rows if row["state"] not in _TRUSTED and row["state"] != "UNPLANNED"]
    if not unfinished:
        return rows[0]["state"] if rows[0]["state"] in _TRUSTED else "PENDING", None
    worst = min(unfinished, key=lambda row: replicates.URGENCY.index(row["state"]))
    return worst["state"], f"{worst['step']}: {worst['reason']}" if worst["reason"] else worst["step"]


def _cost(rows: list[Row]) -> Row:
    """Seconds of all the variant's steps, each counted once; steps shared with other variants count in each. `costs`
    are those of each step."""
    steps = {row["step"]: row for row in rows if row["step"] is not None}
    peaks = [row["peak_memory_bytes"] for row in steps.values() if row["peak_memory_bytes"] is not None]
    return {"costs": steps, **replicates.spent(steps), "peak_memory_bytes": max(peaks, default=None)}


def _add_drops(rows: list[Row]) -> None:
    """`x_vs_untouched`, `x_vs_mha`: the difference from the variant's own baselines, where both numbers are there."""
    by_name = {row["variant"]: row for row in rows}
    for row in rows:
        for baseline in ("untouched", "mha"):
            reference = by_name.get(row[baseline], {})
            for name in ("quality", "accuracy"):
                ours, theirs = row[name], reference.get(name)
                row[f"{name}_vs_{baseline}"] = None if ours is None or theirs is None else ours - theirs
