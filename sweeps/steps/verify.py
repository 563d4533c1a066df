"""Checks that a finished step's record was not edited: by its seal or, where earlier code wrote none, by other files
that hold the same numbers."""

from __future__ import annotations

from dataclasses import replace

from mlkv.context import MetricRow
from sweeps.steps.registry import kind_of
from sweeps.store.schema import Record
from sweeps.store.stepdir import StepDir


def edited(step: StepDir) -> str | None:
    """What in the record of a step is not what was recorded, or None. Its outputs must be as they were."""
    record = step.record()
    if record is None:
        return None
    if (holds := step.seal_holds()) is not None:
        return None if holds else "done.json was edited: its seal does not fit"
    lost = next((cell for cell in _elsewhere(step) if not _has(record, cell)), None)
    return f"done.json was edited: it does not have {_words(lost)}" if lost else None


def cannot_be_checked(step: StepDir) -> bool:
    """Whether there are numbers in the record that nothing vouches for."""
    record = step.record()
    return bool(record and record.metrics) and step.seal_holds() is None and not _elsewhere(step)


def _elsewhere(step: StepDir) -> list[MetricRow]:
    """The record's metrics as another file of the step has them; none where there is no such file."""
    numbers = kind_of(step.kind).numbers
    try:
        return numbers(step.out, step.metrics()) if numbers else []
    except (OSError, ValueError, KeyError):
        return []


def _has(record: Record, cell: MetricRow) -> bool:
    if cell.stderr is None and cell.n is None:  # the rows that a step logs have neither
        return cell in [replace(row, stderr=None, n=None) for row in record.metrics]
    return cell in record.metrics


def _words(cell: MetricRow) -> str:
    """`acc = 0.25`, `step_seconds = 0.5 (batch 1, context 32)`."""
    parts = {"subtask": cell.subtask, "batch": cell.batch, "context": cell.context}
    place = ", ".join(f"{name} {part}" for name, part in parts.items() if part is not None)
    return f"{cell.metric} = {cell.value}" + (f" ({place})" if place else "")
