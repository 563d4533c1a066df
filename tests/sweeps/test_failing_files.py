"""Whatever file operation of store and worker fails: no output is lost, nothing is called done that has no record, and
the same line takes the step up again."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mlkv.context import Outcome, StepFailed
from mlkv.files import discard
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.registry import KINDS
from sweeps.steps.step import Step
from sweeps.store import attempt, code, files
from sweeps.store.outside import OUTSIDE_ERRNOS, outside_cause
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store
from sweeps.tracking.supervisor import Mirror
from sweeps.worker import supervisor
from sweeps.worker.supervisor import BLOCKED, DONE, FAILED, INTERRUPTED, STUCK, Worker
from tests.support.failing_files import Failing, failing
from tests.support.read_back import present
from tests.support.rows import replace_row
from tests.support.shell import ROOT
from tests.support.workers_here import know_code, planned, work, workers_here

ERRORS = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EBUSY, errno.EACCES, errno.EROFS, errno.ENOTEMPTY]


@pytest.fixture(scope="module", autouse=True)
def here() -> Iterator[None]:
    with workers_here():
        yield


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Step:
    """A corpus of a few lines, made in milliseconds."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"fox {i} jumps over the lazy dog " * 20)
    values = {
        "source": "text_files",
        "files": [f"{folder}/*.txt"],
        "vocab_size": 300,
        "sequence_length": 16,
        "held_out": 0.4,
        "task_items": 0,
    }
    return Step("corpus", values)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that were computed to the end, in this test; they are light ones, as there are hundreds of them."""
    seen: list[str] = []

    def run(execution: Execution) -> Outcome:
        out, ctx = execution.out, execution.ctx
        (out / "tasks").mkdir()
        for name in ("manifest.json", "tasks/a.jsonl"):
            (out / name).write_text('{"a": 1}')
            ctx.log({"step": 1, "steps": 1})
        (ctx.work / "kept").write_text("1")
        seen.append("corpus")
        return Outcome()

    replace_row(monkeypatch, KINDS, "corpus", StepKind(run))
    return seen


def check(step: StepDir, status: int, printed: str, fault: Failing) -> None:
    """Done is what has a record and its bytes; all else is to be run again."""
    assert (status == DONE) == (step.record() is not None), fault
    assert ("done" in printed) == (status == DONE), (fault, printed)
    if status == DONE:
        assert step.corrupted() is None, fault
    else:
        assert status == INTERRUPTED, fault
        assert step.state().name in ("PENDING", "INTERRUPTED", "LOST"), (fault, step.state())


LATE = ("rename", "replace", "link", "unlink", "mkdir")
"""What has an effect that a lost answer does not undo."""


@pytest.mark.parametrize("late", [False, True])
def test_any_one_operation_of_a_step_may_fail(
    late: bool, given: Step, tmp_path: Path, computed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    only = LATE if late else ()
    with failing(tmp_path / "counted", only=only) as counted:
        assert work(planned(tmp_path / "counted", given), capsys)[0] == DONE
    assert late or any(call.startswith("write ") for call in counted.calls)
    described = next(i for i, call in enumerate(counted.calls) if "replace" in call and ".record.json" in call)
    assert 5 < described < len(counted.calls) - 5
    for at in range(len(counted.calls)):
        step = planned(tmp_path / str(at), given)
        computed.clear()
        with failing(step.path, at=at, error=ERRORS[at % len(ERRORS)], late=late, only=only) as fault:
            status, printed = work(step, capsys)
        check(step, status, printed, fault)
        status, printed = work(step, capsys)
        assert status == DONE, fault
        check(step, status, printed, fault)
        assert len(computed) == 1 or at <= described, fault
        assert [path.name for path in step.path.glob("done*")] == ["done.json"]


def test_a_step_that_cannot_write_its_output_is_interrupted(
    given: Step, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A corpus, as it is."""
    step = planned(tmp_path / "counted", given)
    with failing(step.path / "attempts" / "1" / "out") as counted:
        assert work(step, capsys)[0] == DONE
    assert len(counted.calls) > 10
    for at in range(len(counted.calls)):
        step = planned(tmp_path / str(at), given)
        with failing(step.path / "attempts" / "1" / "out", at=at, error=ERRORS[at % len(ERRORS)]) as fault:
            status, printed = work(step, capsys)
        check(step, status, printed, fault)
    assert work(step, capsys)[0] == DONE


