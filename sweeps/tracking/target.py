"""Where runs are mirrored to. Jobs get it in one environment variable, which holds no secret."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le

from sweeps.store.store import SavedSweep
from sweeps.store.typed_json import from_json
from sweeps.store.variables import variable

VARIABLE = "MLKV_TRACKING"
MISREAD_PROJECTS = ("sweeps", "runs", "reports")
"""Names that W&B's client takes for a part of a path: `Api().run("entity/sweeps/id")` finds nothing."""

Seconds = Annotated[float, Gt(0), Le(1e9)]
"""Python's waits count nanoseconds in 64 bits."""


@dataclass(frozen=True)
class TrackingConfig:
    """Settings for Weights & Biases. WANDB_BASE_URL names the server; WANDB_API_KEY or `wandb login` gives the key.
    Neither is stored in a configuration. `timeout`: seconds that a job waits for W&B, at its end and in total."""

    mode: Literal["offline", "online", "off"] = "offline"
    project: str = "mlkv"
    entity: str | None = None
    timeout: Seconds = 30.0
    system_seconds: Seconds = 15.0
    """Seconds between two readings of the computing process's CPU, memory and GPU."""
    console: bool = True
    """Whether W&B also gets what steps printed, and the list of packages that were installed where they ran."""
    checkpoints: Literal["none", "reference", "upload"] = "none"
    """How W&B gets the checkpoints that steps leave: as artifacts that refer to the store, or with all files."""
    alerts: Literal["none", "failure", "end"] = "none"
    """What W&B tells people at once: that a step has failed, or also that the sweep has ended."""

    @property
    def path(self) -> str:
        """The project's name in W&B's API: `entity/project`, or `project` of the default entity."""
        return f"{self.entity}/{self.project}" if self.entity else self.project

    def __post_init__(self) -> None:
        if self.project in MISREAD_PROJECTS:
            raise ValueError(f"project = {self.project}: W&B's client misreads this name; choose another, e.g. mlkv")
        if self.project in (".", "..") or not re.fullmatch(r"[^/\\#?%:\s]{1,128}", self.project):
            raise ValueError(
                f"project = {self.project}: must be 1 to 128 characters without / \\ # ? % : and spaces, no . or .."
            )


DEFAULT_CONFIG = TrackingConfig()


@dataclass(frozen=True)
class Target:
    """A project, and the sweep that a job runs for (None: a step that is run by itself)."""

    config: TrackingConfig
    sweep: str | None = None

    def environment(self) -> dict[str, str]:
        """The environment variable that a job needs."""
        return {VARIABLE: json.dumps({"config": dataclasses.asdict(self.config), "sweep": self.sweep})}

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Target | None:
        """The target that the launcher set; None where nothing is to be mirrored."""
        target = variable(VARIABLE, cls._read, None, "what `mlkv sweep` sets for its jobs", environment)
        return None if target is None or target.config.mode == "off" else target

    @classmethod
    def _read(cls, text: str) -> Target:
        target = json.loads(text)
        return cls(TrackingConfig(**target["config"]), target["sweep"])


def saved_target(saved: SavedSweep) -> Target:
    """The target of a frozen plan; plans from before tracking existed have none. Raises StoreError where it is
    damaged."""
    try:
        return Target(from_json(TrackingConfig, saved.plan.tracking or {"mode": "off"}), saved.name)
    except ValueError as error:
        raise saved.damaged("tracking", error) from None
