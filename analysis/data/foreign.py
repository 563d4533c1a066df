"""Runs that somebody else logged to W&B, in our schema, by a mapping of their keys to our columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import pandas as pd

from analysis.data import frame
from analysis.data.frame import Row
from sweeps.tracking.read.runs import LoggedRun, number

FIELDS = ("id", "name", "group", "sweep", "project", "job_type", "state")
_PLACES = ("config", "summary")


class MappingError(ValueError):
    """One line: what is wrong in the mapping, and the valid choices."""


def foreign_table(runs: Iterable[LoggedRun], mapping: Mapping[str, str]) -> pd.DataFrame:
    """A row per run and score.

    `mapping`: a column that says what a variant is (`kv_heads`), or a score as TASK.METRIC (`held_out.loss`) → where
    they keep it: `config.KEY`, `summary.KEY` (a nested one by its path), or a field of the run (`name`). Raises
    MappingError for what is neither, for a key that no run has, and for a value that does not fit its column.
    """
    runs = list(runs)
    columns = {ours: theirs for ours, theirs in mapping.items() if ours in frame.IDENTITY}
    scores = {ours: theirs for ours, theirs in mapping.items() if ours not in frame.IDENTITY}
    for ours, theirs in mapping.items():
        _check(ours, theirs, runs)
    rows = []
    names = Counter(run.name for run in runs)
    for run in runs:
        identity = {"sweep": run.group or run.sweep or run.project, "variant": _label(run, names)}
        identity |= {ours: _fitting(ours, theirs, run) for ours, theirs in columns.items()}
        rows += [{**identity, **_score(ours, theirs, run)} for ours, theirs in scores.items()]
        if not scores:
            rows.append({**identity, "state": _state(run), "wandb_run": run.id})
    return frame.make(rows)


def _label(run: LoggedRun, names: Mapping[str, int]) -> str:
    """Its name. W&B allows one name for several runs: those have the run's id behind it."""
    if not run.name:
        return run.id
    return run.name if names[run.name] == 1 else f"{run.name} ({run.id})"


def _check(ours: str, theirs: str, runs: list[LoggedRun]) -> None:
    task, _, metric = ours.rpartition(".")
    if ours not in frame.IDENTITY and not (task and metric):
        raise MappingError(f"map.{ours}: {_known(ours, frame.IDENTITY, 'column')}, or map.TASK.METRIC for a score")
    place, _, key = theirs.partition(".")
    if theirs not in FIELDS and not (place in _PLACES and key):
        raise MappingError(f"map.{ours} = {theirs}: must be config.KEY, summary.KEY or one of {', '.join(FIELDS)}")
    if key and runs and all(_found(theirs, run) is None for run in runs):
        there = {name for run in runs for name in _paths(getattr(run, place))}
        raise MappingError(f"map.{ours} = {theirs}: {_known(key, sorted(there), f'{place} key')} in these runs")


def _known(given: str, there: Iterable[str], what: str) -> str:
    """`no column kvheads (did you mean kv_heads?)`; where nothing is close, what there is."""
    there = list(there)
    close = get_close_matches(given, there, 1)
    hint = f"did you mean {close[0]}?" if close else f"there: {', '.join(there[:20]) or 'none'}"
    return f"no {what} {given} ({hint})"


def _paths(values: Mapping[str, object], before: str = "") -> Iterable[str]:
    for key, value in values.items():
        yield f"{before}{key}"
        if isinstance(value, dict):
            yield from _paths(value, f"{before}{key}.")


def _found(theirs: str, run: LoggedRun) -> object:
    place, _, key = theirs.partition(".")
    return _at(getattr(run, place), key) if key else getattr(run, place)


def _at(values: Mapping[str, object], key: str) -> object:
    """A value by its own key, or by the path of a nested one."""
    if key in values:
        return values[key]
    found: object = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _fitting(ours: str, theirs: str, run: LoggedRun) -> Any:
    """Their value converted to the column's type; None where the run has none."""
    value = _found(theirs, run)
    if value is None:
        return None
    if ours == "kv_heads" and isinstance(value, list) and value and all(isinstance(heads, int) for heads in value):
        return frame.heads_text(value)
    fit: Callable[[Any], Any] = _whole if frame.COLUMNS[ours] == "Int64" else str
    try:
        return fit(value)
    except (TypeError, ValueError, OverflowError):
        raise MappingError(f"map.{ours} = {theirs}: {value!r} in run {run.id} is no whole number") from None


def _whole(value: Any) -> int:
    found = float(value)
    if isinstance(value, bool) or not math.isfinite(found) or found != int(found) or abs(found) > 2**53:
        raise ValueError
    return int(found)


def _score(ours: str, theirs: str, run: LoggedRun) -> Row:
    task, _, metric = ours.rpartition(".")
    value = number(_found(theirs, run))
    reason = None if value is not None else f"{theirs} is not a number"
    cell = {"kind": "evaluate", "task": task, "metric": metric, "value": value, "reason": reason}
    return {**cell, "state": _state(run), "wandb_run": run.id}


def _state(run: LoggedRun) -> str:
    """The state as W&B names it (running, failed, crashed, killed …), in capitals; a finished run is DONE."""
    return "DONE" if run.state == "finished" else run.state.upper()
