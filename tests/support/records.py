"""What a test writes into a store, where only some of it matters: the rest has values that say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeps.store.schema import Record, VariantRow, from_json
from sweeps.store.stepdir import Claim


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
