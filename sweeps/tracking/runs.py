"""What W&B should show of a step or a variant, computed from the store alone. Imports no wandb.

A step has one run, whatever sweeps use it and however often it was requeued. A resumed attempt repeats the rows after
its checkpoint, and W&B can neither rewrite a row nor take one at an earlier step; so the rows of all attempts become
one sequence that only moves forward (sweeps/store/axis.py). A variant has one run per sweep, from its
steps' records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlkv.files import Json
from sweeps.steps.registry import axis_of, kind_of
from sweeps.store.axis import Rows
from sweeps.store.stepdir import StepDir
from sweeps.store.store import SavedSweep, Store

FINGERPRINT_KEY = "mlkv_fingerprint"
"""Key of the summary that holds a run's fingerprint: where it equals ours, the server has the whole run."""
_STATE_OF_EXIT = {"done": "DONE", "failed": "FAILED", "interrupted": "INTERRUPTED"}
_NOT_SHOWN = ("id", "kind", "work", "inputs", "outputs", "seal")
"""Parts of a record that are not uploaded: the run has them elsewhere, or they are lists of files of the store."""


@dataclass(frozen=True)
class Run:
    """One W&B run. `rows` are (position, values); positions grow and are the run's W&B steps."""

    id: str
    name: str
    job_type: str
    config: Json
    axes: dict[str, str]
    """Prefix of metric names → the metric on their x axis."""
    rows: Rows
    summary: Json
    state: str
    group: str | None = None
    tags: tuple[str, ...] = ()
    stored_fingerprint: str = ""
    """Of a run that was read from W&B's files: the fingerprint in its summary."""

    @property
    def finished(self) -> bool:
        return self.state not in ("RUNNING", "PENDING", "LOST")

    @property
    def settled(self) -> bool:
        """Whether the fingerprint covers the whole run. False while a step may still log rows."""
        return self.finished or self.job_type == "variant"

    @property
    def fingerprint(self) -> str:
        """A hash of what is shown. The name is left out: two sweeps that share a step name its run after their own
        labels, and must not upload it in turn."""
        if self.stored_fingerprint:
            return self.stored_fingerprint
        shown = [self.config, self.summary, self.state, self.tags, len(self.rows)]
        return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]


# Runs of steps


def step_run(step: StepDir, sweep: SavedSweep | None = None) -> Run:
    """The run of a step, as the store has it now. `sweep`: whose plan gives the run its label."""
    planned = (sweep.plan["steps"].get(step.id) if sweep else None) or {}
    axis, spec = axis_of(step.kind), step.spec() or Json()
    state, reason = step_state(step)
    record = step.record() or Json()
    shown = {key: value for key, value in record.items() if key not in _NOT_SHOWN}
    return Run(
        id=step.id,
        name=f"{step.kind} {planned.get('label') or step.id}",
        job_type=step.kind,
        config={"step": step.id, **spec},
        axes={axis.prefix: axis.name},
        rows=step.history(axis),
        summary={"state": state, "reason": reason, **scores(step.kind, spec, record), "record": shown or None},
        state=state,
    )


def step_state(step: StepDir) -> tuple[str, str]:
    """State and reason by the last attempt's exit, where it has one: its worker may still hold the claim, so that the
    store calls the step RUNNING."""
    state = step.state()
    attempts = step.attempts()
    ended = attempts[-1].exit() if attempts and state.name == "RUNNING" else None
    return (_STATE_OF_EXIT[ended["state"]], ended["reason"]) if ended else (state.name, state.reason)


def scores(kind: str, spec: Json, record: Json) -> Json:
    """A record's metrics under names a dashboard can plot: eval/TASK/METRIC, measure/METRIC/batch_8."""
    if not record:
        return {}
    task = (spec.get("slice") or {}).get("task")
    values: Json = {f"{kind}/wall_seconds": record.get("wall_seconds")}
    for cell in record["metrics"]:
        dimensions = [f"{name}_{cell[name]}" for name in ("batch", "context") if cell.get(name) is not None]
        name = "/".join([*_metric_path(kind, task, cell), *dimensions])
        values[name] = cell.get("value")
        if cell.get("stderr") is not None:
            values[f"{name}_stderr"] = cell["stderr"]
    return values


def _metric_path(kind: str, task: str | None, cell: Json) -> list[str]:
    if kind == "evaluate":
        return ["eval", *filter(None, [task, cell.get("subtask")]), cell["metric"]]
    return ["final" if kind_of(kind).trains else kind, cell["metric"]]


# Runs of variants


