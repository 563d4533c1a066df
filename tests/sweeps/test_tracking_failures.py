"""What can go wrong with W&B while a step runs: the step never notices, and `mlkv sync` mends what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from sweeps.tracking import helper
from sweeps.tracking.mirror import MirrorError
from sweeps.tracking.read.files import read_directory
from sweeps.tracking.supervisor import Mirror
from sweeps.tracking.target import Target
from tests.support.refusing import without_internet
from tests.support.shell import TEST_CONF, Shell
from tests.support.tracked import Planner, Stage, arrives, make_stage, positions, training
from tests.support.wandb_server import WandbServer


@pytest.fixture
def stage(planner: Planner, tiny: list[str], tmp_path: Path) -> Stage:
    return make_stage(planner, tiny, tmp_path, mode="online")


def ends_all_the_same(stage: Stage, step: str, rows: int = 20) -> None:
    """A step that W&B cannot take ends as it would without, and its job is let go."""
    mirror = stage.mirror()
    acted = stage.begin(mirror, step)
    acted.log(training(1, rows))
    acted.end()
    mirror.close()
    assert stage.store.step(step).state().name == "DONE"


@pytest.mark.long
def test_no_server_does_not_fail_or_delay_and_sync_mends_it(
    planner: Planner, tiny: list[str], tmp_path: Path, server: WandbServer
) -> None:
    stage = make_stage(planner, tiny, tmp_path, mode="online", timeout=3)
    step = stage.id("base")
    server.stop()
    ends_all_the_same(stage, step)
    assert "not mirrored to W&B (" in stage.log_of(step)
    failed, done = stage.sync()
    assert failed == len(done) >= 1
    server.start()
    assert stage.sync()[0] == 0
    assert positions(server, step) == list(range(1, 21))
    assert {each.outcome for each in stage.sync()[1].values()} == {"already there"}


def test_a_bad_key_is_logged_without_the_key(
    planner: Planner, tiny: list[str], tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "wrong" * 8
    monkeypatch.setenv("WANDB_API_KEY", wrong)
    stage = make_stage(planner, tiny, tmp_path, mode="online", timeout=8)
    step = stage.id("base")
    ends_all_the_same(stage, step)
    assert "not mirrored to W&B" in stage.log_of(step)
    assert not server.runs
    written = [path for path in tmp_path.rglob("*") if path.is_file() and wrong.encode() in path.read_bytes()]
    assert not written


@pytest.mark.long
def test_a_server_that_goes_away_and_comes_back_in_mid_training(stage: Stage, server: WandbServer) -> None:
    step, mirror = stage.id("base"), stage.mirror()
    acted = stage.begin(mirror, step)
    acted.log(training(1, 10))
    arrives(lambda: step in server.runs and len(server.runs[step].history) == 10)
    server.stop()
    acted.log(training(11, 20), pause=0.05)
    server.fail(path="file_stream", status=500, times=1)
    server.fail(path="file_stream", disconnect=True, times=1)
    server.start()
    acted.log(training(21, 30), pause=0.05)
    acted.end()
    mirror.close()
    assert stage.sync()[0] == 0
    assert positions(server, step) == list(range(1, 31))


def test_a_directory_that_cannot_be_written_is_logged_and_nothing_else(stage: Stage, server: WandbServer) -> None:
    directory = stage.store.tracking(stage.saved.name).runs
    directory.write_text("in the way")
    ends_all_the_same(stage, stage.id("base"))
    assert "not mirrored to W&B" in stage.log_of(stage.id("base"))


def services(mirror: Mirror) -> list[psutil.Process]:
    """The wandb client's own processes behind a worker."""
    assert mirror._process
    children = psutil.Process(mirror._process.pid).children(recursive=True)
    return [child for child in children if "wandb-core" in child.name()]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_clients_own_process_is_killed_and_another_goes_on(
    mode: str, planner: Planner, tiny: list[str], tmp_path: Path, server: WandbServer
) -> None:
    stage = make_stage(planner, tiny, tmp_path, mode=mode)
    step, mirror = stage.id("base"), stage.mirror()
    runs = stage.store.tracking("tiny").runs
    acted = stage.begin(mirror, step)
    acted.log(training(1, 20))
    arrives(lambda: step in server.runs or any(file.stat().st_size for file in runs.rglob("run-*.wandb")))
    assert services(mirror)
    for service in services(mirror):
        service.kill()
    acted.log(training(21, 40), pause=0.05)
    acted.end()
    mirror.close()
    assert not stage.log_of(step)
    if mode == "online":
        assert (positions(server, step), server.runs[step].state) == (list(range(1, 41)), "finished")
        assert stage.sync()[0] == 0
    else:
        (run,) = (run for run in read_directory(runs) if run.id == step)
        assert [row["train/global_step"] for row in run.rows] == list(range(1, 41))


