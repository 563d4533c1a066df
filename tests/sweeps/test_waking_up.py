"""A worker that slept, seemed dead, and wakes up: it notices, does no harm, and its job ends as the step did."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlkv.context import Outcome, StepFailed
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.registry import KINDS
from sweeps.steps.step import Step
from sweeps.store import stepdir
from sweeps.store.stepdir import Claim, StepDir
from sweeps.store.store import Store
from sweeps.worker import heartbeat, rank_worker, supervisor
from sweeps.worker.job_context import JobContext
from sweeps.worker.messages import Answer, Request
from sweeps.worker.supervisor import DONE, INTERRUPTED
from tests.support.processes import eventually
from tests.support.read_back import present
from tests.support.records import record_of
from tests.support.rows import replace_row
from tests.support.workers_here import ChildHere, planned, work, workers_here

GIVEN = Step("corpus", {"source": "text_files"})


@pytest.fixture(autouse=True)
def here() -> Iterator[None]:
    with workers_here():
        yield


@pytest.fixture
def step(tmp_path: Path) -> StepDir:
    return planned(tmp_path, GIVEN)


class Next:
    """The worker of another host that takes the step over."""

    def __init__(self, step: StepDir) -> None:
        self.step = Store(step._root).step(step.id)
        self.claim: Claim | None = None

    def begins(self) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("socket.gethostname", lambda: "elsewhere")
            patched.setattr(stepdir, "stale_seconds", lambda: -1.0)
            patched.setattr(stepdir, "LISTEN_SECONDS", 0.0)
            assert eventually(self._claims)

    def _claims(self) -> bool:
        """False where a beat of the first worker came while this one listened: then it tries again."""
        self.claim = self.step.claim()
        return self.claim is not None

    def ends(self) -> None:
        assert self.claim
        (self.claim.attempt.out / "a").write_text("the next one's")
        assert self.step.publish(self.claim, record_of(self.claim))
        self.claim.attempt.finish("done", "", None)
        self.claim.release()


def sleeping(during: Callable[[], None], monkeypatch: pytest.MonkeyPatch, wakes: BaseException | None = None) -> None:
    """Have the step's computation sleep while something happens, and then end, or find that its files are gone."""

    def run(execution: Execution) -> Outcome:
        (execution.out / "a").write_text("the late one's")
        during()
        if wakes:
            raise wakes
        return Outcome()

    replace_row(monkeypatch, KINDS, "corpus", StepKind(run))


def check(step: StepDir) -> None:
    assert present(step.record()).attempt == 2
    assert (step.out / "a").read_text() == "the next one's"
    assert step.corrupted() is None
    assert step.claims.read() is None
    assert step.state().name == "DONE"
    assert not step.work.exists()


@pytest.mark.parametrize("wakes", [None, FileNotFoundError(2, "No such file"), StepFailed("its files are gone")])
def test_who_wakes_up_once_the_step_is_done_is_done(
    wakes: BaseException | None, step: StepDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    following = Next(step)

    def overtaken() -> None:
        following.begins()
        following.ends()
        step.work.mkdir()  # again, by a training that saves its state

    sleeping(overtaken, monkeypatch, wakes)
    status, printed = work(step, capsys)
    assert (status, printed.split()[-1]) == (DONE, "done")
    check(step)
    assert not step.attempts()[0].out.exists(), "superfluous"


@pytest.mark.parametrize("wakes", [None, FileNotFoundError(2, "No such file"), StepFailed("its files are gone")])
def test_who_wakes_up_while_the_next_is_at_it_waits_for_it(
    wakes: BaseException | None, step: StepDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    following = Next(step)
    sleeping(following.begins, monkeypatch, wakes)
    with monkeypatch.context() as patched:
        patched.setattr(time, "sleep", lambda seconds: following.ends() if seconds else None)
        assert work(step, capsys)[0] == DONE
    check(step)
    assert "took the step over" in present(step.attempts()[0].exit()).reason
    step.drop_leftovers()
    assert not step.attempts()[0].out.exists()


def test_who_wakes_up_after_the_next_one_died_begins_again(
    step: StepDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    following, times = Next(step), iter(range(9))

    def overtaken_once() -> None:
        if next(times) == 0:
            following.begins()
            assert following.claim
            following.claim.release()

    sleeping(overtaken_once, monkeypatch)
    assert work(step, capsys)[0] == DONE
    assert step.corrupted() is None
    assert step.claims.read() is None


class Busy(ChildHere):
    """One that computes until it is killed."""

    def send(self, request: Request) -> None:
        following = Next(self._store.step(request.step))
        following.begins()
        following.ends()

    def answer(self, timeout: float) -> Answer | None:
        time.sleep(0.001)
        return self._answer

    def kill(self) -> None:
        self._answer = Answer(state="vanished", reason="its process was killed", returncode=-signal.SIGKILL)


def test_a_computation_that_nobody_wants_any_more_is_ended(
    step: StepDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "Child", Busy)
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    assert work(step, capsys)[0] == DONE
    check(step)


# Beside the first process of a job


def test_a_process_beside_the_first_goes_back_into_the_queue_when_the_store_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Step("uptrain", {}, {"start": "base-1", "corpus": "corpus-1"})
    step = planned(tmp_path, training)

    def stale(self: StepDir) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(rank_worker, "Child", ChildHere)
    monkeypatch.setattr(StepDir, "record", stale)
    job = JobContext("1", rank=1, ranks=2, local_rank=1, local_ranks=2)
    assert rank_worker.RankWorker(Store(tmp_path), job).run([step.id]) == rank_worker.EXIT_PEER_DIED == INTERRUPTED
