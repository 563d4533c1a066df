"""Part of the work in a second process, where the machine has a core for it."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import IO, TypeVar

T = TypeVar("T")


def in_two_processes(make: Callable[[T], bytes], items: Sequence[T]) -> list[bytes]:
    """`make` of each item, in their order; of every second one in a fork of this process, which needs no copies of
    them. Where a fork is not safe, or what it makes fails, all is made here."""
    if len(items) < 2 or not _can_fork():
        return [make(item) for item in items]
    with tempfile.TemporaryFile() as file:
        if not (child := os.fork()):
            _make_into(file, make, items[1::2])
        try:
            here = [make(item) for item in items[::2]]
        finally:
            _, status = os.waitpid(child, 0)
        file.seek(0)  # both processes have one position in it
        there = [make(item) for item in items[1::2]] if status else pickle.load(file)
    made = [b""] * len(items)
    made[::2], made[1::2] = here, there
    return made


def _can_fork() -> bool:
    """A fork has none of the other threads, and the locks that they hold stay locked in it."""
    return sys.platform == "linux" and threading.active_count() == 1 and len(os.sched_getaffinity(0)) > 1


def _make_into(file: IO[bytes], make: Callable[[T], bytes], items: Sequence[T]) -> None:
    """Does not return: what waits to be printed, and what is to be done at the end, is the first process's."""
    try:
        pickle.dump([make(item) for item in items], file)
        file.flush()
        os._exit(0)
    finally:
        os._exit(1)
