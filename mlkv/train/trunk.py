"""What a longer run continues: the state of training (weights, optimizer, schedule, random numbers, step) at the end of
the constant rate, before the decay to the checkpoint that is scored (arXiv 2404.06395, 2405.18392)."""

from __future__ import annotations

import shutil
from pathlib import Path

from .schedule import Schedule

FOLDER = "trunk"
"""In the output of a run that can be continued, beside its checkpoint."""
_ONLY_HERE = shutil.ignore_patterns("training_args.bin")
"""Trainer's own settings, which name folders of the attempt; nothing reads them."""


def of_shorter(shorter: Path | None) -> Path | None:
    """The state that the output of a shorter run holds; None where its decay began at once, and for no such run."""
    return shorter / FOLDER if shorter and (shorter / FOLDER).is_dir() else None


def leave(schedule: Schedule, work: Path, shorter: Path | None, out: Path) -> None:
    """Copy this run's state into `out`. A run that is hardly longer than `shorter` may have no trunk beyond the other's
    end, and leaves that."""
    if not schedule.recipe.rungs or not schedule.trunk_steps:
        return
    own = work / f"checkpoint-{schedule.trunk_steps}"
    source = own if own.is_dir() else of_shorter(shorter)
    assert source is not None, "a state was saved at the end of the trunk"
    shutil.copytree(source, out / FOLDER, ignore=_ONLY_HERE)
