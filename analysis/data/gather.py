"""Everything a sweep planned and everything that finished, as one long table (schema: analysis/data/frame.py)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from analysis.data import frame, replicates
from analysis.data.frame import Row
from analysis.data.machine import machine_of
from sweeps.steps.registry import axis_of
from sweeps.store.stepdir import State
from sweeps.store.store import SavedSweep, Store

Json = dict[str, Any]
_WAITS = "waits for "


def gather(store: Store, sweep_name: str, number: int | None = None) -> pd.DataFrame:
    """A row per planned cell of the sweep's latest plan (or plan `number`). Raises StoreError for an unknown sweep."""
    sweep = store.sweep(sweep_name, number)
    return of_sweep(sweep, Steps(store, sweep.plan))


def of_sweep(sweep: SavedSweep, steps: PlannedSteps) -> pd.DataFrame:
    """The table of a plan whose steps stand as `steps` says."""
    baselines = {name: [v for v in sweep.variants if v["baseline"] == name] for name in ("untouched", "mha")}
    repeated = replicates.groups(sweep.variants)
    rows: list[Row] = []
    for variant in sweep.variants:
        own = {name: _own_baseline(variant, candidates) for name, candidates in baselines.items()}
        own["replicate_of"] = repeated.get(variant["variant"])
        rows += _variant_rows(sweep, {**variant, **own}, steps)
    return frame.make(rows)


def _own_baseline(variant: Json, candidates: Sequence[Json]) -> str | None:
    """The baseline on the variant's corpus and base that shares most of its swept values."""
    fitting = [c for c in candidates if all(c["steps"][kind] == variant["steps"][kind] for kind in ("corpus", "base"))]
    shared = [len(variant["overrides"].items() & candidate["overrides"].items()) for candidate in fitting]
    return str(fitting[shared.index(max(shared))]["variant"]) if fitting else None


class PlannedSteps(ABC):
    """The plan's steps as they stand, each read once; from where is a subclass's business."""

    def __init__(self, plan: Json) -> None:
        self._planned: dict[str, Json] = plan["steps"]
        self._records: dict[str, Json | None] = {}
        self._standing: dict[str, tuple[str, str | None]] = {}

    @abstractmethod
    def _read_record(self, step_id: str) -> Json | None: ...

    @abstractmethod
    def _read_state(self, step_id: str) -> State: ...

    def record(self, step_id: str) -> Json | None:
        if step_id not in self._records:
            self._records[step_id] = self._read_record(step_id)
        return self._records[step_id]

    def standing(self, step_id: str) -> tuple[str, str | None]:
        """The step's state and, unless it is done, the reason in words."""
        if step_id not in self._standing:
            self._standing[step_id] = ("DONE", None) if self.record(step_id) else self._unfinished(step_id)
        return self._standing[step_id]

    def _unfinished(self, step_id: str) -> tuple[str, str | None]:
        state = self._read_state(step_id)
        if state.name == "PENDING" and (culprit := self._failed_ancestor(step_id)):
            return "BLOCKED", f"by {culprit}"
        if state.name == "PENDING" and not state.reason and (parent := self._unfinished_parent(step_id)):
            return "PENDING", f"{_WAITS}{parent}"
        progress: Json = state.progress.fields if state.progress else {}
        if state.name == "RUNNING" and "step" in progress:
            of = f" of {progress['steps']}" if progress.get("steps") else ""
            return "RUNNING", f"step {progress['step']}{of}"
        return state.name, state.reason or None

    def _parents(self, step_id: str) -> list[str]:
        return list(self._planned.get(step_id, {}).get("parents", {}).values())

    def _unfinished_parent(self, step_id: str) -> str | None:
        """Kind and state of the nearest ancestor that is not itself just waiting: `uptrain (running)`."""
        for parent in self._parents(step_id):
            state, reason = self.standing(parent)
            if reason and reason.startswith(_WAITS):
                return reason.removeprefix(_WAITS)
            if state != "DONE":
                return f"{self._planned[parent]['kind']} ({state.lower()})"
        return None

    def _failed_ancestor(self, step_id: str) -> str | None:
        for parent in self._parents(step_id):
            state, reason = self.standing(parent)
            if state == "FAILED":
                return f"{parent} ({reason})"
            if state == "BLOCKED" and reason:
                return reason.removeprefix("by ")
        return None


