"""Work that two processes share: the same results in the same order, and errors where one process would have them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from analysis.page.second_process import in_two_processes


def numbered(item: int) -> bytes:
    return f"{item} {os.getpid()}".encode()


@pytest.mark.parametrize("count", range(6))
def test_results_are_in_order(count: int) -> None:
    made = [text.split() for text in in_two_processes(numbered, range(count))]
    assert [int(item) for item, _ in made] == list(range(count))
    pids = {int(pid) for _, pid in made[1::2]} - {os.getpid()}
    assert len(pids) == (count > 1 and len(os.sched_getaffinity(0)) > 1)


def test_what_fails_in_the_second_process_is_made_in_the_first(tmp_path: Path) -> None:
    first = os.getpid()

    def fails_elsewhere(item: int) -> bytes:
        if os.getpid() != first:
            (tmp_path / "seen").touch()
            raise MemoryError
        return numbered(item)

    assert in_two_processes(fails_elsewhere, range(4)) == [numbered(item) for item in range(4)]
    assert (tmp_path / "seen").exists() == (len(os.sched_getaffinity(0)) > 1)


@pytest.mark.parametrize("bad", range(4))
def test_an_error_is_raised_and_no_process_stays(bad: int) -> None:
    def fails(item: int) -> bytes:
        if item == bad:
            raise ValueError(f"{item} cannot be made")
        return numbered(item)

    with pytest.raises(ValueError, match=f"^{bad} cannot be made$"):
        in_two_processes(fails, range(4))
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_no_process_is_forked_beside_a_thread() -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        assert in_two_processes(numbered, range(4)) == [numbered(item) for item in range(4)]
    finally:
        ended.set()
        thread.join()
