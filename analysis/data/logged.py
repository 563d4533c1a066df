"""Runs as W&B gives them back, from its files or its API, and the table made of them: the same as the store's.

A sweep's variant runs carry the plan, its step runs the records (sweeps/tracking/runs.py). Runs that somebody else
logged: analysis/data/foreign.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.data.gather import PlannedSteps, of_sweep
from sweeps.store.schema import LoggedRow, PlanFile, VariantRow, from_json
from sweeps.store.states import StepState
from sweeps.store.stepdir import State
from sweeps.store.store import SavedSweep, StoreError
from sweeps.tracking.read.runs import LoggedRun, planned

Json = dict[str, Any]


def table(runs: Iterable[LoggedRun], sweep: str) -> pd.DataFrame:
    """A row per planned cell of the sweep, as the store's reader makes it. Raises StoreError for an unknown sweep."""
    known = {run.id: run for run in runs}
    saved = _sweep_of(known, sweep)
    return of_sweep(saved, LoggedSteps(known, saved.plan))


def _sweep_of(runs: Mapping[str, LoggedRun], name: str) -> SavedSweep:
    """The newest plan that the variant runs tell of; a variant's configuration is its run's."""
    told = [_with_config(plan, run) for run in runs.values() if (plan := planned(run))]
    ours = [each for each in told if each["sweep"] == name]
    if not ours:
        there = ", ".join(sorted({each["sweep"] for each in told})) or "none"
        raise StoreError(f"sweep {name}: W&B has no variant runs of it (sweeps there: {there})")
    number = max(each["number"] for each in ours)
    newest = sorted((each for each in ours if each["number"] == number), key=lambda each: each["index"])
    steps = {id: step for each in newest for id, step in each["steps"].items()}
    newest_plan = from_json(PlanFile, {**newest[0]["plan"], "name": name, "number": number, "steps": steps})
    return SavedSweep(name, number, Path(), newest_plan, [from_json(VariantRow, each["variant"]) for each in newest])


def _with_config(plan: Json, run: LoggedRun) -> Json:
    return {**plan, "variant": {"config": run.config, **plan["variant"]}}


class LoggedSteps(PlannedSteps):
    """The steps of a plan as their runs tell; one without a run was never begun."""

    def __init__(self, runs: Mapping[str, LoggedRun], plan: Json) -> None:
        super().__init__(plan)
        self._runs = runs

    def _read_record(self, step_id: str) -> Json | None:
        run = self._runs.get(step_id)
        return run.summary.get("record") if run and run.summary.get("state") == "DONE" else None

    def _read_state(self, step_id: str) -> State:
        run = self._runs.get(step_id)
        if run is None:
            return State(StepState.PENDING)
        told = run.summary.get("state", "RUNNING")
        name = next((known for known in StepState if known == told), StepState.PENDING)
        progress = _progress(run) if name == "RUNNING" else None
        return State(name, run.summary.get("reason") or "", progress=progress)


def _progress(run: LoggedRun) -> LoggedRow | None:
    """The newest row under the names that the step logged it by."""
    row = {key.partition("/")[2]: value for key, value in run.rows[-1].items()} if run.rows else {}
    step = row.get("global_step", row.get("row"))
    return from_json(LoggedRow, {"step": step, "steps": row.get("steps")}) if row else None
