"""Who runs a step: a living claim is its holder's, a dead one is taken over, and who wakes up too late does no harm."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeps.store import claim as claims
from sweeps.store import files, host, stepdir
from sweeps.store.attempt import Attempt
from sweeps.store.stepdir import Claim, StepDir
from sweeps.store.store import Store
from sweeps.store.typed_json import as_json
from sweeps.worker import heartbeat
from sweeps.worker.heartbeat import Heartbeat
from tests.support.processes import eventually
from tests.support.read_back import present
from tests.support.records import record_of

ID = "corpus-0123456789abcdef"


@pytest.fixture
def step(tmp_path: Path) -> StepDir:
    return Store.open(tmp_path).step(ID)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this host that lives."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def identity(pid: int, **changes: Any) -> dict[str, Any]:
    """A claim as that process would have written it."""
    started = psutil.Process(pid).create_time() if psutil.pid_exists(pid) else 0.0
    its = {"pid": pid, "started": started, "ticks": host._start_ticks(pid), "token": "x"}
    return as_json(host.this_process()) | its | changes


def old(claim: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The same as older code wrote it."""
    return {key: claim[key] for key in ("host", "pid", "started")} | changes


def hold(step: StepDir, claim: dict[str, Any], seconds_ago: float = 0.0) -> None:
    """The step is claimed so, and its heartbeat was last heard then."""
    taken = step.claim()
    assert taken
    taken.release()
    files.write_json(step.claim_file, claim)
    then = time.time() - seconds_ago
    for path in (step.claim_file, taken.attempt.path / "heartbeat"):
        os.utime(path, (then, then))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepdir, "LISTEN_SECONDS", 0.0)


def judged(step: StepDir) -> str:
    """The step's state, which `claim` has to agree with."""
    name = step.state().name
    taken = step.claim()
    assert (taken is None) == (name == "RUNNING")
    return name


HOUR = 3600.0


