"""Where runs are mirrored to, and how a job is told: by one environment variable, which holds no secret."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt

from sweeps.store.store import SavedSweep

VARIABLE = "MLKV_TRACKING"
MISREAD_PROJECTS = ("sweeps", "runs", "reports")
"""W&B's own client takes these for a part of a path: `Api().run("entity/sweeps/id")` finds nothing."""


@dataclass(frozen=True)
class TrackingConfig:
    """Weights & Biases. The server is WANDB_BASE_URL's and the key WANDB_API_KEY's or `wandb login`'s: neither is kept
    in a configuration. `timeout` is how many seconds a job waits for W&B, at its end and all in all."""

    mode: Literal["offline", "online", "off"] = "offline"
    project: str = "mlkv"
    entity: str | None = None
    timeout: Annotated[float, Gt(0)] = 30.0
    system_seconds: Annotated[float, Gt(0)] = 15.0
    """Between two readings of the computing process's CPU, memory and GPU."""

    @property
    def path(self) -> str:
        """What W&B's API calls the project."""
        return f"{self.entity}/{self.project}" if self.entity else self.project

    def __post_init__(self) -> None:
        if self.project in MISREAD_PROJECTS:
            raise ValueError(f"project = {self.project}: W&B's client misreads this name; choose another, e.g. mlkv")
        if not re.fullmatch(r"[^/\\#?%:\s]{1,128}", self.project):
            raise ValueError(f"project = {self.project}: must be 1 to 128 characters without / \\ # ? % : and spaces")


@dataclass(frozen=True)
class Target:
    """A project, and the sweep on whose behalf a job runs (None: a step run by itself)."""

    config: TrackingConfig
    sweep: str | None = None

    def environment(self) -> dict[str, str]:
        """For jobs."""
        return {VARIABLE: json.dumps({"config": dataclasses.asdict(self.config), "sweep": self.sweep})}

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Target | None:
        """What the launcher said; None where nothing is to be mirrored."""
        told = json.loads(environment.get(VARIABLE) or "null")
        if told is None or told["config"]["mode"] == "off":
            return None
        return cls(TrackingConfig(**told["config"]), told["sweep"])


def saved_target(saved: SavedSweep) -> Target:
    """Where a frozen plan is mirrored to."""
    return Target(TrackingConfig(**saved.plan.get("tracking", {"mode": "off"})), saved.name)
