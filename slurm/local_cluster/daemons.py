"""Background processes that a later command can stop, and it never stops others.

A pid alone does not identify a process: the kernel gives it out again. So the pid, the process's start time and the id
of the boot are recorded. A signal is sent only to a process where all three agree, and through a file descriptor
(pidfd), which stays with that process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Clock ticks from boot to the start of this process; None if there is none, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


@dataclass(frozen=True)
class Identity:
    pid: int
    start_ticks: int
    boot_id: str

    def alive(self) -> bool:
        return self.pid > 1 and self.boot_id == boot_id() and start_ticks(self.pid) == self.start_ticks


class Daemon:
    """One program with its pid file `<state>/<name>.pid` and its output `<state>/<name>.log`."""

    def __init__(self, state: Path, name: str) -> None:
        self.name = name
        self.pid_file = state / f"{name}.pid"
        self.log_file = state / f"{name}.log"

    def identity(self) -> Identity | None:
        try:
            return Identity(**json.loads(self.pid_file.read_text()))
        except FileNotFoundError:
            return None

    def alive(self) -> bool:
        identity = self.identity()
        return identity is not None and identity.alive()

    def start(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Start it in the foreground of a session of its own, unless it is running."""
        if self.alive():
            return
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                cwd="/",
                start_new_session=True,
            )
        ticks = start_ticks(process.pid)
        if ticks is None:
            process.wait()
            raise RuntimeError(f"{self.name} ended at once: see {self.log_file}")
        temporary = self.pid_file.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(Identity(process.pid, ticks, boot_id()))))
        temporary.replace(self.pid_file)

    def stop(self, grace_seconds: float = 10.0, kill: bool = False) -> None:
        """SIGTERM, then SIGKILL after the grace (`kill`: at once); returns when the process is gone."""
        identity = self.identity()
        if identity is not None and not end(identity, 0.0 if kill else grace_seconds):
            raise RuntimeError(f"{self.name} (pid {identity.pid}) does not end")
        self.pid_file.unlink(missing_ok=True)


def end(identity: Identity, grace_seconds: float) -> bool:
    """Send this process SIGTERM, then SIGKILL after the grace (0: at once). Returns whether it is gone."""
    try:
        handle = os.pidfd_open(identity.pid) if identity.alive() else None
    except ProcessLookupError:
        handle = None
    if handle is None:
        return True
    try:
        for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
            if seconds and identity.alive():
                signal.pidfd_send_signal(handle, number)
                _wait_gone(identity, seconds)
    finally:
        os.close(handle)
    return not identity.alive()


def _wait_gone(identity: Identity, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while identity.alive() and time.monotonic() < deadline:
        time.sleep(0.02)


def listeners(folder: Path) -> list[Identity]:
    """The processes that have a Unix socket bound to a path below `folder`: they belong to this cluster, whoever
    started them."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    inodes = {f"socket:[{fields[6]}]" for fields in lines if fields[-1].startswith(f"{folder}/")}
    identities = []
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        ticks = start_ticks(pid)
        if pid > 1 and ticks is not None and inodes & set(_descriptors(process)):
            identities.append(Identity(pid, ticks, boot_id()))
    return identities


def _descriptors(process: Path) -> Iterator[str]:
    """The files that a process has open; none if it belongs to another user or has ended."""
    with suppress(OSError):
        for link in (process / "fd").iterdir():
            yield os.readlink(link)
