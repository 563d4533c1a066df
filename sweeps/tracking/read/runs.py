"""A run as read back from W&B: from its files (files.py) or through its API (api.py)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlkv.files import Json


@dataclass
class LoggedRun:
    """One run, its fragments merged. `rows` are in the order of its own axis."""

    id: str
    name: str = ""
    project: str = ""
    entity: str = ""
    job_type: str = ""
    group: str = ""
    sweep: str = ""
    """The id of the W&B sweep (not one of ours) that made it."""
    tags: tuple[str, ...] = ()
    config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    rows: list[Json] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    """Metric name, or a pattern of names (`train/*`) → the metric on its x axis."""
    console: list[str] = field(default_factory=list)
    """The lines of its log, where the files have it."""
    requirements: Path | None = None
    """The file with the packages that were installed."""
    state: str = "running"
    started: float = 0.0


def planned(run: LoggedRun) -> Json:
    """The part of the plan that the run of a variant holds (`sweep`, `number`, `index`, `variant`, `plan`, `steps`);
    empty for other runs."""
    return json.loads(run.config["mlkv"]) if run.job_type == "variant" and "mlkv" in run.config else {}


def number(value: Any) -> float | None:
    """The value as a float if it is a finite number, else None; True and False are no numbers."""
    try:
        converted = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None
