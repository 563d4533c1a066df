"""Children made by fork: whom the server serves, how they end, and that what they compute is what others compute."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest

from slurm.local import LocalExecutor
from slurm.resources import Resources
from sweeps.dispatch.grouping import JobSpec
from sweeps.dispatch.server_process import ServerProcess
from sweeps.steps.registry import KINDS
from sweeps.store.code import ROOT
from sweeps.store.errors import UserError
from sweeps.store.store import Store
from sweeps.worker.environment import computing
from sweeps.worker.fork_server import seed_anew
from sweeps.worker.forked_process import ADDRESS, ForkedProcess, ForkRequest, address_of
from tests.support.faults import SMALL, attempts, steps_done
from tests.support.processes import PATIENCE, alive, eventually
from tests.support.read_back import present
from tests.support.shell import Shell


def surroundings() -> dict[str, str]:
    """The environment of all tests here: pytest tells each its name."""
    return {name: value for name, value in computing().items() if name != "PYTEST_CURRENT_TEST"}


def request(store: Path, **changes: object) -> ForkRequest:
    """What a supervisor asks for, from this folder; it has to import a module that says so."""
    made = ForkRequest(store=str(store), modules=["noted"], environment=surroundings(), folder=os.getcwd())
    return replace(made, **changes)  # type: ignore[arg-type]


def job(kind: str, *, waits: bool = False, resources: Mapping[str, Any] | None = None) -> JobSpec:
    id = f"{kind}-{secrets.token_hex(4)}"
    return JobSpec(id, kind, (id,), ("another",) if waits else (), (), Resources(**resources or {}))


def server_for(jobs: Sequence[JobSpec], folder: Path) -> ServerProcess | None:
    """With four cores and four jobs at a time."""
    executor = LocalExecutor(folder, slots=4, cores=4, gpus=[])
    return ServerProcess.of_jobs(jobs, Store(folder), executor.environment_of, ROOT, folder)


Start = Callable[[ForkRequest], ForkedProcess | None]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with modules to import, which is on the path of all that these tests start."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "noted.py").write_text(
        f'with open({str(folder / "log")!r}, "a") as log:\n    print("imported", file=log)\n'
    )
    (folder / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(folder))
        yield folder


def starter(server: ServerProcess, folder: Path) -> Start:
    def start(wanted: ForkRequest) -> ForkedProcess | None:
        """With its output in a file, and answers to nobody."""
        with (folder / "out").open("ab") as out:
            files = [out.fileno(), out.fileno(), out.fileno()]
            return ForkedProcess.start(wanted, server.variables[ADDRESS], files, lambda: False)

    return start


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(["noted"], surroundings(), home / "server" / "fork_server.log")
    yield server
    server.close()


@pytest.fixture
def start(server: ServerProcess, home: Path) -> Start:
    return starter(server, home)


def started(start: Start, wanted: ForkRequest) -> ForkedProcess:
    process = start(wanted)
    assert process
    return process


def test_children_share_one_import_and_nothing_else(home: Path, start: Start, tmp_path: Path) -> None:
    of_job = [request(tmp_path, environment=surroundings() | {"MLKV_LOCAL_JOB": name}) for name in ("one", "two")]
    one, two = (started(start, wanted) for wanted in of_job)
    assert (home / "log").read_text() == "imported\n"
    assert len({os.getsid(0), os.getsid(one.pid), os.getsid(two.pid)}) == 3
    assert one.poll() is None
    assert one.resident_bytes() >= psutil.Process(one.pid).memory_info().rss
    for process in (one, two):
        process.stdin.close()
        assert process.wait() == 0


def test_other_surroundings_are_not_served(start: Start, tmp_path: Path) -> None:
    assert start(request(tmp_path, environment=surroundings() | {"OMP_NUM_THREADS": "77"})) is None
    assert start(request(tmp_path, folder="/")) is None
    assert start(request(tmp_path, environment={k: v for k, v in surroundings().items() if k != "PATH"})) is None


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_signal_that_ends_a_child_is_reported(number: signal.Signals, start: Start, tmp_path: Path) -> None:
    process = started(start, request(tmp_path))
    psutil.Process(process.pid).send_signal(number)
    assert process.wait() == -number
    process.kill()  # it is known to be gone


def test_the_end_of_a_supervisor_ends_its_child_alone(start: Start, tmp_path: Path) -> None:
    gone, stays = (started(start, request(tmp_path)) for _ in range(2))
    gone._connection.close()  # what the kernel does for a supervisor that was killed
    assert eventually(lambda: not alive(gone.pid))
    assert alive(stays.pid)
    stays.kill()
    assert stays.wait() == -signal.SIGKILL


def test_children_end_with_a_server_that_dies_and_later_ones_are_not_made(home: Path, tmp_path: Path) -> None:
    server = ServerProcess(["noted"], surroundings(), tmp_path / "fork_server.log")
    process = started(start := starter(server, home), request(tmp_path))
    server._process.kill()
    assert process.wait() == -signal.SIGKILL
    assert eventually(lambda: not alive(process.pid))
    assert start(request(tmp_path)) is None
    server.close()


def test_a_server_without_its_sweep_ends_with_its_last_child(home: Path, tmp_path: Path) -> None:
    server = ServerProcess([], surroundings(), tmp_path / "fork_server.log")
    process = started(start := starter(server, home), request(tmp_path))
    assert server._process.stdin
    server._process.stdin.close()  # what the kernel does for a sweep that was killed
    assert eventually(lambda: start(request(tmp_path)) is None)
    assert server._process.poll() is None
    assert process.poll() is None
    process.stdin.close()
    assert process.wait() == 0
    assert server._process.wait(PATIENCE) == 0


def test_no_process_is_forked_beside_a_thread(home: Path, tmp_path: Path) -> None:
    server = ServerProcess(["threaded"], surroundings(), tmp_path / "fork_server.log")
    assert starter(server, home)(request(tmp_path, modules=["threaded"])) is None
    assert server._process.wait(PATIENCE) == 1
    assert "threaded: 1 threads outlast a fork" in (tmp_path / "fork_server.log").read_text()
    server.close()


def test_a_supervisor_that_is_stopped_waits_no_longer(home: Path, tmp_path: Path) -> None:
    server = ServerProcess([], surroundings(), tmp_path / "fork_server.log")
    server._process.send_signal(signal.SIGSTOP)
    with (tmp_path / "out").open("ab") as out:
        files = [out.fileno()] * 3
        assert ForkedProcess.start(request(tmp_path), server.variables[ADDRESS], files, lambda: True) is None
    server._process.kill()
    server.close()


def test_which_jobs_have_a_server() -> None:
    mine = {ADDRESS: "there", "CUDA_VISIBLE_DEVICES": "", "MLKV_LOCAL_RANKS": "1"}
    assert address_of(mine) == "there"
    for name, value in (("CUDA_VISIBLE_DEVICES", "0"), ("MLKV_LOCAL_RANKS", "2")):
        assert address_of(mine | {name: value}) is None
    for name in mine:
        assert address_of({k: v for k, v in mine.items() if k != name}) is None
    assert ADDRESS not in computing(mine)


@pytest.mark.parametrize(
    ("kinds", "resources"),
    [
        (["measure", "measure"], {}),
        (["of_an_extension", "of_an_extension"], {}),
        (["uptrain", "uptrain"], {"gpus": 1}),
        (["uptrain", "uptrain"], {"tasks_per_node": 2}),
    ],
)
def test_a_sweep_starts_no_server_that_would_serve_no_job(
    kinds: Sequence[str], resources: dict[str, int], tmp_path: Path
) -> None:
    assert server_for([job(kind, resources=resources) for kind in kinds], tmp_path) is None


def test_the_user_can_do_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLKV_FORK_SERVER", "0")
    assert server_for([job("uptrain")], tmp_path) is None
    monkeypatch.setenv("MLKV_FORK_SERVER", "perhaps")
    with pytest.raises(UserError, match=r"^MLKV_FORK_SERVER = perhaps: must be 0 or 1$"):
        server_for([job("uptrain")], tmp_path)


@pytest.mark.parametrize(
    ("jobs", "early", "threads"),
    [
        ([("uptrain", False, {})], ["mlkv.train.step"], "1"),
        ([("corpus", False, {}), ("uptrain", True, {}), ("measure", True, {})], ["mlkv.corpus.step"], "1"),
        # Another share of the cores is another environment: the server has that of most jobs, and the base imports.
        ([("base", False, {"exclusive": True}), *[("uptrain", True, {})] * 2], [], "1"),
        ([("base", False, {"exclusive": True}), ("measure", True, {})], ["mlkv.train.step"], "4"),
    ],
)
def test_what_the_first_jobs_need_is_imported_at_once(
    jobs: Sequence[tuple[str, bool, dict[str, Any]]], early: list[str], threads: str, tmp_path: Path
) -> None:
    server = server_for([job(kind, waits=waits, resources=resources) for kind, waits, resources in jobs], tmp_path)
    assert server
    try:
        process = psutil.Process(server._process.pid)
        eventually(lambda: "sweeps.worker.fork_server" in process.cmdline())  # it has its words once it is executed
        command = process.cmdline()
        assert command[command.index("sweeps.worker.fork_server") + 2] == ",".join(early)
        assert process.environ()["OMP_NUM_THREADS"] == threads
    finally:
        server.close()


def test_an_import_does_not_outlive_its_sweep(home: Path, tmp_path: Path) -> None:
    (home / "endless.py").write_text("import time\ntime.sleep(600)\n")
    server = ServerProcess(["endless"], surroundings(), tmp_path / "fork_server.log", early=["endless"])
    assert server._process.poll() is None
    server.close()
    assert server._process.poll() == -signal.SIGKILL


def test_a_server_whose_sweep_is_killed_while_it_imports_ends_by_itself(home: Path, tmp_path: Path) -> None:
    (home / "slow.py").write_text("import time\ntime.sleep(0.2)\n")
    server = ServerProcess(["slow"], surroundings(), tmp_path / "fork_server.log", early=["slow"])
    assert server._process.stdin
    server._process.stdin.close()  # what the kernel does for a sweep that was killed
    assert server._process.wait(PATIENCE) == 0


def test_modules_wanted_early_are_there_before_a_job_asks(home: Path, tmp_path: Path) -> None:
    (home / "noted_early.py").write_text(f"open({str(tmp_path / 'seen')!r}, 'w').close()\n")
    server = ServerProcess(["noted", "noted_early"], surroundings(), tmp_path / "log", early=["noted_early"])
    assert eventually((tmp_path / "seen").exists)
    process = started(starter(server, home), request(tmp_path, modules=["noted_early"]))
    process.stdin.close()
    assert process.wait() == 0
    server.close()


def test_random_numbers_are_not_those_of_the_server() -> None:
    drawn = set()
    state = numpy.random.get_state()
    for _ in range(2):
        numpy.random.set_state(state)
        seed_anew()
        drawn.add(numpy.random.randint(2**31))
    numpy.random.set_state(state)
    assert len(drawn) == 2


def test_a_measurement_is_never_forked() -> None:
    assert KINDS["measure"].fresh_process
    assert not any(row.modules for row in KINDS.values() if row.fresh_process)


LINE = [
    "uptrain.steps=400",
    "uptrain.save_every=20",
    "uptrain.log_every=5",
    "uptrain.lr=1e-3,5e-4",
    "evaluate.tasks=[bits_per_byte,heldout_choice4]",
]


def computes(shell: Shell) -> bool:
    """Whether a training has got somewhere."""
    states = [step.state() for step in shell.store.steps() if step.kind == "uptrain"]
    return any(state.name == "RUNNING" and steps_done(state) >= 30 for state in states)


def server_of(launcher: int) -> psutil.Process:
    (server,) = (p for p in psutil.Process(launcher).children() if "sweeps.worker.fork_server" in p.cmdline())
    return server


def forked(shell: Shell) -> int:
    """How many children were forked for a shell's sweeps."""
    return sum(log.read_text().count("forked") for log in shell.store.root.rglob("fork_server.log"))


@pytest.mark.long(minutes=1)
def test_forked_jobs_give_what_fresh_ones_give_and_outlive_their_server(
    undisturbed: Shell, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, scores and memory; and once more with the server killed while a training computes."""
    shells = {name: Shell(tmp_path / name) for name in ("fresh", "forked", "killed")}
    for name, shell in shells.items():
        shutil.copytree(undisturbed.folder, shell.folder)
        monkeypatch.setenv("MLKV_FORK_SERVER", "0" if name == "fresh" else "1")
        process = shell.start("sweep", *tiny, *SMALL, *LINE, "name=two")
        if name == "killed":
            assert eventually(lambda: computes(shells["killed"]))
            server_of(process.pid).kill()
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, out + err
    assert [forked(shell) - forked(undisturbed) for shell in shells.values()] == [0, 2, 2]
    fresh, *others = [{step.id: present(step.record()) for step in shell.store.steps()} for shell in shells.values()]
    for records in others:
        assert {id: record.outputs for id, record in records.items()} == {id: r.outputs for id, r in fresh.items()}
    for id, record in fresh.items():
        assert 0.7 < others[0][id].peak_memory_bytes / record.peak_memory_bytes < 1.4, id
    assert max(attempts(shells["killed"].store).values()) == 2
