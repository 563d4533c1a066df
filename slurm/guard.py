"""Runs one command for LocalExecutor, and ends it where the launcher dies.

    python -I -S guard.py GRACE_SECONDS TASKS COMMAND [ARGUMENT …]

Standard input is a pipe whose other end only the launcher holds. However the launcher dies, by SIGKILL too, this
process then reads end-of-file and ends its process group (SIGTERM, grace, SIGKILL). PR_SET_PDEATHSIG is no alternative:
it needs a preexec_fn, which is unsafe in a launcher with threads; it fires when the thread that started the process
ends; and it reaches the command, but not the processes that the command started.

The guard leads a process group of its own that the command shares, and answers SIGTERM by waiting for the command.
It exits as the command did, or with 128 + n after signal n.

TASKS processes run the command. Each has its number (RANK_VARIABLE) and the count (RANKS_VARIABLE) in its environment.
When one fails, the others are ended, and its exit status is the guard's.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

RANK_VARIABLE, RANKS_VARIABLE = "MLKV_LOCAL_RANK", "MLKV_LOCAL_RANKS"


def main(grace_seconds: float, tasks: int, argv: list[str]) -> int:
    wake, wake_in = os.pipe()
    os.set_blocking(wake_in, False)
    signal.set_wakeup_fd(wake_in)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    children = {start(argv, rank, tasks) for rank in range(tasks)}
    return supervise(children, wake, grace_seconds)


def start(argv: list[str], rank: int, tasks: int) -> int:
    child = os.fork()
    if not child:
        os.environ.update({RANK_VARIABLE: str(rank), RANKS_VARIABLE: str(tasks)})
        become(argv)
    return child


def become(argv: list[str]) -> None:
    """Turn the forked process into the command, with ordinary signals and an empty standard input."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def supervise(children: set[int], wake: int, grace_seconds: float) -> int:
    """Wait until all children have ended; the first exit status that is not 0. Ends the group when a child fails or the
    launcher is gone. `wake` is readable after a signal (SIGCHLD is one)."""
    deadline: float | None = None
    outcome, launcher_gone = 0, False
    while True:
        for code in ended(children):
            outcome = outcome or code
        if not children:
            return outcome
        if deadline is None and (outcome or launcher_gone):
            deadline = time.monotonic() + grace_seconds
            os.killpg(0, signal.SIGTERM)
        elif deadline is not None and time.monotonic() > deadline:
            os.killpg(0, signal.SIGKILL)
        watched = [wake] if deadline else [wake, 0]
        ready, _, _ = select.select(watched, [], [], 0.1 if deadline else None)
        if wake in ready:
            os.read(wake, 512)
        launcher_gone = 0 in ready and not os.read(0, 512)


def ended(children: set[int]) -> list[int]:
    """Exit statuses of the children that have ended; removes them from `children`."""
    codes = []
    for child in list(children):
        gone, status = os.waitpid(child, os.WNOHANG)
        if gone:
            children.discard(child)
            code = os.waitstatus_to_exitcode(status)
            codes.append(code if code >= 0 else 128 - code)
    return codes


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