@pytest.mark.slow
def test_a_helper_that_is_killed_is_replaced_while_the_step_runs(stage: Stage, server: WandbServer) -> None:
    step, mirror = stage.id("base"), stage.mirror()
    acted = stage.begin(mirror, step)
    acted.log(training(1, 20))
    arrives(lambda: step in server.runs and len(server.runs[step].history) == 20)
    helper = mirror._process
    assert helper
    helper.kill()
    helper.wait()
    mirror.watch()
    acted.log(training(21, 40))
    arrives(lambda: positions(server, step) == list(range(1, 41)))
    acted.end()
    mirror.close()
    assert server.runs[step].state == "finished"
    assert not stage.log_of(step)


def test_a_helper_that_always_dies_is_given_up_and_that_is_logged(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    step, mirror = stage.id("base"), stage.mirror()
    acted = stage.begin(mirror, step)
    for _ in range(5):
        if mirror._process:
            mirror._process.wait()
        mirror.watch()
    acted.end()
    mirror.close()
    reason = "W&B's process ended 4 times, the last time with 1"
    assert stage.log_of(step).count(reason) == 1
    assert capsys.readouterr().err == f"{reason}; `mlkv sync` uploads the rest\n"


def test_a_long_step_is_taken_up_again_when_the_server_is_back(
    planner: Planner, tiny: list[str], tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The helper's part of it, in this process."""
    stage = make_stage(planner, tiny, tmp_path, mode="online")
    step, tried = stage.id("base"), []
    claim = stage.store.step(step).claim()
    assert claim

    class AttemptMirror:
        def __init__(self, *_: object) -> None:
            tried.append(1)
            if len(tried) < 3:
                raise MirrorError("no server")

        def send_new_rows(self) -> None:
            tried.append(2)

    monkeypatch.setattr(helper, "AttemptMirror", AttemptMirror)
    acted = helper.Helper(stage.store, Target(stage.config, "tiny"))
    acted._try(partial(acted._begin, {"step": step, "attempt": 1, "pid": 1}))
    acted._try(acted._send_new_rows)
    assert tried == [1], "not at once"
    monkeypatch.setattr(helper, "RETRY_SECONDS", 0.0)
    acted._retry_at = 0.0
    for _ in range(3):
        acted._try(acted._send_new_rows)
    assert tried == [1, 1, 1, 2]
    assert stage.log_of(step).count("no server") == 2


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """64 KiB in all."""
    folder.mkdir(parents=True)
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]).returncode:
        pytest.skip("mounting needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_full_disk_is_logged_and_nothing_else_and_sync_mends_it(
    mode: str, planner: Planner, tiny: list[str], tmp_path: Path, server: WandbServer
) -> None:
    stage = make_stage(planner, tiny, tmp_path, mode=mode)
    step = stage.id("base")
    with small_disk(stage.store.tracking("tiny").runs):
        ends_all_the_same(stage, step, rows=3000)
        assert mode == "online" or "No space left on device" in stage.log_of(step)
    failed, done = stage.sync()
    assert not failed, [each for each in done.values() if each.outcome == "failed"]
    assert positions(server, step) == list(range(1, 3001))


@pytest.mark.slow
def test_offline_a_worker_mirrors_where_no_internet_socket_can_be_had(
    mlkv: Shell, tiny: list[str], server: WandbServer
) -> None:
    """A real step, its supervisor, the helper and the wandb client."""
    line = ["run", "corpus", *tiny, "tracking=offline", "--config-dir", str(TEST_CONF)]
    command = [*without_internet(), "-m", "sweeps.cli", *line]
    run = subprocess.run(command, cwd=mlkv.folder, env=mlkv.environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (corpus,) = (step for step in mlkv.store.steps() if step.attempts())
    written = read_directory(mlkv.store.tracking("tiny").runs)
    assert {run.id: run.summary["state"] for run in written}[corpus.id] == "DONE"
    assert not any(attempt.tracking_log.exists() for attempt in corpus.attempts())
    assert not server.requests


def test_no_error_of_mirroring_reaches_the_step(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(subprocess, "Popen", broken)
    ends_all_the_same(stage, stage.id("base"), rows=1)
    assert capsys.readouterr().err == "RuntimeError: broken; `mlkv sync` uploads the rest\n"
    assert "not mirrored to W&B (RuntimeError: broken)" in stage.log_of(stage.id("base"))
