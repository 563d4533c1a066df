"""What a test writes into a store, where only some of it matters: the rest has values that say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeps.store.schema import Record, from_json
from sweeps.store.stepdir import Claim


def record_of(claim: Claim, values: Mapping[str, Any] | None = None) -> Record:
    """The record of an attempt, with these values as JSON has them."""
    blank: dict[str, Any] = {
        **dict.fromkeys(("started", "finished", "host", "device", "code"), ""),
        **dict.fromkeys(("wall_seconds", "device_seconds"), 0.0),
        **{key: {} for key in ("versions", "inputs", "facts", "outputs")},
        "peak_memory_bytes": 0,
        "work": None,
        "metrics": [],
    }
    identity = {"id": claim.step.id, "kind": claim.step.kind, "attempt": claim.attempt.number}
    return from_json(Record, {**identity, **blank, **(values or {})})
