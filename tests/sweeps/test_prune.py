"""Pruning: only what no sweep needs goes, and what went can be made again."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sweeps.store.prune import prunable
from sweeps.store.schema import ExitState
from sweeps.store.stepdir import Claim
from sweeps.store.store import Store, StoreError
from sweeps.store.typed_json import as_json
from tests.support.failing_files import failing
from tests.support.records import record_of, save_sweep, some_plan
from tests.support.shell import Shell

NEEDED, STRAY = "base-0123456789abcdef", "base-fedcba9876543210"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path)
    save_sweep(store, "s", {"steps": {NEEDED: {}}})
    return store


def begin(store: Store, step_id: str) -> Claim:
    claim = store.step(step_id).claim()
    assert claim
    (claim.attempt.out / "model").write_bytes(b"weights")
    return claim


def end(claim: Claim, state: ExitState) -> None:
    if state == "done":
        assert claim.step.publish(claim, record_of(claim, {"metrics": [{"metric": "loss", "value": 1.0}]}))
    claim.attempt.finish(state, "", 0)
    claim.release()


def test_a_step_that_no_sweep_needs_loses_its_output_and_keeps_its_logs(store: Store) -> None:
    for step_id in (NEEDED, STRAY):
        claim = begin(store, step_id)
        claim.attempt.stdout.write_text("it went well")
        end(claim, "done")
    (found,) = prunable(store)
    assert (found.step.id, found.whole, found.bytes) == (STRAY, True, len(b"weights"))
    found.drop()
    stray = store.step(STRAY)
    assert (stray.record(), stray.out.exists()) == (None, False)
    assert stray.state().name == "PENDING"
    assert "pruned" in stray.state().reason
    assert stray.attempts()[0].log_tail() == ["it went well"]
    assert (store.step(NEEDED).out / "model").read_bytes() == b"weights"
    assert list(prunable(store)) == []
    end(begin(store, STRAY), "done")
    assert stray.state().name == "DONE", "it can be made again"


def test_what_a_failed_attempt_left_goes_and_what_it_resumes_from_stays(store: Store) -> None:
    claim = begin(store, NEEDED)
    (claim.step.work / "checkpoint").write_bytes(b"half")
    end(claim, "failed")
    (found,) = prunable(store)
    assert not found.whole
    found.drop()
    assert not claim.attempt.out.exists()
    assert (claim.step.work / "checkpoint").exists()


def test_a_running_step_is_left_alone(store: Store) -> None:
    claim = begin(store, STRAY)
    assert list(prunable(store)) == []
    claim.release()


OLD_NAMES = ["a/b", "a/wandb", "a/.b", ".b", "a/b/c", "s/1/x", "my sweep", "7", "wandb", "s/deeper"]


@pytest.mark.parametrize("name", OLD_NAMES)
def test_whatever_name_earlier_code_let_a_sweep_have_its_outputs_stay(store: Store, name: str) -> None:
    end(begin(store, STRAY), "done")
    plan = store.root / "sweeps" / name / "1"
    shutil.copytree(store.sweep("s").path, plan)
    (plan / "plan.json").write_text(json.dumps(as_json(some_plan(steps={STRAY: {}}))))
    assert list(prunable(store)) == []
    (plan / "plan.json").write_text("{")
    with pytest.raises(StoreError, match=f"nothing is dropped while a plan cannot be read: sweep {name}: "):
        list(prunable(store))


@pytest.mark.parametrize("name", ["a/1", "s/2"])
def test_a_name_that_looks_like_a_plan_is_in_the_way_of_pruning(store: Store, name: str) -> None:
    end(begin(store, STRAY), "done")
    shutil.copytree(store.sweep("s").path, store.root / "sweeps" / name / "1")
    with pytest.raises(StoreError, match="nothing is dropped"):
        list(prunable(store))


def test_a_folder_that_cannot_be_listed_is_in_the_way_of_pruning(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, scan = str(store.root / "sweeps" / "s"), os.scandir

    def refuse(path: str) -> Any:
        if str(path) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), closed)
        return scan(path)

    listing = os.listdir
    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", lambda path: list(refuse(path)) and listing(path))
    with pytest.raises(StoreError, match=r"sweep s: .*: cannot be read \(Permission denied"):
        list(prunable(store))
    assert store.sweep_names() == []


def test_the_command_shows_first_and_drops_when_told(mlkv: Shell, store: Store) -> None:
    end(begin(store, STRAY), "done")
    mlkv.store.root.mkdir(exist_ok=True)
    for part in ("steps", "sweeps"):
        shutil.copytree(store.root / part, mlkv.store.root / part)
    assert "--yes" in mlkv("prune")
    assert mlkv.store.step(STRAY).record()
    mlkv("prune", "--yes")
    assert mlkv.store.step(STRAY).record() is None
    assert "nothing to delete" in mlkv("prune")


@pytest.mark.parametrize("step_id", [NEEDED, STRAY])
def test_an_output_that_only_has_to_be_published_stays_where_its_step_is_needed(step_id: str, store: Store) -> None:
    """Its disk was full when it was moved."""
    claim = begin(store, step_id)
    with failing(claim.attempt.out, at=0, error=errno.ENOSPC, only=("rename",)), pytest.raises(OSError, match="space"):
        claim.step.publish(claim, record_of(claim))
    claim.attempt.finish("interrupted", "ENOSPC", None)
    claim.release()
    for found in prunable(store):
        found.drop()
    assert claim.attempt.out.exists() == (step_id == NEEDED)
    taken = store.step(step_id).claim()
    assert (taken is None) == (store.step(step_id).record() is not None) == (step_id == NEEDED)


def test_what_was_busy_when_it_should_go_goes_later(store: Store) -> None:
    claim = begin(store, NEEDED)
    (claim.step.work / "checkpoint").write_bytes(b"half")
    with failing(claim.step.path, at=0, error=errno.EBUSY, only=("rmdir",)):
        end(claim, "done")
    (left,) = claim.step.path.glob(".discarded-*")
    (found,) = prunable(store)
    assert not found.whole
    found.drop()
    assert not left.exists()
    assert list(prunable(store)) == []
