"""What W&B should show of a step or a variant, computed from the store alone. Imports no wandb.

A step has one run, whatever sweeps use it and however often it was requeued. A resumed attempt repeats the rows after
its checkpoint, and W&B can neither rewrite a row nor take one at an earlier step; so the rows of all attempts become
one sequence that only moves forward (sweeps/store/axis.py). A variant has one run per sweep, from its
steps' records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlkv.context import MetricRow
from mlkv.files import Json
from sweeps.steps.registry import axis_of, kind_of, whole_history
from sweeps.store.axis import Rows
from sweeps.store.schema import CONVERTED, PlanFile, Record, Spec, VariantRow, VariantSteps
from sweeps.store.states import StepState, where_stopped, worst
from sweeps.store.stepdir import StepDir
from sweeps.store.store import SavedSweep, Store
from sweeps.store.typed_json import as_json
from sweeps.tracking.checkpoints import Checkpoint, checkpoint_of
from sweeps.tracking.console import Console, step_console
from sweeps.tracking.target import DEFAULT_CONFIG, TrackingConfig

FINGERPRINT_KEY = "mlkv_fingerprint"
"""Key of the summary that holds a run's fingerprint: where it equals ours, the server has the whole run."""
MAX_TAG = 64
"""Characters of a tag in W&B."""
_STATE_OF_EXIT = {"done": StepState.DONE, "failed": StepState.FAILED, "interrupted": StepState.INTERRUPTED}
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
    state: StepState
    group: str | None = None
    tags: tuple[str, ...] = ()
    sweeps: tuple[str, ...] = ()
    """Of a step: sweeps that use it, as far as whoever writes the run knows; tags of the run, too."""
    console: Console = field(default_factory=Console)
    requirements: Path | None = None
    """A file of this name that lists the packages that were installed."""
    checkpoint: Checkpoint | None = None
    stored_fingerprint: str = ""
    """Of a run that was read from W&B's files: the fingerprint in its summary."""

    @property
    def finished(self) -> bool:
        return self.state not in (StepState.RUNNING, StepState.PENDING, StepState.LOST)

    @property
    def settled(self) -> bool:
        """Whether the fingerprint covers the whole run. False while a step may still log rows."""
        return self.finished or self.job_type == "variant"

    @property
    def fingerprint(self) -> str:
        """A hash of what is shown. Name and sweeps are left out: two sweeps that share a step name its run after their
        own labels, and must not upload it in turn."""
        if self.stored_fingerprint:
            return self.stored_fingerprint
        shown = [self.config, self.summary, self.state, self.tags, len(self.rows)]
        return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]


# Runs of steps


def step_run(
    store: Store, step: StepDir, sweep: SavedSweep | None = None, config: TrackingConfig = DEFAULT_CONFIG
) -> Run:
    """The run of a step, as the store has it now, with what `config` asks for. `sweep`: the sweep whose plan has the
    run's label."""
    planned = sweep.plan.steps.get(step.id) if sweep else None
    axis, spec, record = axis_of(step.kind), step.spec(), step.record()
    state, reason = step_state(step)
    shown = {key: value for key, value in as_json(record or {}).items() if key not in _NOT_SHOWN}
    return Run(
        id=step.id,
        name=f"{step.kind} {(planned.label if planned else '') or step.id}",
        job_type=step.kind,
        config={"step": step.id, **as_json(spec or {})},
        axes={axis.prefix: axis.name},
        rows=step.history(axis),
        summary={"state": state.value, "reason": reason, **scores(step.kind, spec, record), "record": shown or None},
        state=state,
        group=_base_of(store, step.id),
        sweeps=(sweep.name[:MAX_TAG],) if sweep and planned else (),
        console=step_console(step) if config.console else Console(),
        requirements=_requirements(store, step) if config.console else None,
        checkpoint=None if config.checkpoints == "none" else checkpoint_of(store, step, record, config.checkpoints),
    )


