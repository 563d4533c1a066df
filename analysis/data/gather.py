"""Everything a sweep planned and everything that finished, as one long table (schema: analysis/data/frame.py)."""

from __future__ import annotations

import math
import shlex
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.data import frame, replicates
from analysis.data.frame import Row
from analysis.data.machine import machine_of
from analysis.data.means import mean
from analysis.data.numbers import on_axis
from analysis.data.states import UNPLANNED
from mlkv.cache.formats import AS_COMPUTED
from mlkv.context import MetricRow
from mlkv.layout import KVLayout, Latent
from mlkv.training_recipes import TrainRecipe
from sweeps.steps.registry import kind_of, outdated_note, whole_history
from sweeps.store.axis import Rows
from sweeps.store.errors import DamagedFileError
from sweeps.store.others import same_result
from sweeps.store.schema import CONVERTED, Origin, PlanFile, Record, VariantRow
from sweeps.store.states import StepState, where_stopped
from sweeps.store.stepdir import State
from sweeps.store.store import SavedSweep, Store

_WAITS = "waits for "
Score = tuple[str, str]
"""(task, metric)."""


def gather(store: Store, sweep_name: str, number: int | None = None) -> pd.DataFrame:
    """A row per planned cell of the sweep's latest plan (or plan `number`). Raises StoreError for an unknown sweep."""
    sweep = store.sweep(sweep_name, number)
    return of_sweep(sweep, Steps(store, sweep.plan))


def of_sweep(sweep: SavedSweep, steps: PlannedSteps) -> pd.DataFrame:
    """The table of a plan, with the states and records of `steps`."""
    untouched, mha = ([v for v in sweep.variants if v.baseline == role] for role in ("untouched", "mha"))
    layouts = replicates.groups(sweep.variants)
    scores = _PlannedScores.of_plan(sweep.plan)
    rows: list[Row] = []
    for variant in sweep.variants:
        identity = {
            "sweep": sweep.name,
            "variant": variant.variant,
            "replicate_of": layouts.get(variant.variant),
            "baseline": variant.baseline,
            "untouched": _own_baseline(variant, untouched),
            "mha": _own_baseline(variant, mha),
            "family": variant.family,
            "pattern": variant.pattern,
            "kv_layers": variant.kv_layers,
            "kv_heads": _of_both(variant.layout, lambda part: frame.heads_text(part.kv_heads)),
            "budget": variant.budget if isinstance(variant.budget, int) else None,
            "kv_bytes_per_token": variant.kv_bytes_per_token,
            "cache": variant.cache or AS_COMPUTED,
            "parameters": variant.parameters,
            "model": variant.model,
            "sources": _of_both(variant.layout, lambda part: " ".join(map(str, part.kv_source_layers))),
            "latent": _latent(variant.layout.latent),
            "approximate": _approximate(variant, steps),
            "passes": variant.layout.cost_of_passes,
            "lr": _trained_with(variant, "lr", TrainRecipe.lr),
            "seed": _trained_with(variant, "seed", TrainRecipe.seed),
            "overrides": shlex.join(f"{key}={value}" for key, value in variant.overrides.items()) or None,
        }
        for cell in _cells(variant, steps, scores.all):
            # The plan's scores are those after uptraining, also where conversions have the same ones.
            score = (cell.get("task"), cell.get("metric")) if cell["kind"] != CONVERTED else None
            rows.append({**identity, **cell, "in_axis": score == scores.axis, "in_accuracy": score in scores.accuracy})
    return frame.make(rows)


def _latent(latent: Latent | None) -> str | None:
    """`48 48 rotary 8`: each owner's rank, and the rotated dimensions of a head; `shared` where it has these once."""
    if latent is None:
        return None
    return f"{' '.join(map(str, latent.ranks))} rotary {latent.rotary_dims}{' shared' if latent.shared else ''}"


def _approximate(variant: VariantRow, steps: PlannedSteps) -> str | None:
    """What the conversion's record says of it; None before it is done, and of a store before it was recorded."""
    record = steps.record(variant.steps.convert) if variant.steps.convert else None
    reason = record.facts.get("approximate") if record else None
    return reason if isinstance(reason, str) else None


