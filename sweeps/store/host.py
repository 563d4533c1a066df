"""Which machine and which process this is, and whether a process that gave its identity still runs."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path

import psutil

from sweeps.store.schema import Process

SAME_START_SECONDS = 0.5
"""How far two readings of one process's start may lie apart: the system's clock is corrected a little all the time."""


def host() -> str:
    """This node's name, as the queue has it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def this_process() -> Process:
    boot, namespace = _boot()
    pid = os.getpid()
    return Process(
        host=host(), pid=pid, started=_started(pid), boot=boot, namespace=namespace, ticks=_start_ticks("self")
    )


def is_this_process(process: Process) -> bool:
    """Whether `process` is the current process, as far as this system can identify processes."""
    ours = this_process()
    return ours.ticks is not None and _identity(process) == _identity(ours)


def _identity(process: Process) -> tuple[str | int | None, ...]:
    """Without `started`, which the system's clock moves."""
    return process.host, process.pid, process.boot, process.namespace, process.ticks


def is_running(process: Process) -> bool | None:
    """Whether the process that `this_process` described still runs; None where that cannot be seen from here."""
    if process.host != host():
        return None
    if process.ticks is None:
        return _is_running_by_clock(process.pid, process.started)
    if (process.boot, process.namespace) != _boot():
        return None
    return _start_ticks(process.pid) == process.ticks


def _is_running_by_clock(pid: int, started: float | None) -> bool | None:
    """By the start in seconds since the epoch. Another one may be another process, or the same by a corrected clock."""
    found = _started(pid)
    if found is None:
        return None if started is None else False
    return True if started is not None and abs(found - started) < SAME_START_SECONDS else None


@cache
def _boot() -> tuple[str | None, str | None]:
    """The ids of the kernel's boot and of this process's pid namespace; None where the system does not provide them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, os.readlink("/proc/self/ns/pid")
    except OSError:
        return None, None


def _start_ticks(pid: int | str) -> int | None:
    """When a process started, in clock ticks since boot (proc(5), field 22); None where there is none that runs."""
    try:
        # The second field, the program's name in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZXx" else int(fields[19])


def _started(pid: int) -> float | None:
    """The same in seconds since the epoch, by what the system's clock says now."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, ValueError):
        return None
