"""Whoever ends badly says why: at whatever moment a fault comes, the reason is at the step and in the job's log."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mlkv.context import Outcome, StepFailed
from slurm.local import LocalExecutor
from slurm.resources import Resources
from sweeps.dispatch import local_loop, submit
from sweeps.dispatch.grouping import JobSpec
from sweeps.dispatch.submit import LocalJobs
from sweeps.planning.config import ClusterConfig
from sweeps.planning.reconcile import read_states_while_running
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.registry import KINDS
from sweeps.steps.step import Step
from sweeps.store import claim
from sweeps.store.errors import StoreError
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store
from sweeps.worker import __main__ as worker_main
from sweeps.worker import supervisor
from sweeps.worker.supervisor import DONE, FAILED, Worker
from tests.support.records import save_sweep
from tests.support.rows import replace_row
from tests.support.shell import ROOT, exit_status
from tests.support.workers_here import know_code, planned, work, workers_here

STEP = Step("corpus", {"source": "python_stdlib"})


@pytest.fixture
def here() -> Iterator[None]:
    with workers_here():
        yield


def kind(run: Callable[[Execution], Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    replace_row(monkeypatch, KINDS, "corpus", StepKind(run))


@contextmanager
def fault_at(number: int, error: BaseException) -> Iterator[list[str]]:
    """The n-th function that a method of the supervisor calls raises `error` at its first line."""
    calls: list[str] = []

    def trace(frame: FrameType, event: str, _: Any) -> None:
        back = frame.f_back.f_code if frame.f_back else None
        ours = frame.f_code.co_filename.startswith(str(ROOT))  # and no callback of the garbage collector's
        if ours and back and back.co_filename == supervisor.__file__ and back.co_name != "run":
            calls.append(frame.f_code.co_qualname)
            if len(calls) - 1 == number:
                raise error

    sys.settrace(trace)
    try:
        yield calls
    finally:
        sys.settrace(None)


FAULTS = [RuntimeError("the fault"), OSError(errno.EIO, "the fault"), StoreError("the fault"), KeyError("the fault")]


def test_a_fault_at_any_moment_of_a_supervisor_is_written_down_and_printed(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind(lambda execution: Outcome(), monkeypatch)
    step = planned(tmp_path / "whole", STEP)
    worker = Worker(Store(tmp_path / "whole"))
    with fault_at(-1, RuntimeError()) as calls:
        assert worker.run([step.id]) == DONE
    for name in ("StepDir.claim", "write_environment", "send", "answer", "publish", "finish", "release"):
        assert any(call.endswith(name) for call in calls), calls
    for at, name in list(enumerate(calls))[1:]:  # the first only names the step
        step = planned(tmp_path / str(at), STEP)
        worker = Worker(store := Store(tmp_path / str(at)))
        know_code(store)
        with fault_at(at, FAULTS[at % len(FAULTS)]):
            status = worker.run([step.id])
        claim._held.clear()  # as if this process had ended
        error, state = capsys.readouterr().err, step.state()
        assert (status == DONE) == (state.name == "DONE"), name
        if status != DONE:
            assert state.name in ("FAILED", "INTERRUPTED"), (name, state)
            assert ("the fault" in state.reason, "the fault" in error) == (True, True), (name, state, error)
            assert "the fault" in present_log(step), name
            assert work(step, capsys)[0] in (DONE, FAILED), name


def present_log(step: StepDir) -> str:
    return step.attempts()[-1].stderr.read_text()


def test_a_job_whose_environment_is_broken_says_so_at_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = planned(tmp_path, STEP)
    for name, value in {"MLKV_QUEUED": "1", "SLURM_PROCID": "none", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path), step.id])
    with pytest.raises(SystemExit) as ended:
        worker_main.main()
    assert ended.value.code == FAILED
    assert step.state().name == "INTERRUPTED"
    assert step.state().reason == "its job could not begin: SLURM_PROCID = none: must be a whole number"
    assert "Traceback" in capsys.readouterr().err


def job(step: StepDir) -> JobSpec:
    return JobSpec(step.id[-8:], "corpus", (step.id,), (), (), Resources())


def test_a_job_that_dies_before_its_first_step_is_said_at_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign module, a Python that is gone, a kill: the job's log says more than its exit status."""
    steps = [planned(tmp_path, Step("corpus", {"source": "python_stdlib", "seed": i})) for i in range(3)]
    argv = {
        steps[0].id[-8:]: ("/nowhere/python",),
        steps[1].id[-8:]: (sys.executable, "-S", "-c", "import no_such_module"),
        steps[2].id[-8:]: ("true",),
    }
    make = submit._job
    monkeypatch.setattr(submit, "_job", lambda store, spec: replace(make(store, spec), argv=argv[spec.name]))
    jobs = LocalJobs(LocalExecutor(tmp_path / "logs", slots=3), [job(step) for step in steps], Store(tmp_path))
    while not jobs.idle:
        jobs.poll()
    jobs.close()
    gone, foreign, fine = (step.state() for step in steps)
    assert (gone.name, foreign.name, fine.name) == ("INTERRUPTED", "INTERRUPTED", "PENDING")
    assert gone.reason == "its job could not begin (exit status 127): /nowhere/python: No such file or directory"
    assert foreign.reason.endswith("(exit status 1): ModuleNotFoundError: No module named 'no_such_module'")


