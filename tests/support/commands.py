"""Every command on a copy of the store that earlier code made (tests/sweeps/old_store), where no job computes."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweeps.dispatch import submit
from sweeps.planning import resolve, variant_steps
from sweeps.store.errors import UserError
from sweeps.store.store import Store
from sweeps.tracking import sync
from sweeps.tracking.sync import SyncResult, sweep_runs
from sweeps.worker import supervisor
from sweeps.worker.job_context import SIGNALS
from sweeps.worker.messages import Answer
from tests.support.shell import ROOT
from tests.support.workers_here import ChildHere

OLD_STORE = ROOT / "tests" / "sweeps" / "old_store"
VERSIONS = {"torch": "2.13.0+cpu", "transformers": "5.23.0", "lm_eval": "0.4.13"}
COMMANDS = {
    "status": ["status"],
    "status of one": ["status", "old"],
    "verify": ["status", "old", "--verify"],
    "verify all": ["status", "--verify"],
    "why": ["why", "old", "MHA-4"],
    "logs": ["logs", "uptrain-426fc9a7f690d7d8"],
    "gather": ["gather", "old", "-o", "cells.csv", "--curves", "curves.csv"],
    "table": ["table", "old"],
    "table of an import": ["table", "theirs"],
    "figure": ["figure", "old", "-o", "figures"],
    "report": ["report", "old", "-o", "page"],
    "plan": ["plan", "--config-dir", str(OLD_STORE / "conf"), "experiment=old"],
    "prune": ["prune"],
    "prune --yes": ["prune", "--yes"],
    "cancel": ["cancel", "old"],
    "retry": ["retry", "old"],
    "run": ["run", "uptrain-426fc9a7f690d7d8"],
    "sync": ["sync", "old"],
    "show": ["show", "old", "MHA-4"],
    "diff": ["diff", "old", "stopped"],
    "ls": ["ls"],
    "du": ["du"],
    "note": ["note", "old", "too high a rate"],
    "mv": ["mv", "old", "newer"],
    "rm": ["rm", "old", "--yes"],
}
SLOW = ("figure", "report")


class NoJobs:
    """As if every job had ended at once."""

    idle = True

    def add(self, jobs: object) -> None: ...
    def live(self) -> set[str]:
        return set()

    def poll(self) -> None: ...
    def close(self) -> None: ...


class FailingChild(ChildHere):
    def send(self, request: object) -> None:
        self._answer = Answer(state="failed", reason="no computing in this test")


def _sync_here(arguments: list[str], target: object, timeout: float | None) -> Iterator[SyncResult]:
    """The runs of a sweep, made in this process and sent nowhere."""
    store = Store(Path(arguments[1]))
    directory = store.tracking("old")
    try:
        for run in sweep_runs(store, store.sweep("old")):
            yield SyncResult(
                run.id, run.name, "already there" if directory.written(run.id) else "sent", run.fingerprint
            )
    except UserError as error:
        yield SyncResult("", "the other runs", "failed", str(error))


def fix_versions(patched: pytest.MonkeyPatch) -> None:
    """Plans with the libraries that the old store was made with, whatever is installed."""
    for module in (variant_steps, resolve):
        patched.setattr(module, "package_version", VERSIONS.__getitem__)


@contextmanager
def nothing_computes(folder: Path) -> Iterator[None]:
    """In `folder`, which has the old store's text, a command's own work is done and no job's."""
    shutil.copytree(OLD_STORE / "text", folder / "text")
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("COLUMNS", "200")
        fix_versions(patched)
        patched.setattr(submit, "start_local", lambda *_: NoJobs())
        patched.setattr(sync, "_process", _sync_here)
        patched.setattr(supervisor, "Child", FailingChild)
        patched.setattr("sweeps.store.stepdir.stale_seconds", lambda: -1e9)
        patched.setattr("sweeps.store.stepdir.LISTEN_SECONDS", 0.0)
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
