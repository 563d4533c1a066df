"""What a test writes into a store, where only some of it matters: the rest has values that say nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sweeps.store.schema import PlanFile, Record, VariantRow
from sweeps.store.stepdir import Claim
from sweeps.store.store import SavedSweep, Store
from sweeps.store.typed_json import from_json

MEASURED = {
    "started": "2025-01-01T00:00:00Z",
    "finished": "2025-01-01T00:00:10Z",
    "wall_seconds": 10.0,
    "device_seconds": 10.0,
    "peak_memory_bytes": 2**29,
    "host": "node-1",
    "device": "cpu",
    "versions": {"torch": "2.13.0", "python": "3.11"},
    "code": "c0de" * 4,
    "inputs": {},
}
"""What a record says of a run of ten seconds on some machine."""


def record_of(claim: Claim, values: Mapping[str, Any] | None = None) -> Record:
    """The record of an attempt, with these values as JSON has them."""
    identity = {"id": claim.step.id, "kind": claim.step.kind, "attempt": claim.attempt.number}
    return some_record(**{**identity, **(values or {})})


def some_record(**values: Any) -> Record:
    """A record with these values as JSON has them."""
    blank: dict[str, Any] = {
        **dict.fromkeys(("id", "kind", "started", "finished", "host", "device", "code"), ""),
        **dict.fromkeys(("wall_seconds", "device_seconds"), 0.0),
        **{key: {} for key in ("versions", "inputs", "facts", "outputs")},
        "attempt": 1,
        "peak_memory_bytes": 0,
        "work": None,
        "metrics": [],
    }
    return from_json(Record, {**blank, **values})


def some_variant(**values: Any) -> VariantRow:
    """A variant of a plan with these values as JSON has them."""
    counts = ("kv_layers", "budget", "head_dim", "kv_element_bytes", "kv_bytes_per_token", "parameters")
    blank: dict[str, Any] = {
        **dict.fromkeys(counts, 1),
        **{key: {} for key in ("overrides", "config", "steps")},
        "layout": {"kv_source_layers": [0, 0], "kv_heads": [1], "heads": 1},
        "baseline": None,
        "pattern": "even",
        "family": "MQA",
        "kv_heads": [1],
    }
    return from_json(VariantRow, {**blank, **values})


def some_plan(**values: Any) -> PlanFile:
    """The sweep-wide part of a plan with these values as JSON has them."""
    blank = {"name": "", "number": 0, "created": "", "accuracy": [], "axis": None, "cluster": {}, "tracking": None}
    step: dict[str, Any] = {"kind": "", "label": "", "parents": {}, "variants": []}
    steps = {id: {**step, **own} for id, own in values.get("steps", {}).items()}
    return from_json(PlanFile, {**blank, **values, "steps": steps})


def save_sweep(store: Store, name: str, plan: Mapping[str, Any], rows: Iterable[Mapping[str, Any]] = ()) -> SavedSweep:
    """A sweep with a plan and variants that have these values as JSON has them."""
    return store.save_sweep(name, some_plan(**plan), [some_variant(**row) for row in rows], ["x=1"])