def _base_of(store: Store, id: str) -> str | None:
    """The base model that a step descends from, which is the same whatever sweeps use the step."""
    if id.startswith("base-"):
        return id
    spec = store.step(id).spec()
    found = (_base_of(store, parent) for parent in (spec.parents.values() if spec else ()))
    return next(filter(None, found), None)


def _requirements(store: Store, step: StepDir) -> Path | None:
    """The newest list of packages that an attempt noted."""
    for attempt in reversed(step.attempts()):
        environment = attempt.environment()
        if environment and environment.packages and (path := store.packages(environment.packages)).exists():
            return path
    return None


def step_state(step: StepDir) -> tuple[StepState, str]:
    """State and reason by the last attempt's exit, where it has one: its worker may still hold the claim, so that the
    store calls the step RUNNING."""
    state = step.state()
    attempts = step.attempts()
    ended = attempts[-1].exit() if attempts and state.name == StepState.RUNNING else None
    return (_STATE_OF_EXIT[ended.state], ended.reason) if ended else (state.name, state.reason)


def scores(kind: str, spec: Spec | None, record: Record | None) -> Json:
    """A record's metrics under names a dashboard can plot: eval/TASK/METRIC, measure/METRIC/batch_8; of a conversion
    before uptraining converted/TASK/METRIC."""
    if not record:
        return {}
    values: Json = {f"{kind}/wall_seconds": record.wall_seconds}
    for row in record.metrics:
        cell = (("batch", row.batch), ("context", row.context))
        path = [*_metric_path(kind, spec.task if spec else None, row), *(f"{k}_{v}" for k, v in cell if v is not None)]
        values["/".join(path)] = row.value
        if row.stderr is not None:
            values[f"{'/'.join(path)}_stderr"] = row.stderr
    return values


def _metric_path(kind: str, task: str | None, row: MetricRow) -> list[str]:
    if kind == "evaluate":
        return ["eval", *filter(None, [task, row.subtask]), row.metric]
    if kind == CONVERTED:
        return [CONVERTED, *filter(None, [task, row.subtask]), row.metric]
    return ["final" if kind_of(kind).trains else kind, row.metric]


# Runs of variants


@dataclass
class SweepRuns:
    """The runs of a sweep's steps and variants. Reads each step's record once."""

    store: Store
    sweep: SavedSweep
    _records: dict[str, Record | None] = field(default_factory=dict)

    def steps(self) -> list[StepDir]:
        """Steps that were started at least once."""
        return [step for id in self.sweep.plan.steps if (step := self.store.step(id)).attempts()]

    def variants(self) -> Iterator[Run]:
        for index, row in enumerate(self.sweep.variants):
            yield self._variant(index, row)

    def variant(self, label: str) -> Run:
        return next(self._variant(i, row) for i, row in enumerate(self.sweep.variants) if row.variant == label)

    def _variant(self, index: int, row: VariantRow) -> Run:
        ids = row.steps.ids
        records = {id: record for id in ids if (record := self._record(id))}
        state = worst(StepState.DONE if id in records else self._unfinished(id) for id in ids)
        values: Json = {"state": state.value, "steps_done": len(records), "steps_total": len(ids)}
        for kind, _, id in row.steps.each():
            if record := records.get(id):
                values |= scores(kind, self.store.step(id).spec(), record)
        return Run(
            id=variant_id(self.sweep.name, row.variant),
            name=row.variant,
            job_type="variant",
            config=_variant_config(self.sweep, index, row),
            axes={"train": "train/global_step", "memory": "memory/batch"},
            # Rows cannot be taken back, so they are uploaded once, when nothing can change them any more.
            rows=self._rows(row.steps) if state == StepState.DONE else [],
            summary={**values, **_quality(self.sweep.plan, row.steps, records), **self._note},
            state=state,
            group=self.sweep.name,
            tags=_tags(row),
        )

    def _unfinished(self, id: str) -> StepState:
        state = step_state(self.store.step(id))[0]
        return where_stopped(state) if id in (self.sweep.plan.stopped or ()) else state

    @property
    def _note(self) -> Json:
        return {"note": text} if (text := self.store.note(self.sweep.name)) else {}

    def _record(self, id: str) -> Record | None:
        if id not in self._records:
            self._records[id] = self.store.step(id).record()
        return self._records[id]

    def _rows(self, steps: VariantSteps) -> Rows:
        """Its uptraining curve, then its measured memory against batch size, so that one group draws both."""
        logged = whole_history(self.store, steps.uptrain) if steps.uptrain else []
        measured = self._record(steps.measure) if steps.measure else None
        return list(enumerate([*(values for _, values in logged), *_by_batch(measured.metrics if measured else [])]))