def _of_both(layout: KVLayout, text: Callable[[KVLayout], str]) -> str:
    """The text of a layout; of its keys and of its values where the two differ."""
    return " + ".join(dict.fromkeys((text(layout.keys), text(layout.values))))


def _trained_with(variant: VariantRow, key: str, otherwise: float) -> float | None:
    """A number of the uptraining's configuration, or what the recipe has without it; None without uptraining."""
    if not variant.steps.uptrain:
        return None
    value = (variant.config.get("uptrain") or {}).get(key, otherwise)
    return value if isinstance(value, int | float) else None


def _own_baseline(variant: VariantRow, candidates: Sequence[VariantRow]) -> str | None:
    """The baseline on the variant's corpus and base that shares most of its swept values."""
    steps = variant.steps
    fitting = [c for c in candidates if (c.steps.corpus, c.steps.base) == (steps.corpus, steps.base)]
    shared = [len(variant.overrides.items() & candidate.overrides.items()) for candidate in fitting]
    return fitting[shared.index(max(shared))].variant if fitting else None


@dataclass(frozen=True)
class _PlannedScores:
    axis: Score | None
    """The main quality axis; None where it is the accuracy itself."""
    accuracy: list[Score]
    """The scores that the accuracy averages."""

    @classmethod
    def of_plan(cls, plan: PlanFile) -> _PlannedScores:
        return cls(plan.axis if plan.axis and plan.axis[0] != "accuracy" else None, plan.accuracy)

    @property
    def all(self) -> list[Score]:
        return list(dict.fromkeys([*self.accuracy, *([self.axis] if self.axis else [])]))


class PlannedSteps(ABC):
    """The plan's steps with their records and states, each read once. A subclass says where they are read."""

    def __init__(self, plan: PlanFile) -> None:
        self._planned, self._stopped = plan.steps, plan.stopped or {}
        self._records: dict[str, Record | None] = {}
        self._states: dict[str, tuple[str, str | None]] = {}

    @abstractmethod
    def _read_record(self, step_id: str) -> Record | None: ...

    @abstractmethod
    def _read_state(self, step_id: str) -> State: ...

    def record(self, step_id: str) -> Record | None:
        if step_id not in self._records:
            self._records[step_id] = self._read_record(step_id)
        return self._records[step_id]

    def origin(self, step_id: str) -> Origin | None:
        """Whose result a finished step has that was unpacked; None for one of our own."""
        return None

    def state_of(self, step_id: str) -> tuple[str, str | None]:
        """The step's state and, unless it is done, the reason in words."""
        if step_id not in self._states:
            done = self.record(step_id) is not None
            self._states[step_id] = (StepState.DONE.value, None) if done else self._unfinished(step_id)
        return self._states[step_id]

    def _unfinished(self, step_id: str) -> tuple[str, str | None]:
        state = self._read_state(step_id)
        if step_id in self._stopped and where_stopped(state.name) is StepState.STOPPED:
            return StepState.STOPPED.value, self._stopped[step_id]
        if state.name == StepState.PENDING and (ancestor := self._failed_ancestor(step_id)):
            return StepState.BLOCKED.value, f"by {ancestor}"
        if state.name == StepState.PENDING and not state.reason and (parent := self._unfinished_parent(step_id)):
            return StepState.PENDING.value, f"{_WAITS}{parent}"
        if state.name == StepState.RUNNING and state.progress and state.progress.step is not None:
            of = f" of {state.progress.steps}" if state.progress.steps else ""
            return StepState.RUNNING.value, f"step {state.progress.step}{of}"
        return state.name.value, state.reason or None

    def _parents(self, step_id: str) -> list[str]:
        return list(self._planned[step_id].parents.values()) if step_id in self._planned else []

    def _unfinished_parent(self, step_id: str) -> str | None:
        """Kind and state of the nearest ancestor that is not itself just waiting: `uptrain (running)`."""
        for parent in self._parents(step_id):
            state, reason = self.state_of(parent)
            if reason and reason.startswith(_WAITS):
                return reason.removeprefix(_WAITS)
            if state != StepState.DONE:
                return f"{self._planned[parent].kind} ({state.lower()})"
        return None

    def _failed_ancestor(self, step_id: str) -> str | None:
        for parent in self._parents(step_id):
            state, reason = self.state_of(parent)
            if state == StepState.FAILED:
                return f"{parent} ({reason})"
            if state == StepState.BLOCKED and reason:
                return reason.removeprefix("by ")
        return None


