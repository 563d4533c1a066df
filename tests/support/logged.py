"""Rows that steps of every kind log."""

from __future__ import annotations

from pathlib import Path

from sweeps.store.schema import LoggedRow
from sweeps.store.store import Store

OLD_STORE = Path(__file__).parents[1] / "sweeps" / "old_store" / "store"
_BATCHES = [LoggedRow(fields={"time": 1.0 + i, "step": i, "steps": 2}) for i in range(3)]
_TRAINING = [
    LoggedRow(fields={**row.fields, "tokens": 8 * i, "loss": 2.0, "lr": 1e-3, "tokens_per_second": 9.5})
    for i, row in enumerate(_BATCHES)
]
LATER = {"calibrate": _BATCHES, "teacher": _BATCHES, "similarity": _BATCHES, "elastic": _TRAINING}
"""Of kinds that the old store does not have."""


def logged(kind: str) -> list[LoggedRow]:
    """Those of the old store's steps of a kind."""
    rows = [row for step in Store(OLD_STORE).steps() if step.kind == kind for row in step.metrics()]
    return rows or LATER[kind]