def variant_id(sweep: str, variant: str) -> str:
    return f"variant-{hashlib.sha256(json.dumps([sweep, variant]).encode()).hexdigest()[:16]}"


_OF_VALUES = ("value_source_layers", "value_heads")
"""Of a layout whose values have other sources or heads than its keys."""


def _variant_config(sweep: SavedSweep, index: int, row: VariantRow) -> Json:
    """The resolved configuration, and the cost columns to filter and plot by. The key `mlkv` holds the variant's part
    of the plan, so that the table of results can be made from W&B alone. It is JSON text, because W&B drops empty
    mappings and the order of keys."""
    costs = ("baseline", "pattern", "family", "kv_layers", "kv_heads", "budget", "kv_bytes_per_token", "parameters")
    variant = as_json(row)
    config = variant.pop("config")
    planned = {
        "sweep": sweep.name,
        "number": sweep.number,
        "index": index,
        "variant": variant,
        "plan": as_json({"accuracy": sweep.plan.accuracy, "axis": sweep.plan.axis}),
        "steps": as_json({id: sweep.plan.steps[id] for id in row.steps.ids}),
    }
    if stopped := {id: reason for id in row.steps.ids if (reason := (sweep.plan.stopped or {}).get(id))}:
        planned["stopped"] = stopped
    shown = {key: variant[key] for key in (*costs, "steps")}
    shown |= {key: variant["layout"][key] for key in _OF_VALUES if key in variant["layout"]}
    return {**config, **shown, "mlkv": json.dumps(planned)}


def _tags(row: VariantRow) -> tuple[str, ...]:
    tags = (row.model, row.pattern, f"budget-{row.budget}", row.baseline)
    return tuple(str(tag)[:MAX_TAG] for tag in dict.fromkeys(tags) if tag)


def _quality(plan: PlanFile, steps: VariantSteps, records: Mapping[str, Record]) -> Json:
    """Accuracy (the mean over the sweep's list of tasks) and the main axis; None where a score is missing."""
    values = [_score(steps, records, task, metric) for task, metric in plan.accuracy]
    present = [value for value in values if value is not None]
    accuracy = sum(present) / len(present) if present and len(present) == len(values) else None
    return {"accuracy": accuracy, "quality": _score(steps, records, *plan.axis) if plan.axis else accuracy}


def _score(steps: VariantSteps, records: Mapping[str, Record], task: str, metric: str) -> float | None:
    record = records.get(steps.evaluate.get(task, ""))
    values = [row.value for row in (record.metrics if record else []) if row.metric == metric and not row.subtask]
    return values[0] if values else None


def _by_batch(cells: Iterable[MetricRow]) -> list[Json]:
    """One row per (context, batch) that was measured."""
    rows: dict[tuple[int, int], Json] = {}
    for cell in cells:
        if cell.batch is not None:
            place = (cell.context or 0, cell.batch)
            row = rows.setdefault(place, {"memory/batch": place[1], "memory/context": place[0]})
            row[f"memory/{cell.metric}"] = cell.value
    return [rows[place] for place in sorted(rows)]
