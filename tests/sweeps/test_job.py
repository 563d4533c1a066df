"""What a worker makes of its job's environment, of deaths, and of what was edited after submission."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path

import psutil
import pytest

from mlkv.context import MetricRow, Outcome, StepFailed
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.registry import KINDS
from sweeps.steps.step import Step
from sweeps.store.attempt import Attempt
from sweeps.store.schema import Environment, Runtime, Spec
from sweeps.store.store import Store
from sweeps.worker import child_main
from sweeps.worker.child_process import Child
from sweeps.worker.frozen import CODE
from sweeps.worker.job_context import JobContext, out_of_memory_kills
from sweeps.worker.messages import Answer, Request
from sweeps.worker.supervisor import BLOCKED, FAILED, Worker, attempts_without_progress
from tests.support.processes import PATIENCE, eventually
from tests.support.rows import replace_row
from tests.support.shell import ROOT
from tests.support.workers_here import planned as planned_here
from tests.support.workers_here import work, workers_here

TASK = {
    "MLKV_QUEUED": "1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_ARRAY_JOB_ID": "12",
    "SLURM_ARRAY_TASK_ID": "5",
    "SLURM_JOB_ID": "17",
    "SLURM_RESTART_COUNT": "2",
}


def test_a_tasks_place_comes_from_slurm() -> None:
    job = JobContext.current(TASK)
    assert job == JobContext("12_5", run=2, rank=3, ranks=4, local_rank=1, local_ranks=2)
    assert job.nodes == 2
    assert job.group("n1", 4000) == {
        "MASTER_ADDR": "n1",
        "MASTER_PORT": "4000",
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
    }


def test_somebody_elses_job_is_not_ours() -> None:
    assert JobContext.current({k: v for k, v in TASK.items() if k != "MLKV_QUEUED"}) == JobContext()
    environment = Environment(host="n", device="cpu", versions={}, job="12_5", run=2)
    assert not JobContext().same_run(replace(environment, job=None, run=None))
    assert JobContext.current(TASK).same_run(environment)
    assert not JobContext.current(TASK).same_run(replace(environment, run=1))


@pytest.mark.parametrize(
    ("line", "file", "text", "kills"),
    [
        ("0::/job\n", "job/memory.events", "low 0\noom 4\noom_kill 3\n", 3),
        ("5:cpu:/x\n4:memory:/job\n", "memory/job/memory.oom_control", "under_oom 0\noom_kill 1\n", 1),
        ("0::/job\n", "elsewhere", "oom_kill 3\n", 0),
    ],
)
def test_kills_for_want_of_memory(line: str, file: str, text: str, kills: int, tmp_path: Path) -> None:
    (tmp_path / "proc").write_text(line)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert out_of_memory_kills(tmp_path / "proc", tmp_path) == kills
    assert out_of_memory_kills(tmp_path / "none", tmp_path) == 0


def attempt(folder: Path, number: int, step: int, *, own: bool | None) -> Attempt:
    """One that logged up to `step`, and ended by itself (`own`), when told to, or without a word (None)."""
    made = Attempt(folder / str(number))
    made.path.mkdir()
    made.metrics_file.write_text(json.dumps({"step": step}) + "\n" if step else "")
    if own is not None:
        made.finish("interrupted", "", None, own)
    return made


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([(0, None)], 1),
        ([(0, True), (0, True), (0, None)], 3),
        ([(10, True), (20, True), (30, None)], 0),
        ([(30, True), (20, True), (30, None)], 2),
        ([(30, False), (20, False), (30, None)], 1),
        ([(0, True), (0, None), (0, None)], 1),
    ],
)
def test_attempts_that_get_no_further_are_counted(
    history: list[tuple[int, bool | None]], expected: int, tmp_path: Path
) -> None:
    attempts = [attempt(tmp_path, i + 1, step, own=own) for i, (step, own) in enumerate(history)]
    assert attempts_without_progress(attempts) == expected


SLEEPER = Spec(kind="corpus", schema=1, slice={"source": "text_files"}, parents={}, pinned={})


def worker(store: Store, step: str, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "sweeps.worker", str(store.root), step]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def planned(store: Store, spec: Spec, id: str) -> str:
    store.step(id).write_spec(spec, Runtime())
    return id


def test_a_spec_that_was_edited_fails_its_step(tmp_path: Path) -> None:
    store = Store(tmp_path)
    step = planned(store, SLEEPER, "corpus-0123456789abcdef")
    out, _ = (process := worker(store, step)).communicate(timeout=PATIENCE)
    assert process.returncode == FAILED, out
    assert "spec.json was edited" in store.step(step).state().reason


def test_other_code_than_was_submitted_fails_the_step(tmp_path: Path) -> None:
    store = Store(tmp_path)
    step = planned(store, SLEEPER, "corpus-0123456789abcdef")
    out, _ = (process := worker(store, step, **{CODE: "feedfeedfeedfeed"})).communicate(timeout=PATIENCE)
    assert process.returncode == FAILED, out
    assert "not the snapshot" in store.step(step).state().reason


def test_a_job_whose_parent_is_not_done_is_blocked(tmp_path: Path) -> None:
    """However SLURM came to start it: a dependency on a job that it has forgotten counts as satisfied."""
    store = Store(tmp_path)
    step = planned(store, replace(SLEEPER, parents={"corpus": "corpus-1"}), "uptrain-0123456789abcdef")
    out, _ = (process := worker(store, step)).communicate(timeout=PATIENCE)
    assert (process.returncode, store.step(step).attempts()) == (BLOCKED, []), out
    assert "waits for corpus-1" in out


def test_a_child_that_dies_again_and_again_fails_its_step(tmp_path: Path) -> None:
    given = Step("corpus", {"source": "python_stdlib"})
    store = Store(tmp_path / "store")
    step = planned(store, given.spec, given.id)
    process = worker(store, step)

    def attempt_computes(number: int) -> bool:
        children = psutil.Process(process.pid).children()
        return len(store.step(step).attempts()) == number and bool(children)

    for number in (1, 2, 3):
        assert eventually(partial(attempt_computes, number))
        psutil.Process(process.pid).children()[0].send_signal(signal.SIGKILL)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == FAILED, out
    assert store.step(step).state().reason == "3 attempts in a row got no further: its process was killed by SIGKILL"


_OWN_SIGNALS = {
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGFPE",
    "SIGSEGV",
    "SIGPIPE",
    "SIGALRM",
    "SIGVTALRM",
    "SIGPROF",
    "SIGSYS",
}


def test_a_child_that_others_ended_is_interrupted_and_one_that_crashed_has_failed(tmp_path: Path) -> None:
    """Whatever the signal: a closed terminal, a limit of the shell or the queue, a power failure."""
    worker = Worker(Store(tmp_path))

    def state_after(code: int) -> str:
        return worker._answer_of_dead_child(Answer(state="vanished", returncode=code), 0, False).state

    for number in signal.valid_signals():
        name = number.name if isinstance(number, signal.Signals) else ""
        assert state_after(-number) == ("failed" if name in _OWN_SIGNALS else "interrupted"), name or number
    assert state_after(1) == "failed"


@pytest.mark.parametrize(("number", "named"), [(signal.SIGXCPU, "SIGXCPU"), (signal.SIGRTMIN + 3, "signal 37")])
def test_a_signal_is_named_where_it_has_a_name(number: int, named: str, tmp_path: Path) -> None:
    child = Child(Store(tmp_path))
    child._process = subprocess.Popen(["kill", f"-{int(number)}", "0"], start_new_session=True, text=True)
    child._answers.put("")
    answer = child.answer(timeout=PATIENCE)
    assert answer == Answer(state="vanished", reason=f"its process was killed by {named}", returncode=-number)


@pytest.mark.parametrize(
    ("row", "message"),
    [(MetricRow("acc", math.nan, 0.1, 3), "value = nan"), (MetricRow("acc", 0.5, math.inf, 3), "stderr = inf")],
)
def test_a_metric_that_is_not_finite_fails_its_step(
    row: MetricRow, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Step("evaluate", {"task": "mine"})
    replace_row(monkeypatch, KINDS, "evaluate", StepKind(lambda _: Outcome([row])))
    store = Store(tmp_path)
    planned(store, given.spec, given.id)
    request = Request(step=given.id, attempt=1)
    with pytest.raises(StepFailed, match=f"^metric acc: {message} is not finite$"):
        child_main._run(store, request, attempt(tmp_path, 1, 0, own=None), StringIO())


@pytest.mark.parametrize("settings", ["evaluate.batch_size=auto", ""])
def test_a_step_that_finds_no_memory_says_what_takes_less(
    settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(execution: Execution) -> Outcome:
        raise MemoryError("the cache alone needs 9 bytes")

    replace_row(monkeypatch, KINDS, "evaluate", StepKind(run, saves_memory=settings))
    with workers_here():
        step = planned_here(tmp_path, Step("evaluate", {"task": "mine"}))
        assert work(step, capsys)[0] == FAILED
    advice = f"; it takes less with {settings}" if settings else ""
    assert step.state().reason == f"out of memory: the cache alone needs 9 bytes{advice}"
