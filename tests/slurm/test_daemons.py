"""A daemon is stopped only if it is certainly the process that was started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from slurm.local_cluster.daemons import Daemon, boot_id, end, listeners, start_ticks
from tests.support.processes import alive, eventually


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, "sleeper")
    yield daemon
    daemon.stop(kill=True)


@pytest.fixture
def stranger() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def write_identity(daemon: Daemon, **fields: object) -> None:
    daemon.pid_file.write_text(json.dumps(fields))


def test_start_and_stop(daemon: Daemon) -> None:
    daemon.start(["sleep", "60"])
    identity = daemon.identity()
    assert identity is not None
    assert daemon.alive()
    daemon.stop()
    assert not alive(identity.pid)
    assert not daemon.alive()
    assert not daemon.pid_file.exists()


def test_a_running_daemon_is_not_started_again(daemon: Daemon) -> None:
    daemon.start(["sleep", "60"])
    first = daemon.identity()
    daemon.start(["sleep", "60"])
    assert daemon.identity() == first


def test_one_that_ignores_sigterm_is_killed(daemon: Daemon) -> None:
    daemon.start(["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"])
    assert eventually(lambda: "up" in daemon.log_file.read_text())
    daemon.stop(grace_seconds=0.3)
    assert not daemon.alive()


def test_a_process_that_got_the_same_number_later_is_left_alone(daemon: Daemon, stranger: int) -> None:
    ticks = start_ticks(stranger)
    assert ticks is not None
    write_identity(daemon, pid=stranger, start_ticks=ticks - 1, boot_id=boot_id())
    assert not daemon.alive()
    daemon.stop(kill=True)
    assert alive(stranger)


def test_a_pid_file_from_before_a_reboot_is_not_believed(daemon: Daemon, stranger: int) -> None:
    write_identity(daemon, pid=stranger, start_ticks=start_ticks(stranger), boot_id="another boot")
    daemon.stop(kill=True)
    assert alive(stranger)


@pytest.mark.parametrize("pid", [-1, 0, 1])
def test_pids_that_mean_more_than_one_process_are_never_signalled(daemon: Daemon, pid: int) -> None:
    write_identity(daemon, pid=pid, start_ticks=start_ticks(max(pid, 1)), boot_id=boot_id())
    assert not daemon.alive()
    daemon.stop(kill=True)
    assert os.getpid() > 1, "and this process lives"


def test_processes_are_known_by_the_sockets_they_hold(daemon: Daemon, stranger: int, tmp_path: Path) -> None:
    program = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); time.sleep(60)"
    folder = tmp_path / "spool"
    folder.mkdir()
    daemon.start([sys.executable, "-c", program, str(folder / "socket")])
    assert eventually((folder / "socket").exists)
    assert listeners(folder) == [daemon.identity()]
    assert listeners(tmp_path / "spoo") == []
    for identity in listeners(folder):
        assert end(identity, grace_seconds=0)
    assert not daemon.alive()
    assert alive(stranger)


def test_a_program_that_ends_at_once_is_not_alive(daemon: Daemon) -> None:
    with suppress(RuntimeError):  # which of the two is a race
        daemon.start(["sh", "-c", "echo broken; exit 1"])
    assert eventually(lambda: not daemon.alive())
    assert "broken" in daemon.log_file.read_text()
