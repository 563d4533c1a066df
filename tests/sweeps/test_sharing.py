"""A store that several people use: what one writes the other may read, and write where the store's group may."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlkv.context import Outcome
from mlkv.files import share
from sweeps.steps.kind import Execution, StepKind
from sweeps.steps.registry import KINDS
from sweeps.steps.step import Step
from sweeps.store.outside import describe_error
from sweeps.store.store import Store
from sweeps.worker.supervisor import DONE, INTERRUPTED, Worker
from tests.support.read_back import present
from tests.support.records import save_sweep
from tests.support.rows import replace_row
from tests.support.users import as_user
from tests.support.workers_here import know_code, planned, workers_here

ALICE, BOB, GROUP = 61_001, 61_002, 61_100
STEPS = [Step("corpus", {"source": "python_stdlib", "seed": i}) for i in range(3)]
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")


def by(user: int, umask: int, do: Callable[[], object]) -> object:
    """What `do` returns in a process of another user whose only group is the store's."""
    return as_user(user, GROUP, do, umask)


@pytest.fixture
def shared() -> Iterator[Path]:
    """The folder for a store that a group writes to; outside pytest's, which other users may not enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (store := folder / "store").mkdir()
    os.chown(store, ALICE, GROUP)
    store.chmod(0o2775)
    yield store
    shutil.rmtree(folder)


def _leave_weights(execution: Execution) -> Outcome:
    """As safetensors leaves them: through a temporary file that its owner alone can read."""
    (execution.out / "tasks").mkdir()
    weights = execution.out / "model.safetensors"
    os.close(os.open(weights, os.O_CREAT | os.O_WRONLY, 0o600))
    execution.ctx.log({"step": 1, "steps": 1})
    return Outcome()


@pytest.fixture
def working(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    replace_row(monkeypatch, KINDS, "corpus", StepKind(_leave_weights))
    with workers_here():
        yield


def run(store: Path, step: Step, plan: bool = True) -> int:
    made = Store(store)
    know_code(made)
    if plan:
        planned(store, step)
    return Worker(made).run([step.id])


def modes(root: Path, user: int) -> set[str]:
    """The permissions of what a user owns below a folder."""
    found = [path.lstat() for path in root.rglob("*")]
    return {stat.filemode(each.st_mode) for each in found if each.st_uid == user}


@as_root
def test_two_users_work_in_a_store_of_their_group(shared: Path, working: None) -> None:
    step = Store(shared).step(STEPS[0].id)
    assert by(ALICE, 0o002, lambda: run(shared, STEPS[0])) == DONE
    assert modes(shared, ALICE) == {"drwxrwsr-x", "-rw-rw-r--"}

    def alice_leaves_off() -> str:
        directory = planned(shared, STEPS[1])
        assert directory.claim()
        (directory.work / "checkpoint-1").mkdir()
        Store(shared).note_jobs([])
        save_sweep(Store(shared), "s", {"steps": {}})
        return directory.id

    def bob_goes_on() -> list[object]:
        store = Store(shared)
        saved = store.sweep("s")
        saved.request_cancel()
        saved.clear_cancel()
        step.set_aside("to be made again")
        return [run(shared, each) for each in STEPS] + [step.corrupted(), save_sweep(store, "s", {"steps": {}}).number]

    by(ALICE, 0o002, alice_leaves_off)
    assert by(BOB, 0o002, bob_goes_on) == [DONE, DONE, DONE, None, 1]
    assert modes(shared, BOB) == {"drwxrwsr-x", "-rw-rw-r--"}
    assert present(Store(shared).step(STEPS[1].id).record()).attempt == 2
    assert by(ALICE, 0o002, lambda: Store(shared).step(STEPS[2].id).prune()) is None


@as_root
def test_where_a_group_may_not_write_the_line_says_whose_it_is_and_what_to_do(
    shared: Path, working: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert by(ALICE, 0o022, lambda: run(shared, STEPS[0])) == DONE
    assert by(BOB, 0o002, lambda: Store(shared).step(STEPS[0].id).corrupted()) is None, "all may read"
    by(ALICE, 0o022, lambda: planned(shared, STEPS[1]).id)
    capfd.readouterr()
    assert by(BOB, 0o002, lambda: run(shared, STEPS[1], plan=False)) == INTERRUPTED
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    place = Store(shared).step(STEPS[1].id).path
    assert f"; {place} is user {ALICE}'s, drwxr-sr-x; to share a store, its owner runs `chmod -R g+rwX` on it" in line
    assert "`umask 002`" in line


@as_root
def test_a_store_closed_to_others_is_named_with_its_owner(shared: Path) -> None:
    shared.chmod(0o700)

    def why() -> str:
        try:
            Store.open(shared)
        except ValueError as error:
            return str(error)
        return "opened"

    assert str(by(BOB, 0o002, why)).startswith(
        f"store = {shared}: cannot be written (Permission denied; {shared} is user {ALICE}'s, drwx------; to share"
    )


def test_files_are_as_open_as_the_folder_they_lie_in(tmp_path: Path) -> None:
    for mode, file, below in ((0o755, 0o644, 0o755), (0o2775, 0o664, 0o2775), (0o700, 0o600, 0o700)):
        folder = tmp_path / oct(mode)
        (folder / "below").mkdir(parents=True, mode=0o700)
        for path in (folder / "weights", folder / "below" / "weights"):
            os.close(os.open(path, os.O_CREAT, 0o600))
        (folder / "link").symlink_to("/nowhere")
        folder.chmod(mode)
        share(folder)
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("weights")} == {file}
        assert stat.S_IMODE((folder / "below").stat().st_mode) == below


def test_only_a_refusal_names_an_owner(tmp_path: Path) -> None:
    missing = tmp_path / "a" / "b"
    assert describe_error(OSError(errno.EIO, "broken", str(missing))) == f"EIO: broken: {missing}"
    own = describe_error(OSError(errno.EACCES, "Permission denied", str(missing)))
    assert own.endswith(f"; `chmod u+rwX {tmp_path}`")
    assert "(" not in own, "it stands in parentheses where the sentence around it names the place"
