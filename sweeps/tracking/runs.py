"""What W&B should show of a step or a variant, computed from the store alone. Imports no wandb.

A step has one run, whatever sweeps use it and however often it was requeued: rows of all its attempts in one sequence
that only moves forward on its own axis. A variant has one run per sweep, made of its steps' records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from sweeps.store.axis import TRAINING, Axis, Json, Rows
from sweeps.store.stepdir import StepDir
from sweeps.store.store import SavedSweep, Store

MARK = "mlkv_fingerprint"
"""Summary key that says what a run was made from; the same mark means the server has all of it."""
_ENDED = {"done": "DONE", "failed": "FAILED", "interrupted": "INTERRUPTED"}
_LEFT_OUT = ("id", "kind", "work", "inputs", "outputs", "seal")
"""Of a record: what the run itself says, and lists of files, which stay in the store."""


@dataclass(frozen=True)
class Run:
    """One run. `rows` are (position, values) with growing positions: the run's W&B steps."""

    id: str
    name: str
    job_type: str
    config: Json
    axes: dict[str, str]
    """Prefix of metrics → the metric they are drawn against."""
    rows: Rows
    summary: Json
    state: str
    group: str | None = None
    tags: tuple[str, ...] = ()
    mark: str = ""
    """The fingerprint, of a run that was read back rather than made."""

    @property
    def finished(self) -> bool:
        return self.state not in ("RUNNING", "PENDING", "LOST")

    @property
    def settled(self) -> bool:
        """Whether its mark stands for all of it; not while a step's rows may still come."""
        return self.finished or self.job_type == "variant"

    @property
    def fingerprint(self) -> str:
        """Of what is shown, but for the name: a step that two sweeps share goes by the label of either."""
        if self.mark:
            return self.mark
        shown = [self.config, self.summary, self.state, self.tags, len(self.rows)]
        return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]


# Runs of steps


def step_run(step: StepDir, sweep: SavedSweep | None = None) -> Run:
    """A step as it stands. `sweep` lends it the label of its plan."""
    told = (sweep.plan["steps"].get(step.id) if sweep else None) or {}
    axis, spec = Axis(step.kind), step.spec() or {}
    state, reason = standing(step)
    record = step.record() or {}
    kept = {key: value for key, value in record.items() if key not in _LEFT_OUT}
    return Run(
        id=step.id,
        name=f"{step.kind} {told.get('label') or step.id}",
        job_type=step.kind,
        config={"step": step.id, **spec},
        axes={axis.prefix: axis.name},
        rows=step.history(),
        summary={"state": state, "reason": reason, **scores(step.kind, spec, record), "record": kept or None},
        state=state,
    )


def standing(step: StepDir) -> tuple[str, str]:
    """State and reason, by what the last attempt said rather than by who still holds the claim."""
    state = step.state()
    attempts = step.attempts()
    ended = attempts[-1].exit() if attempts and state.name == "RUNNING" else None
    return (_ENDED[ended["state"]], ended["reason"]) if ended else (state.name, state.reason)


def scores(kind: str, spec: Json, record: Json) -> Json:
    """A record's metrics under names a dashboard can plot: eval/TASK/METRIC, measure/METRIC/batch_8."""
    if not record:
        return {}
    task = (spec.get("slice") or {}).get("task")
    found: Json = {f"{kind}/wall_seconds": record.get("wall_seconds")}
    for cell in record["metrics"]:
        name = "/".join([*_place(kind, task, cell), *_dimensions(cell)])
        found[name] = cell.get("value")
        if cell.get("stderr") is not None:
            found[f"{name}_stderr"] = cell["stderr"]
    return found


def _place(kind: str, task: str | None, cell: Json) -> list[str]:
    if kind == "evaluate":
        return ["eval", *filter(None, [task, cell.get("subtask")]), cell["metric"]]
    return ["final" if kind in TRAINING else kind, cell["metric"]]


def _dimensions(cell: Json) -> list[str]:
    return [f"{name}_{cell[name]}" for name in ("batch", "context") if cell.get(name) is not None]


# Runs of variants