class Steps(PlannedSteps):
    """The plan's steps as they stand in the store."""

    def __init__(self, store: Store, plan: Json) -> None:
        super().__init__(plan)
        self._store = store

    def _read_record(self, step_id: str) -> Json | None:
        return self._store.step(step_id).record()

    def _read_state(self, step_id: str) -> State:
        return self._store.step(step_id).state()

    def history(self, step_id: str) -> list[tuple[int, Json]]:
        """What the step logged so far, along its axis."""
        step = self._store.step(step_id)
        return step.history(axis_of(step.kind))


def _variant_rows(sweep: SavedSweep, variant: Json, steps: PlannedSteps) -> Iterator[Row]:
    identity = {name: variant.get(name) for name in frame.IDENTITY}
    identity |= {"sweep": sweep.name, "kv_heads": frame.heads_text(variant["kv_heads"])}
    axis, accuracy = _wanted(sweep.plan)
    for cell in _cells(variant, steps, [*accuracy, *([axis] if axis else [])]):
        score = (cell.get("task"), cell.get("metric"))
        yield {**identity, **cell, "in_axis": score == axis, "in_accuracy": score in accuracy}


def _wanted(plan: Json) -> tuple[tuple[str, str] | None, list[tuple[str, str]]]:
    """The main quality axis (None: the accuracy itself) and the scores that the accuracy averages."""
    accuracy = [(task, metric) for task, metric in plan.get("accuracy") or ()]
    axis = plan.get("axis")
    return (axis[0], axis[1]) if axis and axis[0] != "accuracy" else None, accuracy


def _cells(variant: Json, steps: PlannedSteps, wanted: list[tuple[str, str]]) -> Iterator[Row]:
    planned = variant["steps"]
    for kind in ("corpus", "base", "convert", "uptrain"):
        if planned.get(kind):
            yield from _step_cells(steps, planned[kind], kind, None, [])
    evaluates = planned.get("evaluate") or {}
    for task, step_id in evaluates.items():
        examples = _examples(variant, task)
        for cell in _step_cells(steps, step_id, "evaluate", task, [metric for t, metric in wanted if t == task]):
            yield {**cell, "n_shot": examples.get(cell.get("subtask", "")) if isinstance(examples, dict) else examples}
    for task, metric in dict.fromkeys(wanted):
        if task not in evaluates:
            yield {
                "kind": "evaluate",
                "task": task,
                "metric": metric,
                "state": "UNPLANNED",
                "reason": "no step evaluates it",
            }
    if planned.get("measure"):
        yield from _step_cells(steps, planned["measure"], "measure", None, [])


def _examples(variant: Json, task: str) -> int | dict[str, int] | None:
    """How many examples the task was given, or each member of a group; None where there are no questions."""
    if "few_shot" in variant:
        return variant["few_shot"].get(task)
    return variant["config"].get("evaluate", {}).get("few_shot") or 0  # a plan of when all tasks got the same number


def _step_cells(steps: PlannedSteps, step_id: str, kind: str, task: str | None, wanted: list[str]) -> Iterator[Row]:
    state, reason = steps.standing(step_id)
    record = steps.record(step_id)
    common = {"kind": kind, "task": task, "state": state, "reason": reason, "step": step_id, "wandb_run": step_id}
    common |= {
        name: (record or {}).get(name) for name in ("code", "wall_seconds", "device_seconds", "peak_memory_bytes")
    }
    if kind == "measure" and record:
        common["machine"] = machine_of(record)
    measured = [_of_member(cell, task) for cell in record["metrics"]] if record else []
    for cell in measured:
        yield {**common, **cell, "reason": cell.get("reason") or _no_value(cell)}
    found = {cell["metric"] for cell in measured if cell["task"] == task}
    missing = dict.fromkeys(metric for metric in wanted if metric not in found)
    for metric in missing or ([None] if not measured else []):
        yield {**common, "metric": metric, "reason": _not_recorded(found) if record and metric else reason}


def _not_recorded(found: set[str]) -> str:
    return f"not in its record (there: {', '.join(sorted(found)) or 'only scores of its members'})"


def _of_member(cell: Json, group: str | None) -> Json:
    """A score of one member of a task group stands under the member's name: `mmlu/anatomy`."""
    return {**cell, "task": f"{group}/{cell['subtask']}" if cell.get("subtask") else group}


def _no_value(cell: Json) -> str | None:
    return None if cell.get("value") is not None else "its step recorded no value"
