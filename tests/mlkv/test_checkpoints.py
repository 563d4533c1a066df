"""Checkpoints of a training beside another attempt at it, and on a disk that fails."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerState

from mlkv.train.schedule import Schedule
from mlkv.train.watcher import OWNER, Watcher, _publish
from mlkv.training_recipes import TrainRecipe
from tests.support.failing_files import failing
from tests.support.read_back import present
from tests.support.tiny import context

RECIPE = TrainRecipe(steps=12, batch_size=4)


def watcher(work: Path, attempt: int = 1) -> Watcher:
    """Of an attempt at a training whose checkpoints lie in `work`."""
    work.mkdir(exist_ok=True)
    ctx = replace(context(work), attempt=attempt)
    return Watcher(Schedule.of(RECIPE, rows=100, tokens=9600), ctx)


def save(at: Watcher, step: int) -> None:
    """What Trainer does: it writes file after file, then calls back."""
    folder = at.staging / f"checkpoint-{step}"
    for name in ("model.safetensors", "optimizer.pt"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{step}")
    at.on_save(SimpleNamespace(world_size=1), TrainerState(global_step=step, is_world_process_zero=True), None)


def checkpoints(work: Path) -> list[str]:
    return sorted(path.name for path in work.iterdir() if not path.name.startswith("staging"))


def test_an_attempt_that_wakes_up_beside_the_next_does_no_harm(tmp_path: Path) -> None:
    first, second = watcher(tmp_path), watcher(tmp_path, attempt=2)
    assert first.latest() is None
    save(first, 4)
    assert second.latest() == tmp_path / "checkpoint-4"
    with pytest.raises(FileNotFoundError):
        save(first, 8)
    assert checkpoints(tmp_path) == ["checkpoint-4"], "what it had in hand was swept away, so it was not whole"
    save(second, 8)
    assert checkpoints(tmp_path) == ["checkpoint-8"]


def test_a_late_checkpoint_takes_the_place_of_no_later_one(tmp_path: Path) -> None:
    first, second = watcher(tmp_path), watcher(tmp_path, attempt=2)
    for each in (first, second):
        each.staging.mkdir()
        (each.staging / OWNER).touch()
    save(second, 8)
    save(first, 4)
    save(first, 8)
    assert "checkpoint-8" in checkpoints(tmp_path)
    assert second.latest() == tmp_path / "checkpoint-8"
    save(second, 12)
    assert checkpoints(tmp_path) == ["checkpoint-12"]


@pytest.mark.parametrize("error", [errno.EBUSY, errno.EIO, errno.ENOSPC, errno.ENOTEMPTY])
def test_whatever_fails_while_a_checkpoint_is_put_in_place_one_is_left_whole(error: int, tmp_path: Path) -> None:
    """Removing the older one is housekeeping, a busy file of NFS no reason to stop; all else ends the attempt."""
    operations = 0
    for at in range(40):
        work = tmp_path / str(at)
        watching = watcher(work)
        watching.latest()
        save(watching, 4)
        new = watching.staging / "checkpoint-8"
        new.mkdir()
        (new / "model.safetensors").write_text("8")
        with failing(work, at=at, error=error) as fault:
            try:
                _publish(new, work)
                published = True
            except OSError:
                published = False
        assert ("checkpoint-8" in checkpoints(work)) == published, fault
        found = present(watcher(work, attempt=2).latest())
        assert found == work / ("checkpoint-8" if published else "checkpoint-4")
        assert (found / "model.safetensors").read_text() == found.name.removeprefix("checkpoint-")
        operations = len(fault.calls)
        if operations <= at:
            break
    assert operations > 4
    assert published