@pytest.mark.parametrize("error", ERRORS)
def test_an_output_that_cannot_be_moved_is_kept_and_published_by_the_next(
    error: int, given: Step, tmp_path: Path, computed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    step = planned(tmp_path, given)
    with failing(step.path / "attempts", at=0, error=error, only=("rename",)):
        status, printed = work(step, capsys)
    assert (status, step.record()) == (INTERRUPTED, None)
    assert "interrupted" in printed
    state = step.state()
    assert state.name == "INTERRUPTED"
    assert errno.errorcode[error] in state.reason
    assert (step.attempts()[0].out / "manifest.json").is_file()
    assert step.leftovers() == [], "pruning leaves it alone"
    assert work(step, capsys)[0] == DONE
    assert computed == ["corpus"]
    assert present(step.record()).attempt == 1
    assert step.corrupted() is None


@pytest.mark.parametrize("place", ["attempts", "in place"])
def test_a_kept_output_that_is_no_longer_what_was_recorded_is_made_again(
    place: str, given: Step, tmp_path: Path, computed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    step = planned(tmp_path, given)
    operation, path = ("rename", "/attempts/") if place == "attempts" else ("link", "done.json")
    with failing(step.path, only=(operation,)) as counted:
        assert work(step, capsys)[0] == DONE
    at = next(i for i, call in enumerate(counted.calls) if path in call)
    step = planned(tmp_path / "again", given)
    with failing(step.path, at=at, error=errno.EIO, only=(operation,)):
        assert work(step, capsys)[0] == INTERRUPTED
    (kept,) = [path for path in (step.out, step.attempts()[0].out) if path.exists()]
    (kept / "manifest.json").write_text("{}")
    assert work(step, capsys)[0] == DONE
    assert len(computed) == 3
    assert step.corrupted() is None


def test_a_job_that_gets_no_further_on_a_full_disk_does_not_go_back_into_the_queue_for_ever(
    given: Step,
    tmp_path: Path,
    computed: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = planned(tmp_path, given)
    statuses, final = [], []
    monkeypatch.setattr(Mirror, "ended", lambda self, claim, given_up=False: final.append(given_up))
    for number in (1, 2, 3, 4):
        with failing(step.path / "attempts" / str(number) / "out", at=0, error=errno.ENOSPC, only=("open",)):
            statuses.append(work(step, capsys)[0])
    assert statuses == [INTERRUPTED, INTERRUPTED, STUCK, STUCK]
    assert final == [False, False, True, True], "what W&B may alert people of"
    assert step.state().name == "INTERRUPTED"
    assert work(step, capsys)[0] == DONE


def test_a_disk_is_not_kept_full_by_an_output_that_never_became_whole(
    given: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So there is room to say how it ended, and for the next attempt."""
    disk: list[Path] = []

    def run(execution: Execution) -> Outcome:
        (execution.out / "half").write_text("1")
        disk.append(execution.out / "half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_json(path: Path, value: Any) -> None:
        if any(half.exists() for half in disk):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        files.write_json(path, value)

    replace_row(monkeypatch, KINDS, "corpus", StepKind(run))
    monkeypatch.setattr(attempt, "write_json", write_json)
    step = planned(tmp_path, given)
    assert work(step, capsys)[0] == INTERRUPTED
    assert step.leftovers() == []
    assert step.state().name == "INTERRUPTED"
    assert "ENOSPC" in step.state().reason


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EINVAL, errno.EIO])
@pytest.mark.parametrize("name", ["out.log", "err.log", "metrics.jsonl"])
def test_a_step_whose_logs_cannot_be_opened_is_interrupted_whatever_the_error(
    name: str, error: int, given: Step, tmp_path: Path, computed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    step = planned(tmp_path, given)
    with failing(step.path / "attempts" / "1" / name, at=0, error=error, only=("open",)) as fault:
        status, printed = work(step, capsys)
    check(step, status, printed, fault)
    assert status == INTERRUPTED
    assert errno.errorcode[error] in step.state().reason
    assert work(step, capsys)[0] == DONE


DAMAGES = ["", '{"host": "he', "null", "[]", "{}", '"text"', "7"]


@pytest.mark.parametrize(
    "name", ["spec.json", "how.json", "claim.json", "done.json", "record.json", "exit.json", "env.json"]
)
@pytest.mark.parametrize("content", DAMAGES)
def test_a_damaged_file_ends_a_worker_in_a_line_or_not_at_all(
    name: str, content: str, tmp_path: Path, given: Step, computed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    step = planned(tmp_path / "store", given)
    step.claim()  # an attempt that died
    step.claim_file.unlink()
    folder = step.path if name in ("spec.json", "how.json", "claim.json", "done.json") else step.path / "attempts" / "1"
    (folder / name).write_text(content)
    store = Store(tmp_path / "store")
    know_code(store)
    status = Worker(store).run([step.id])
    printed = capsys.readouterr()
    if status == DONE:
        assert step.record()
    else:
        ended = present(step.attempts()[-1].exit()).reason if status == FAILED else printed.err.rstrip("\n")
        assert status in (BLOCKED, FAILED)
        assert "\n" not in ended
        assert name in ended


def test_a_failing_step_is_failed_and_not_taken_up(
    given: Step, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = planned(tmp_path, Step("corpus", {**given.slice, "files": ["/nowhere/*.txt"]}))
    assert work(step, capsys)[0] == FAILED
    assert step.state().name == "FAILED"


def raised(do: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011  what libraries raise is theirs to choose
        do()
    return caught.value


def test_causes_from_outside_are_seen_through_what_they_were_turned_into() -> None:
    def turned(number: int) -> Callable[[], None]:
        def do() -> None:
            try:
                raise OSError(number, os.strerror(number), "/data/a.txt")
            except OSError as error:
                raise StepFailed(f"files = a.txt: {error.strerror}") from error

        return do

    stale = os.strerror(errno.ESTALE)
    assert outside_cause(raised(turned(errno.ESTALE))) == f"files = a.txt: {stale}: ESTALE: {stale}: /data/a.txt"
    assert outside_cause(raised(turned(errno.ENOENT))) is None
    assert outside_cause(ValueError("files = *.txt: matches no file")) is None
    assert outside_cause(StepFailed("loss = nan at step 3: training diverged; lower lr or raise warmup")) is None
    elsewhere = {errno.ESHUTDOWN, errno.EHOSTDOWN, errno.ECONNABORTED, errno.EUCLEAN, errno.EBADMSG, errno.EXDEV}
    assert elsewhere <= OUTSIDE_ERRNOS, "Lustre, SMB, FUSE and XFS say so of a server or a disk in trouble"
    own = {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EINVAL, errno.ENOMEM, errno.ENETUNREACH, errno.ECONNREFUSED}
    assert own.isdisjoint(OUTSIDE_ERRNOS), "wrong names, too little memory, a node without the internet"


def test_a_full_disk_is_seen_whichever_library_writes(tmp_path: Path) -> None:
    import resource

    import numpy as np
    import torch
    from safetensors.torch import save_file

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writers: list[Callable[[], object]] = [
        lambda: torch.save(torch.zeros(10**5), tmp_path / "torch"),
        lambda: save_file({"x": torch.zeros(10**5)}, tmp_path / "safetensors"),
        lambda: np.zeros(10**5).tofile(tmp_path / "numpy"),
        lambda: (tmp_path / "python").write_bytes(bytes(10**5)),
    ]
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        errors = [raised(write) for write in writers]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [error for error in errors if not outside_cause(error)] == []


def test_a_job_whose_log_cannot_be_written_ends_with_its_own_status(tmp_path: Path, given: Step) -> None:
    command = [sys.executable, "-m", "sweeps.worker", str(tmp_path), given.id]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=full, stderr=full, timeout=300, check=False
        )
    assert ended.returncode == supervisor.BLOCKED


# Files and folders


@pytest.mark.parametrize("error", [*ERRORS, errno.EPERM])
@pytest.mark.parametrize("name", ["folder", "file", "nothing"])
def test_what_cannot_be_removed_stays_and_is_never_half_there(error: int, name: str, tmp_path: Path) -> None:
    for at in range(20):
        home = tmp_path / str(at)
        (home / "folder" / "below").mkdir(parents=True)
        for path in (home / "file", home / "folder" / "a", home / "folder" / "below" / "b"):
            path.write_text("1")
        with failing(home, at=at, error=error) as fault:
            gone = discard(home / name)
        assert not (gone and (home / name).exists())
        if (home / name).is_dir():
            assert sorted(path.name for path in (home / name).rglob("*")) == ["a", "b", "below"], fault
        if len(fault.calls) <= at:
            break  # nothing failed
    assert gone


@pytest.mark.parametrize("late", [False, True])
def test_a_file_is_written_whole_or_not_and_nothing_is_left_beside(late: bool, tmp_path: Path) -> None:
    for write in (files.write_atomic, files.write_once):
        path = tmp_path / write.__name__ / "a"
        files.write_json(path, 1) if write is files.write_atomic else path.parent.mkdir()
        with failing(path.parent) as counted:
            write(path, "2")
        for at in range(len(counted.calls)):
            path.unlink()
            with failing(path.parent, at=at, error=errno.EIO, late=late), suppress(OSError):
                write(path, "2")
            assert not path.exists() or json.loads(path.read_text()) == 2
            path.write_text("2")
            beside = [each for each in path.parent.iterdir() if each != path]
            assert len(beside) <= 1, "only what could not be removed"
            for each in beside:
                each.unlink()


def test_a_link_that_was_made_although_its_answer_got_lost_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS asks again, and is told that the file exists."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert files.write_once(tmp_path / "a", "ours")
    monkeypatch.setattr(os, "link", link)
    assert not files.write_once(tmp_path / "a", "theirs")
    assert (tmp_path / "a").read_text() == "ours"


# The copy of the code


@pytest.fixture
def little_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "_IMPORTED", ("slurm",))


def test_a_copy_of_the_code_is_whole_or_not_there(little_code: None, tmp_path: Path) -> None:
    with failing(tmp_path, only=("rename",)) as counted:
        whole = Store(tmp_path).snapshot_code()
    assert len(counted.calls) == 1
    names = sorted(path.name for path in whole.rglob("*"))
    for error in ERRORS:
        store = Store(tmp_path / str(error))
        with failing(store.root, at=0, error=error, only=("rename",)), pytest.raises(OSError, match=os.strerror(error)):
            store.snapshot_code()
        assert list((store.root / "code").iterdir()) == []
        assert sorted(path.name for path in store.snapshot_code().rglob("*")) == names


def test_many_copy_the_code_at_once(little_code: None, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(lambda _: Store(tmp_path).snapshot_code(), range(8)))
    assert len(copies) == 1
    assert [path.name for path in (tmp_path / "code").iterdir()] == [path.name for path in copies]
