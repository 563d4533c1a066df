"""A step's checkpoint as an artifact of W&B, where `tracking.checkpoints` asks for it. Imports no wandb.

W&B tells the versions of an artifact apart by the digests of their files alone: of a reference and an upload of the
same files under one name it would keep whichever came first. So a reference has a name of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sweeps.store.schema import Files, Record
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store

CHECKPOINT_KEY = "mlkv_checkpoint"
"""Key of the summary that names the ways in which W&B has the run's checkpoint."""
TYPE = "model"
Way = Literal["reference", "upload"]


@dataclass(frozen=True)
class Checkpoint:
    """files: names in `folder`. inputs: ids of the steps whose checkpoints it was made from."""

    step: str
    kind: str
    way: Way
    folder: Path
    files: Files
    inputs: tuple[str, ...]

    def name(self, step: str | None = None) -> str:
        """The artifact's, or that of another step's checkpoint."""
        return f"{step or self.step}{'-reference' if self.way == 'reference' else ''}"

    def is_in(self, ways: object) -> bool:
        """Whether W&B has it, by what the run's summary says."""
        return self.way in str(ways or "").split()


def checkpoint_of(store: Store, step: StepDir, record: Record | None, way: Way) -> Checkpoint | None:
    """None for a step that is not done or leaves none."""
    if not record or not _is_here(step, record):
        return None
    parents = [store.step(id) for id in record.inputs]
    inputs = tuple(each.id for each in parents if (made := each.record()) and _is_here(each, made))
    return Checkpoint(step.id, step.kind, way, step.out, record.outputs, inputs)


def _is_here(step: StepDir, record: Record) -> bool:
    """Whether it left weights beside a model's configuration, and they are in this store: of a step that was made
    elsewhere there may be the record alone."""
    names = record.outputs
    weights = any(name.endswith(".safetensors") for name in names)
    return "config.json" in names and weights and all((step.out / name).is_file() for name in names)
