"""Which machine and which process this is, and whether a process that gave its identity still runs."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path

import psutil

from mlkv.files import Json

SAME_START_SECONDS = 0.5
"""How far two readings of one process's start may lie apart: the system's clock is corrected a little all the time."""


def host() -> str:
    """This node's name, as the queue has it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def this_process() -> Json:
    """What tells this process from every other: `ticks`, its start since `boot`, does not change with the clock as
    `started` does (seconds since the epoch, all that older code wrote), and two containers may share a host name and
    even a boot but not the `namespace` of their process ids. None: this system does not tell."""
    return {
        "host": host(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        **_boot(),
        "ticks": _start_ticks("self"),
    }


def is_this_process(process: Json) -> bool:
    """Whether `process` describes the one that asks, as far as this system tells processes apart."""
    ours = this_process()
    return ours["ticks"] is not None and all(process.get(key) == ours[key] for key in ours if key != "started")


def is_running(process: Json) -> bool | None:
    """Whether the process that `this_process` described still runs; None where that cannot be seen from here."""
    if process["host"] != host():
        return None
    if process.get("ticks") is None:
        return _is_running_by_clock(process["pid"], process["started"])
    if any(process[key] != value for key, value in _boot().items()):
        return None
    return _start_ticks(process["pid"]) == process["ticks"]


def _is_running_by_clock(pid: int, started: float | None) -> bool | None:
    """By the start in seconds since the epoch. Another one may be another process, or the same by a corrected clock."""
    found = _started(pid)
    if found is None:
        return None if started is None else False
    return True if started is not None and abs(found - started) < SAME_START_SECONDS else None


@cache
def _boot() -> Json:
    """The boot of the kernel and the namespace of process ids that this process lives in."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "namespace": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {"boot": None, "namespace": None}


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
