"""The table of a sweep of ours from its runs in W&B, read from W&B's files or its API: the same as the store's.

A sweep's variant runs hold the plan, its step runs the records (sweeps/tracking/runs.py). What W&B gives is converted
to the store's types here, once. Runs that somebody else logged: analysis/data/foreign.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import pandas as pd

from analysis.data.frame import Row
from analysis.data.gather import PlannedSteps, of_sweep
from sweeps.store.schema import LoggedRow, PlanFile, Record, VariantRow
from sweeps.store.states import StepState
from sweeps.store.stepdir import State
from sweeps.store.store import SavedSweep, StoreError
from sweeps.store.typed_json import from_json
from sweeps.tracking.read.runs import LoggedRun, planned

T = TypeVar("T")


def table(runs: Iterable[LoggedRun], sweep: str) -> pd.DataFrame:
    """A row per planned cell of the sweep, as the store's reader makes it. Raises StoreError for an unknown sweep, and
    for a run that does not hold what ours hold."""
    by_id = {run.id: run for run in runs}
    saved = _sweep_of(by_id, sweep)
    return of_sweep(saved, LoggedSteps(by_id, saved.plan))


def _sweep_of(runs: Mapping[str, LoggedRun], name: str) -> SavedSweep:
    """The newest plan that the variant runs hold. The configuration of a variant is that of its run."""
    plans = [(run, plan) for run in runs.values() if (plan := planned(run))]
    ours = [(run, plan) for run, plan in plans if plan["sweep"] == name]
    if not ours:
        there = ", ".join(sorted({plan["sweep"] for _, plan in plans})) or "none"
        raise StoreError(f"sweep {name}: W&B has no variant runs of it (sweeps there: {there})")
    number = max(plan["number"] for _, plan in ours)
    newest = sorted((pair for pair in ours if pair[1]["number"] == number), key=lambda pair: pair[1]["index"])
    steps = {id: step for _, plan in newest for id, step in plan["steps"].items()}
    stopped = {id: reason for _, plan in newest for id, reason in plan.get("stopped", {}).items()} or None
    local: Row = {"created": "", "cluster": {}, "tracking": None}  # not in W&B, and no table needs it
    first, plan = newest[0]
    whole = _typed(
        PlanFile, first, {**local, **plan["plan"], "name": name, "number": number, "steps": steps, "stopped": stopped}
    )
    variants = [_typed(VariantRow, run, {"config": run.config, **plan["variant"]}) for run, plan in newest]
    return SavedSweep(name, number, Path(), whole, variants)


def _typed(kind: type[T], run: LoggedRun, content: Row) -> T:
    try:
        return from_json(kind, content)
    except ValueError as error:
        raise StoreError(f"W&B run {run.id}: {error}") from None


class LoggedSteps(PlannedSteps):
    """The steps of a plan by their runs in W&B; a step without a run was never begun."""

    def __init__(self, runs: Mapping[str, LoggedRun], plan: PlanFile) -> None:
        super().__init__(plan)
        self._runs = runs

    def _read_record(self, step_id: str) -> Record | None:
        run = self._runs.get(step_id)
        if run is None or run.summary.get("state") != StepState.DONE:
            return None
        # Not uploaded: lists of the store's files, and what the run has elsewhere. W&B drops empty mappings.
        local: Row = {"id": step_id, "kind": run.job_type, "work": None, "inputs": {}, "outputs": {}}
        empty: Row = {"versions": {}, "facts": {}, "metrics": []}
        return _typed(Record, run, {**local, **empty, **(run.summary.get("record") or {})})

    def _read_state(self, step_id: str) -> State:
        run = self._runs.get(step_id)
        if run is None:
            return State(StepState.PENDING)
        logged = run.summary.get("state", StepState.RUNNING)
        name = next((state for state in StepState if state == logged), StepState.PENDING)
        progress = _progress(run) if name == StepState.RUNNING else None
        return State(name, run.summary.get("reason") or "", progress=progress)


def _progress(run: LoggedRun) -> LoggedRow | None:
    """The newest row under the names that the step logged it by."""
    row = {key.partition("/")[2]: value for key, value in run.rows[-1].items()} if run.rows else {}
    step = row.get("global_step", row.get("row"))
    return _typed(LoggedRow, run, {"step": step, "steps": row.get("steps")}) if row else None