@dataclass
class SweepRuns:
    """The runs of a sweep's steps and variants. Reads each step's record once."""

    store: Store
    sweep: SavedSweep
    _records: dict[str, Json | None] = field(default_factory=dict)

    def steps(self) -> list[StepDir]:
        """Steps that were started at least once."""
        return [step for id in self.sweep.plan["steps"] if (step := self.store.step(id)).attempts()]

    def variants(self) -> Iterator[Run]:
        for index, row in enumerate(self.sweep.variants):
            yield self._variant(index, row)

    def variant(self, label: str) -> Run:
        return next(self._variant(i, row) for i, row in enumerate(self.sweep.variants) if row["variant"] == label)

    def _variant(self, index: int, row: Json) -> Run:
        ids = _step_ids(row)
        records = {id: record for id in ids if (record := self._record(id))}
        states = {id: "DONE" if id in records else step_state(self.store.step(id))[0] for id in ids}
        state = _worst_state(list(states.values()))
        values: Json = {"state": state, "steps_done": len(records), "steps_total": len(ids)}
        for id, record in records.items():
            values |= scores(self.store.step(id).kind, self.store.step(id).spec() or Json(), record)
        return Run(
            id=variant_id(self.sweep.name, row["variant"]),
            name=row["variant"],
            job_type="variant",
            config=_variant_config(self.sweep, index, row),
            axes={"train": "train/global_step", "memory": "memory/batch"},
            # Rows cannot be taken back, so they are uploaded once, when nothing can change them any more.
            rows=self._rows(row) if state == "DONE" else [],
            summary={**values, **_quality(self.sweep.plan, row, records)},
            state=state,
            group=self.sweep.name,
            tags=_tags(row),
        )

    def _record(self, id: str) -> Json | None:
        if id not in self._records:
            self._records[id] = self.store.step(id).record()
        return self._records[id]

    def _rows(self, row: Json) -> Rows:
        """Its uptraining curve, then its measured memory against batch size, so that one group draws both."""
        uptrain, measure = row["steps"].get("uptrain"), row["steps"].get("measure")
        curve = [values for _, values in self.store.step(uptrain).history(axis_of("uptrain"))] if uptrain else []
        cells = ((self._record(measure) or {}) if measure else {}).get("metrics", [])
        return list(enumerate([*curve, *_by_batch(cells)]))


def variant_id(sweep: str, variant: str) -> str:
    return f"variant-{hashlib.sha256(json.dumps([sweep, variant]).encode()).hexdigest()[:16]}"


def _step_ids(row: Json) -> list[str]:
    """Ids of the variant's steps, corpus first, measure last; a kind that is not planned has none."""
    before_evaluate = [row["steps"].get(kind) for kind in ("corpus", "base", "convert", "uptrain")]
    return [id for id in [*before_evaluate, *row["steps"]["evaluate"].values(), row["steps"].get("measure")] if id]


def _worst_state(states: list[str]) -> str:
    order = ("FAILED", "LOST", "CANCELLED", "INTERRUPTED", "RUNNING", "PENDING", "DONE")
    return min(states, key=order.index)


def _variant_config(sweep: SavedSweep, index: int, row: Json) -> Json:
    """The resolved configuration, and the cost columns to filter and plot by. Under `mlkv` stands the variant's part of
    the plan, so that the table of results can be made from W&B alone. It is JSON text, because W&B drops empty mappings
    and the order of keys."""
    costs = ("baseline", "pattern", "family", "kv_layers", "kv_heads", "budget", "kv_bytes_per_token", "parameters")
    plan = {"accuracy": sweep.plan.get("accuracy"), "axis": sweep.plan.get("axis")}
    steps = {id: sweep.plan["steps"][id] for id in _step_ids(row)}
    variant = {key: value for key, value in row.items() if key != "config"}
    place = {"sweep": sweep.name, "number": sweep.number, "index": index}
    planned = json.dumps({**place, "variant": variant, "plan": plan, "steps": steps})
    return {**row["config"], **{key: row[key] for key in costs}, "steps": row["steps"], "mlkv": planned}


def _tags(row: Json) -> tuple[str, ...]:
    model = (row["config"].get("model") or {}).get("name")
    tags = (model, row["pattern"], f"budget-{row['budget']}", row["baseline"])
    return tuple(str(tag)[:64] for tag in dict.fromkeys(tags) if tag)


def _quality(plan: Json, row: Json, records: dict[str, Json]) -> Json:
    """Accuracy (the mean over the sweep's list of tasks) and the main axis; None where a score is missing."""
    listed = [tuple(pair) for pair in plan.get("accuracy") or []]
    values = [_score(row, records, task, metric) for task, metric in listed]
    present = [value for value in values if value is not None]
    accuracy = sum(present) / len(present) if listed and len(present) == len(listed) else None
    axis = plan.get("axis")
    return {"accuracy": accuracy, "quality": _score(row, records, *axis) if axis else accuracy}


def _score(row: Json, records: dict[str, Json], task: str, metric: str) -> float | None:
    record = records.get(row["steps"]["evaluate"].get(task), {})
    values = [c["value"] for c in record.get("metrics", []) if c["metric"] == metric and not c.get("subtask")]
    return values[0] if values else None


def _by_batch(cells: list[Json]) -> list[Json]:
    """One row per (context, batch) that was measured."""
    rows: dict[tuple[int, int], Json] = {}
    for cell in cells:
        if cell.get("batch") is not None:
            place = (cell.get("context") or 0, cell["batch"])
            row = rows.setdefault(place, {"memory/batch": place[1], "memory/context": place[0]})
            row[f"memory/{cell['metric']}"] = cell.get("value")
    return [rows[place] for place in sorted(rows)]