@dataclass
class SweepRuns:
    """The runs of a sweep: its steps' and its variants', each step read once."""

    store: Store
    sweep: SavedSweep
    _records: dict[str, Json | None] = field(default_factory=dict)

    def steps(self) -> list[StepDir]:
        """Steps that have something to show."""
        return [step for id in self.sweep.plan["steps"] if (step := self.store.step(id)).attempts()]

    def variants(self) -> Iterator[Run]:
        for index, row in enumerate(self.sweep.variants):
            yield self._variant(index, row)

    def variant(self, label: str) -> Run:
        return next(self._variant(i, row) for i, row in enumerate(self.sweep.variants) if row["variant"] == label)

    def _variant(self, index: int, row: Json) -> Run:
        ids = _step_ids(row)
        records = {id: record for id in ids if (record := self._record(id))}
        states = {id: "DONE" if id in records else standing(self.store.step(id))[0] for id in ids}
        state = _overall(list(states.values()))
        values: Json = {"state": state, "steps_done": len(records), "steps_total": len(ids)}
        for id, record in records.items():
            values |= scores(self.store.step(id).kind, self.store.step(id).spec() or {}, record)
        return Run(
            id=variant_id(self.sweep.name, row["variant"]),
            name=row["variant"],
            job_type="variant",
            config=_variant_config(self.sweep, index, row),
            axes={"train": "train/global_step", "memory": "memory/batch"},
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
        curve = [values for _, values in self.store.step(uptrain).history()] if uptrain else []
        cells = ((self._record(measure) or {}) if measure else {}).get("metrics", [])
        return list(enumerate([*curve, *_by_batch(cells)]))


def variant_id(sweep: str, variant: str) -> str:
    return f"variant-{hashlib.sha256(json.dumps([sweep, variant]).encode()).hexdigest()[:16]}"


def _step_ids(row: Json) -> list[str]:
    """Corpus to measure; a step without an id is not planned."""
    named = [row["steps"].get(kind) for kind in ("corpus", "base", "convert", "uptrain")]
    return [id for id in [*named, *row["steps"]["evaluate"].values(), row["steps"].get("measure")] if id]


def _overall(states: list[str]) -> str:
    """The worst of its steps."""
    order = ("FAILED", "LOST", "CANCELLED", "INTERRUPTED", "RUNNING", "PENDING", "DONE")
    return min(states, key=order.index)


def _variant_config(sweep: SavedSweep, index: int, row: Json) -> Json:
    """The resolved configuration and the cost columns to filter and plot by; under `mlkv` the plan itself, from which
    a reader of W&B alone makes the same table as the store's. It is text: W&B drops empty mappings and the order of
    keys."""
    costs = ("baseline", "pattern", "family", "kv_layers", "kv_heads", "budget", "kv_bytes_per_token", "parameters")
    plan = {"accuracy": sweep.plan.get("accuracy"), "axis": sweep.plan.get("axis")}
    steps = {id: sweep.plan["steps"][id] for id in _step_ids(row)}
    kept = {key: value for key, value in row.items() if key != "config"}
    place = {"sweep": sweep.name, "number": sweep.number, "index": index}
    told = json.dumps({**place, "variant": kept, "plan": plan, "steps": steps})
    return {**row["config"], **{key: row[key] for key in costs}, "steps": row["steps"], "mlkv": told}


def _tags(row: Json) -> tuple[str, ...]:
    model = (row["config"].get("model") or {}).get("name")
    tags = (model, row["pattern"], f"budget-{row['budget']}", row["baseline"])
    return tuple(str(tag)[:64] for tag in dict.fromkeys(tags) if tag)


def _quality(plan: Json, row: Json, records: dict[str, Json]) -> Json:
    """Accuracy (the mean over the sweep's list) and the main axis, where every part is there."""
    wanted = [tuple(pair) for pair in plan.get("accuracy") or []]
    parts = [_score(row, records, task, metric) for task, metric in wanted]
    whole = [part for part in parts if part is not None]
    accuracy = sum(whole) / len(whole) if wanted and len(whole) == len(wanted) else None
    axis = plan.get("axis")
    return {"accuracy": accuracy, "quality": _score(row, records, *axis) if axis else accuracy}


def _score(row: Json, records: dict[str, Json], task: str, metric: str) -> float | None:
    record = records.get(row["steps"]["evaluate"].get(task), {})
    found = [c["value"] for c in record.get("metrics", []) if c["metric"] == metric and not c.get("subtask")]
    return found[0] if found else None


def _by_batch(cells: list[Json]) -> list[Json]:
    """One row per (context, batch) that was measured."""
    rows: dict[tuple[int, int], Json] = {}
    for cell in cells:
        if cell.get("batch") is not None:
            place = (cell.get("context") or 0, cell["batch"])
            row = rows.setdefault(place, {"memory/batch": place[1], "memory/context": place[0]})
            row[f"memory/{cell['metric']}"] = cell.get("value")
    return [rows[place] for place in sorted(rows)]