class Steps(PlannedSteps):
    """The plan's steps in the store."""

    def __init__(self, store: Store, plan: PlanFile) -> None:
        super().__init__(plan)
        self._store = store

    def _read_record(self, step_id: str) -> Record | None:
        return self._store.step(step_id).record()

    def _read_state(self, step_id: str) -> State:
        return self._store.step(step_id).state()

    def origin(self, step_id: str) -> Origin | None:
        return self._store.step(step_id).origin() if self.record(step_id) else None

    def whose(self) -> list[str]:
        """Lines on results that were unpacked, and on other results of the same steps, which no table shows."""
        done = [id for id in self._planned if self.record(id)]
        packs = Counter((each.words, each.packed) for id in done if (each := self.origin(id)))
        others = sum(self._has_others(id) for id in done)
        lines = [f"{words}: {count} of {len(done)} steps, packed as of {day}" for (words, day), count in packs.items()]
        return lines + (
            [f"{others} steps have another result too, which is not shown here: mlkv show"] if others else []
        )

    def _has_others(self, step_id: str) -> bool:
        record = self.record(step_id)
        return any(record and not same_result(record, each.record) for each in self._store.step(step_id).others())

    def outdated(self) -> str | None:
        """One line on steps that were planned under an earlier schema version of their kind; None where there are
        none."""
        kinds = {step.kind for step in self._planned.values()}
        if all(kind_of(kind).schema == 1 for kind in kinds):
            return None  # and no specification need be read
        specs = {}
        for id in self._planned:
            with suppress(DamagedFileError):  # the state of the step says so
                if spec := self._store.step(id).spec():
                    specs[id] = spec
        return outdated_note(specs)

    def out(self, step_id: str) -> Path:
        """The folder of a step's output."""
        return self._store.step(step_id).out

    def history(self, step_id: str) -> Rows:
        """What the step, and those that it continues, have logged so far, along its axis."""
        return whole_history(self._store, step_id)


def _cells(variant: VariantRow, steps: PlannedSteps, wanted: Sequence[Score]) -> Iterator[Row]:
    """The rows of a variant: recorded cells, and empty ones for what is planned and not there."""
    own = variant.steps
    for kind in ("corpus", "base", "calibrate", "teacher", "elastic", "convert"):
        if step_id := getattr(own, kind):
            yield from _step_cells(steps, step_id, kind)
    if own.uptrain:
        cost = _cost_of([record for id in own.earlier or () if (record := steps.record(id))])
        yield from (_with_cost(cell, cost) for cell in _step_cells(steps, own.uptrain, "uptrain"))
    for task, step_id in own.evaluate.items():
        examples = variant.examples(task)
        for cell in _step_cells(steps, step_id, "evaluate", task, [metric for t, metric in wanted if t == task]):
            yield {**cell, "n_shot": _examples_of(cell, examples)}
    for task, step_id in (own.converted or {}).items():
        yield from _step_cells(steps, step_id, CONVERTED, task)
    for task, metric in wanted:
        if task not in own.evaluate:
            score = {"kind": "evaluate", "task": task, "metric": metric}
            yield {**score, "state": UNPLANNED, "reason": "no step evaluates it"}
    for kind in ("measure", "similarity"):
        if step_id := getattr(own, kind):
            yield from _step_cells(steps, step_id, kind)
    for kind, step_id in (own.added or {}).items():
        yield from _step_cells(steps, step_id, kind)


def _cost_of(records: Sequence[Record]) -> Row:
    return {
        "wall_seconds": math.fsum(record.wall_seconds for record in records),
        "device_seconds": math.fsum(record.device_seconds for record in records),
        "peak_memory_bytes": max((record.peak_memory_bytes for record in records), default=0),
    }


