"""A run as W&B gives it back, from its files (read/files.py) or its API (read/api.py)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass
class LoggedRun:
    """One run, all its fragments put together. `rows` are in the order of its own axis."""

    id: str
    name: str = ""
    project: str = ""
    entity: str = ""
    job_type: str = ""
    group: str = ""
    sweep: str = ""
    """The id of a sweep of W&B's own."""
    tags: tuple[str, ...] = ()
    config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    rows: list[Json] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    """Metric names, or globs of them → the metric they are drawn against."""
    state: str = "running"
    started: float = 0.0


def planned(run: LoggedRun) -> Json:
    """The part of the plan that a variant's run tells of: `sweep`, `number`, `index`, `variant`, `plan`, `steps`; empty
    for other runs."""
    return json.loads(run.config["mlkv"]) if run.job_type == "variant" and "mlkv" in run.config else {}


def number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        found = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