def test_a_child_that_dies_at_its_start_leaves_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('the library is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    step = planned(tmp_path / "store", STEP)
    assert Worker(Store(tmp_path / "store")).run([step.id]) == FAILED
    assert step.state().reason == "its process exited with 1: SystemExit: the library is broken"
    assert "the library is broken" in capsys.readouterr().err


def test_a_failed_run_prints_its_reason_and_its_log_has_it(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(execution: Execution) -> Outcome:
        raise StepFailed("loss = nan at step 3")

    kind(run, monkeypatch)
    step = planned(tmp_path, STEP)
    assert exit_status("run", step.id, "--store", str(tmp_path)) == FAILED
    assert f"{step.id}: loss = nan at step 3\n" in capsys.readouterr().err
    assert exit_status("logs", step.id, "--store", str(tmp_path)) == 0
    assert "failed: loss = nan at step 3\n" in capsys.readouterr().out
    assert step.attempts()[-1].log_tail() == [], "which the reason repeats"


def test_a_record_that_is_damaged_while_a_sweep_runs_does_not_end_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    steps = [Step("corpus", {"source": "python_stdlib", "seed": i}) for i in range(3)]
    graph = {step.id: step for step in steps}
    directories = [planned(tmp_path, step) for step in steps]
    saved = save_sweep(store, "s", {"steps": {id: {"kind": "corpus", "label": "", "parents": {}} for id in graph}})
    started: list[list[str]] = []

    class Damaging:
        idle = True

        def poll(self) -> None: ...
        def close(self) -> None:
            (directories[0].path / "done.json").write_text('{"id":')

    def start(jobs: list[JobSpec]) -> Damaging:
        started.append([id for job in jobs for id in job.steps])
        return Damaging()

    local_loop.run(graph, ClusterConfig(), store, saved, start, lambda: None)
    assert [len(ids) for ids in started] == [3, 2, 2]
    state = read_states_while_running(graph, store)[steps[0].id]
    assert state.name == "FAILED"
    assert "done.json" in state.reason


def test_a_reason_is_printed_whatever_the_logs_encoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sweeps.store.console import say

    with (tmp_path / "log").open("w", encoding="ascii") as log:
        say("loss = ∞", log)
    assert (tmp_path / "log").read_text() == "loss = \\u221e\n"


def test_a_job_that_cannot_be_started_leaves_the_others(tmp_path: Path) -> None:
    """Its log cannot be written, say."""
    step = planned(tmp_path, STEP)
    (tmp_path / "logs").write_text("in the way")
    jobs = LocalJobs(LocalExecutor(tmp_path / "logs"), [job(step)], Store(tmp_path))
    while not jobs.idle:
        jobs.poll()
    jobs.close()
    assert "its job could not begin (could not be started: File exists" in step.state().reason
