"""Looking at processes that a test started, and waiting for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 600.0
"""Seconds that a test waits for what must happen: it bounds a failure, and says nothing about a machine's speed."""


def alive(pid: int) -> bool:
    """True unless the process is gone or only waits to be reaped by whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before the file was opened, or while it was read
        return False


def eventually(condition: Callable[[], bool], seconds: float = PATIENCE, every: float = 0.02) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def number_in(path: Path) -> int:
    """The number that a process writes to a file as soon as it is up."""
    assert eventually(lambda: path.exists() and path.read_text().strip().isdigit()), f"{path} was not written"
    return int(path.read_text())
