"""The command line when the file system fails: one line that says what and where, an exit status, no traceback."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from slurm.jobs import Job, Phase
from slurm.local import LocalExecutor
from sweeps.cli import status
from sweeps.cli.console import make_console
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store
from tests.support.failing_files import failing
from tests.support.records import record_of
from tests.support.tracked import record

FAULTS = [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EIO, errno.ESTALE]


def corrupt(store: Store, name: str) -> StepDir:
    claim = store.step(f"corpus-{name * 16}").claim()
    assert claim
    (claim.attempt.out / "a").write_text("output")
    assert claim.step.publish(claim, record_of(claim, record([])))
    claim.release()
    (claim.step.out / "a").write_text("ouptut")
    return claim.step


def verify(steps: list[StepDir], store: Store) -> int:
    graph: dict[str, Any] = dict.fromkeys(step.id for step in steps)
    return status._verify(make_console(), graph, store)


@pytest.mark.parametrize("error", FAULTS)
def test_verify_goes_on_past_a_step_that_cannot_be_set_aside(
    error: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a store that may only be read, say."""
    steps = [corrupt(Store.open(tmp_path), name) for name in "ab"]
    with failing(steps[0].path, at=0, error=error, only=("replace",)):
        bad = verify(steps, Store(tmp_path))
    first, second = (line for line in capsys.readouterr().out.splitlines() if "corrupt" in line)
    assert bad == 2
    assert errno.errorcode[error] in first
    assert "could not be set aside" in first
    assert second.endswith("set aside, `mlkv sweep` runs it again")
    assert [step.record() is None for step in steps] == [False, True]


@pytest.mark.parametrize("error", FAULTS)
def test_verify_goes_on_past_an_output_that_cannot_be_read(
    error: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [corrupt(Store.open(tmp_path), name) for name in "ab"]
    with failing(steps[0].out, at=0, error=error, only=("open",)):
        bad = verify(steps, Store(tmp_path))
    printed = capsys.readouterr().out
    assert bad == 2
    assert f"{steps[0].id}: cannot be checked ({errno.errorcode[error]}: " in printed
    assert [step.record() is None for step in steps] == [False, True], "nothing is known against the first"


@pytest.mark.parametrize("error", FAULTS)
def test_a_job_whose_log_cannot_be_opened_fails_alone_with_the_reason(error: int, tmp_path: Path) -> None:
    folder = tmp_path / "submissions"
    folder.mkdir()
    with LocalExecutor(folder, slots=1, gpus=[]) as executor:
        ids = executor.submit([Job("a", ("true",)), Job("b", ("true",))])
        with failing(folder, at=0, error=error, only=("open",)):
            executor.poll()
        executor.wait()
        failed, other = (executor.states([ids[name]])[ids[name]] for name in "ab")
    assert failed.phase == Phase.FAILED
    assert failed.reason == f"could not be started: {os.strerror(error)}"
    assert other.phase == Phase.DONE