@pytest.mark.parametrize("shift", [-HOUR, -1.0, 1.0, HOUR])
def test_a_living_claim_stays_so_when_the_clock_steps(
    shift: float, step: StepDir, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(step, identity(sleeper.pid), seconds_ago=HOUR)
    started = host._started
    monkeypatch.setattr(host, "_started", lambda pid: (started(pid) or 0.0) + shift)
    assert judged(step) == "RUNNING"


def test_the_claim_of_an_ended_process_is_free_at_once(step: StepDir) -> None:
    for claim in (identity(dead(), ticks=1), old(identity(dead()), started=1.0)):
        hold(step, claim)
        assert judged(step) == "LOST"
        step.claim_file.unlink()


def test_another_process_with_the_same_number_is_not_the_holder(
    step: StepDir, sleeper: subprocess.Popen[bytes]
) -> None:
    claim = identity(sleeper.pid)
    hold(step, claim | {"ticks": claim["ticks"] - 1})
    assert judged(step) == "LOST"


@pytest.mark.parametrize("elsewhere", [{"host": "n2"}, {"boot": "another"}, {"namespace": "pid:[1]"}])
@pytest.mark.parametrize("seconds_ago", [0.0, HOUR])
def test_from_elsewhere_the_heartbeat_decides(elsewhere: dict[str, str], seconds_ago: float, step: StepDir) -> None:
    """Another host, another boot of this one, and a container of the same name: their process ids say nothing here."""
    hold(step, identity(dead(), ticks=1, **elsewhere), seconds_ago)
    assert judged(step) == ("LOST" if seconds_ago else "RUNNING")


@pytest.mark.parametrize(
    ("shift", "seconds_ago", "expected"),
    [
        (0.0, HOUR, "RUNNING"),
        (1.0, 0.0, "RUNNING"),
        (HOUR, 0.0, "RUNNING"),
        (1.0, HOUR, "LOST"),
    ],
)
def test_claims_of_older_code_are_judged_by_start_or_heartbeat(
    shift: float, seconds_ago: float, expected: str, step: StepDir, sleeper: subprocess.Popen[bytes]
) -> None:
    claim = identity(sleeper.pid)
    hold(step, old(claim, started=claim["started"] + shift), seconds_ago)
    assert judged(step) == expected


def test_older_code_reads_our_claims(step: StepDir) -> None:
    assert step.claim()
    written = json.loads(step.claim_file.read_text())
    assert written["pid"] == os.getpid()
    assert written["started"] == pytest.approx(psutil.Process().create_time(), abs=0.5)


@pytest.mark.parametrize("alive", [True, False])
def test_a_claim_whose_last_beat_looks_old_is_listened_to(
    alive: bool, step: StepDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that was set forward by an hour ages the last beat of a living holder, and its next one comes."""
    hold(step, identity(1, host="n2"), seconds_ago=HOUR)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if alive:
            step.attempts()[-1].beat()

    monkeypatch.setattr(time, "sleep", sleep)
    assert (step.claim() is None) == alive
    assert len(waited) == 1


@pytest.mark.parametrize("earlier", [False, True])
def test_a_claim_is_alive_before_its_first_heartbeat(earlier: bool, step: StepDir) -> None:
    """Another host may look between the two, or be shown an old listing of the attempts."""
    if earlier:
        hold(step, identity(dead(), ticks=1), seconds_ago=HOUR)
    step.path.mkdir(parents=True, exist_ok=True)
    files.write_json(step.claim_file, identity(1, host="n2"))
    assert step.claim() is None


def test_a_store_that_can_only_be_read_is_judged_all_the_same(step: StepDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: Path) -> float:
        raise PermissionError(13, "Permission denied")

    hold(step, identity(1, host="n2"))
    monkeypatch.setattr(stepdir, "file_clock", refuse)
    assert step.state().name == "RUNNING"


def test_the_file_clock_serves_many_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    """Host names and process ids of containers may be the same."""
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(100):
                assert abs(files.file_clock(tmp_path) - time.time()) < HOUR
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert list(tmp_path.iterdir()) == []


# Losing it


def taken_over(step: StepDir, monkeypatch: pytest.MonkeyPatch) -> tuple[Claim, Claim]:
    """The claim of a holder that seemed dead, and that of the next."""
    first = step.claim()
    assert first
    with monkeypatch.context() as patched:
        patched.setattr("socket.gethostname", lambda: "elsewhere")
        patched.setattr(stepdir, "stale_seconds", lambda: -1.0)
        second = step.claim()
    assert second
    return first, second


def test_who_lost_a_claim_notices_and_leaves_the_next_ones_alone(
    step: StepDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = taken_over(step, monkeypatch)
    assert (first.holds(), second.holds()) == (False, True)
    first.release()
    assert second.holds()
    second.release()
    assert not step.claim_file.exists()
    assert sorted(path.name for path in step.path.iterdir()) == ["attempts", "work"]


def test_a_claim_that_comes_in_between_goes_back(step: StepDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is about to be removed was read before; what is there meanwhile is another's."""
    first, second = taken_over(step, monkeypatch)
    monkeypatch.setattr(claims.ClaimFile, "read", lambda self: first._holder)
    first.release()
    monkeypatch.undo()
    assert second.holds()
    assert list(step.path.glob(".claim*")) == []


def test_a_claim_that_vanished_is_taken_again_unless_the_step_is_done(step: StepDir) -> None:
    claim = step.claim()
    assert claim
    step.claim_file.unlink()
    assert claim.holds()
    assert step.state().name == "RUNNING"
    assert claim.step.publish(claim, record_of(claim))
    step.claim_file.unlink()
    assert not claim.holds()
    assert not step.claim_file.exists()


def test_a_claim_that_was_released_is_not_taken_again(step: StepDir) -> None:
    """By a heartbeat that hung on the file server until then."""
    claim = step.claim()
    assert claim
    claim.release()
    assert not claim.holds()
    assert not step.claim_file.exists()


def test_many_look_at_once_whether_a_claim_that_vanished_is_held(step: StepDir) -> None:
    claim = step.claim()
    assert claim
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            step.claim_file.unlink()
            assert all(pool.map(lambda _: claim.holds(), range(8)))


def test_a_claim_that_cannot_be_read_is_believed_in(step: StepDir, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = step.claim()
    assert claim

    def stale(self: claims.ClaimFile) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(claims.ClaimFile, "read", stale)
    assert claim.holds()


def test_a_claim_that_could_not_be_removed_does_not_keep_its_own_process_out(
    step: StepDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = step.claim()
    assert claim
    assert step.claim() is None

    def busy(*paths: object) -> None:
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", busy)
        claim.release()
    assert step.claim_file.exists()
    assert step.state().name == "LOST"
    assert step.claim()


def test_the_late_ones_output_is_not_published_and_the_next_ones_is(
    step: StepDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = taken_over(step, monkeypatch)
    (first.attempt.out / "a").write_text("first")
    assert not step.publish(first, record_of(first))
    assert step.record() is None
    (second.attempt.out / "a").write_text("second")
    assert step.publish(second, record_of(second))
    assert (step.out / "a").read_text() == "second"
    assert step.corrupted() is None


def test_what_falls_asleep_between_output_and_record_is_published_by_the_next(
    step: StepDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first moves its output and sleeps; whoever comes finds output and record-to-be, and needs no third."""
    first = step.claim()
    assert first
    (first.attempt.out / "a").write_text("first")
    write = step._publish_record

    def sleeps(attempt: Attempt) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("socket.gethostname", lambda: "elsewhere")
            patched.setattr(stepdir, "stale_seconds", lambda: -1.0)
            assert Store(step._root).step(ID).claim() is None
        write(attempt)

    monkeypatch.setattr(step, "_publish_record", sleeps)
    assert step.publish(first, record_of(first))
    assert present(step.record()).attempt == 1
    assert step.corrupted() is None


# The heartbeat


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)


def test_it_goes_on_while_its_holder_is_busy(quick: None, step: StepDir) -> None:
    claim = step.claim()
    assert claim
    os.utime(claim.attempt.path / "heartbeat", (0, 0))
    with Heartbeat(claim) as beating:
        assert eventually(lambda: claim.attempt.last_beat() > 0, 60, 0.01)
        assert not beating.claim_is_lost


def test_it_survives_a_file_server_that_does_not_answer(
    quick: None, step: StepDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = step.claim()
    assert claim
    tries: list[int] = []

    def fails() -> None:
        tries.append(1)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(claim.attempt, "beat", fails)
    with Heartbeat(claim) as beating:
        assert eventually(lambda: len(tries) > 2, 60, 0.01)
        assert not beating.claim_is_lost


def test_it_notices_that_another_worker_took_over(quick: None, step: StepDir, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = taken_over(step, monkeypatch)
    with Heartbeat(first) as beating:
        assert eventually(lambda: beating.claim_is_lost, 60, 0.01)