def _with_cost(cell: Row, earlier: Row) -> Row:
    """The row of a training with the cost of those that it continues: what it takes to get there."""
    if "wall_seconds" not in cell:
        return cell
    seconds = {name: cell[name] + earlier[name] for name in ("wall_seconds", "device_seconds")}
    peak = max(cell["peak_memory_bytes"], earlier["peak_memory_bytes"])
    return {**cell, **seconds, "peak_memory_bytes": peak}


def _examples_of(cell: Row, examples: int | Mapping[str, int] | None) -> int | None:
    """A task has one number of worked examples; a group has one for each member where these differ, and then its mean
    has none."""
    if not isinstance(examples, Mapping):
        return examples
    if member := cell.get("subtask"):
        return examples.get(member)
    return None


def _step_cells(
    steps: PlannedSteps, step_id: str, kind: str, task: str | None = None, wanted: Sequence[str] = ()
) -> Iterator[Row]:
    state, reason = steps.state_of(step_id)
    record = steps.record(step_id)
    common: Row = {"kind": kind, "task": task, "state": state, "reason": reason, "step": step_id, "wandb_run": step_id}
    if record:
        origin = steps.origin(step_id)
        common |= {
            "code": record.code,
            "wall_seconds": record.wall_seconds,
            "device_seconds": record.device_seconds,
            "peak_memory_bytes": record.peak_memory_bytes,
            "machine": machine_of(record, origin) if kind == "measure" else None,
            "origin": (origin.by or "another store") if origin else None,
        }
    measured = record.metrics if record else []
    signatures = kind_of(record.kind).signatures(measured, record.facts) if record else []
    by_score = {each.score: each.line for each in signatures}
    for metric in measured:
        score = f"{metric.subtask}/{metric.metric}" if metric.subtask else metric.metric
        yield {**common, **_metric_cell(metric, task), "signature": by_score.get(score) or by_score.get("")}
    names = {metric.metric for metric in measured if not metric.subtask}
    missing = dict.fromkeys(metric for metric in wanted if metric not in names)
    for name in missing or ([None] if not measured else []):
        yield {**common, "metric": name, **(_not_recorded(measured, name) if record and name else {})}


def _metric_cell(metric: MetricRow, task: str | None) -> Row:
    """A score of one member of a task group has the member's name behind the group's: `mmlu/anatomy`."""
    return {
        "task": f"{task}/{metric.subtask}" if metric.subtask else task,
        "subtask": metric.subtask,
        "metric": metric.metric,
        "value": metric.value,
        "stderr": metric.stderr,
        "n": metric.n,
        "batch": metric.batch,
        "context": metric.context,
        "reason": _why_unusable(metric.value),
    }


def _why_unusable(value: float | None) -> str | None:
    if value is None:
        return "its step recorded no value"
    return None if on_axis(value) else f"{value:.3g}, too large to be compared"


def _not_recorded(measured: Sequence[MetricRow], name: str) -> Row:
    """The replacement for a score that a record does not have. For a task group without an aggregate this is the mean
    of its members, each counted once, as for imported results (lm_eval_groups.py)."""
    # A group inside the group has a score but no samples of its own: its tasks are counted already.
    tasks = dict.fromkeys(metric.subtask for metric in measured if metric.subtask and metric.n is not None)
    members = [metric for metric in measured if metric.subtask in tasks and metric.metric == name]
    if not members:
        own = sorted({metric.metric for metric in measured if not metric.subtask})
        return {"reason": f"not in its record (there: {', '.join(own) or 'only scores of its members'})"}
    scored = {metric.subtask: metric.value for metric in members if metric.value is not None}
    if lacking := [task for task in tasks if task not in scored]:
        return {"reason": f"its member {lacking[0]} has no {name}"}
    value, stderr = mean(list(scored.values()), [metric.stderr for metric in members])
    samples = sum(metric.n or 0 for metric in members)
    return {"value": value, "stderr": stderr, "n": samples, "reason": f"mean of its {len(members)} members"}
