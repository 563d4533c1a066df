"""What a running step gets besides its recipe and its inputs, what it returns, and how it ends early."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from .files import Json

Row = dict[str, Any]
"""One line of metrics.jsonl. `step` and `steps` (done, in all) feed the progress view; the rest is the kind's own."""

_PLACE = ("subtask", "batch", "context")
"""The fields of a MetricRow that only some kinds of steps have."""


@dataclass(frozen=True)
class MetricRow:
    """One number that a step found; values are finite or None.

    stderr: standard error of `value`; None where it has none or it is unknown.
    n: samples, windows or runs behind `value`.
    subtask: the member of a task group. batch, context: the cell of a measurement.
    """

    metric: str
    value: float | None
    stderr: Annotated[float, Ge(0)] | None = None
    n: int | None = None
    subtask: str | None = None
    batch: int | None = None
    context: int | None = None

    def as_json(self) -> Json:
        """As records hold it: `subtask`, `batch` and `context` are left out where they do not apply."""
        return {key: value for key, value in asdict(self).items() if value is not None or key not in _PLACE}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> MetricRow:
        """Keys that a row lacks are None; keys that are no field are ignored. Raises KeyError without a `metric`."""
        names = {f.name for f in fields(cls)}
        known = {key: value for key, value in row.items() if key in names}
        return cls(**{"value": None, "metric": row["metric"], **known})


@dataclass(frozen=True)
class Outcome:
    """What a step returns: the numbers it found, and the facts about it that its kind records.

    for_others: seconds that it spent on other steps, whose results it has made too; below zero: that another step spent
        on this one."""

    metrics: list[MetricRow] = field(default_factory=list)
    facts: Json = field(default_factory=dict)
    for_others: float = 0.0


@dataclass(frozen=True)
class Context:
    """work: a directory for resume checkpoints; it outlives the process.
    log: appends a row to the attempt's metrics.jsonl.
    should_stop: true once the job should end: save to `work` and raise Interrupted.
    attempt: the number of this execution of the step. A suspended one may wake up while the next runs, so no two may
    write the same file in `work`.
    """

    work: Path
    log: Callable[[Row], None]
    should_stop: Callable[[], bool] = lambda: False
    attempt: int = 1


class Interrupted(Exception):
    """The step saved its state and stopped on request; the next attempt continues from there."""


class StepFailed(Exception):
    """The step cannot succeed as it is configured; the message says why in one line (no traceback is shown)."""
