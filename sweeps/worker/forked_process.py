"""The supervisor's end of a child that the fork server made (fork_server.py), with what subprocess.Popen offers of it.

A request is a message over a Unix socket of the sweep's, with open files: what is wanted as JSON, and the child's
standard streams and answers. What comes back is the child's number and a handle on it (pidfd), and later how it ended.
The end of the connection ends the child, as a supervisor that is killed closes it too.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Self

import psutil

from sweeps.store import typed_json
from sweeps.worker.job_context import TOGETHER

ADDRESS = "MLKV_FORK_ADDRESS"
"""Set in a sweep's jobs on this machine: the server's address among Linux's abstract sockets, which are no files."""
OF_THE_JOB = TOGETHER
"""Variables in which the jobs of one sweep differ. No library reads them while it is imported."""
RANKS = TOGETHER[2]
PATIENCE_SECONDS = 300.0
"""How long a server may take to import before its child is started without it."""
MESSAGE_BYTES = 4096
_POLL_SECONDS = 0.2


def can_fork() -> bool:
    """Whether this system has what the server uses: it is Linux, and neither an old kernel nor a sandbox without it."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return False
    with suppress(OSError):
        os.close(os.pidfd_open(os.getpid()))
        return True
    return False


@dataclass(frozen=True, kw_only=True)
class ForkRequest:
    """Make a process that computes for a store, in this environment and folder. `modules`: what its job will import."""

    store: str
    modules: list[str]
    environment: dict[str, str]
    folder: str

    def shared(self) -> dict[str, str]:
        """The environment without what belongs to one job."""
        return {name: value for name, value in self.environment.items() if name not in OF_THE_JOB}


@dataclass(frozen=True, kw_only=True)
class ForkReply:
    """pid: the child has been made. refused: why it was not. returncode: it has ended, as subprocess counts.

    shared_bytes: what the server has in memory of files, its libraries first of all. A child counts as its own what it
        has touched of them; a process that had imported them itself would count all.
    """

    pid: int | None = None
    shared_bytes: int = 0
    refused: str | None = None
    returncode: int | None = None


def send(connection: socket.socket, message: ForkReply | None, files: Sequence[int] = ()) -> None:
    """A reply, or an empty message, whose files say all. Raises OSError."""
    content = json.dumps(typed_json.as_json(message)).encode() if message else b"{}"
    socket.send_fds(connection, [content], files)


def receive(connection: socket.socket, most: int) -> tuple[bytes, list[int]]:
    """One message, empty at the end, and up to `most` files. socket.recv_fds passes no flags on, and without this one
    the files would stay open in every process that is started."""
    received = array.array("i")
    space = socket.CMSG_LEN(most * received.itemsize)
    content, attached, _, _ = connection.recvmsg(MESSAGE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, files in attached:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(files[: len(files) - len(files) % received.itemsize])
    return content, received.tolist()


def is_own(connection: socket.socket) -> bool:
    """Whether the process at the other end is of the same user: anybody may connect to an abstract socket."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", packed)
    return user == os.getuid()


class ForkedProcess:
    """A child of the fork server, its standard input and how it ended."""

    def __init__(self, connection: socket.socket, made: ForkReply, handle: int, stdin: IO[str]) -> None:
        assert made.pid is not None
        self._connection, self._handle, self._shared_bytes = connection, handle, made.shared_bytes
        self.pid, self.stdin = made.pid, stdin
        self.returncode: int | None = None

    @classmethod
    def start(
        cls, request: ForkRequest, address: str, files: Sequence[int], stopped: Callable[[], bool]
    ) -> Self | None:
        """Have the server at an address make it. None where it does not: there is none, it serves another environment,
        it has died or takes too long, or `stopped` has come true.

        files: for its standard output and error, and for its answers."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs, ours = os.pipe()
        stdin = os.fdopen(ours, "w", encoding="utf-8")
        try:
            connection.connect(f"\0{address}")
            if is_own(connection):
                with _as_file(request) as wanted:
                    send(connection, None, [wanted.fileno(), theirs, *files])
                if made := _reply(connection, stopped):
                    return cls(connection, *made, stdin)
        except (OSError, ValueError):
            pass
        finally:
            os.close(theirs)
        connection.close()
        stdin.close()
        return None

    def poll(self) -> int | None:
        """Its exit status, negative after a signal; None while it runs."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            select.select([self._connection], [], [])
            self._end()
        assert self.returncode is not None
        return self.returncode

    def resident_bytes(self) -> int:
        """As much as a process would hold that had imported by itself. Raises psutil.Error."""
        memory = psutil.Process(self.pid).memory_info()
        return int(memory.rss + max(0, self._shared_bytes - memory.shared))

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def _end(self) -> None:
        """Read what the server says of its end. A server that has died says nothing, and its children have died with
        it (PR_SET_PDEATHSIG in child_main.py)."""
        try:
            content, _ = receive(self._connection, 0)
        except OSError:
            content = b""
        code = typed_json.parsed(ForkReply, content).returncode if content else None
        if code is None:
            self.kill()
            select.select([self._handle], [], [])
        self.returncode = -signal.SIGKILL if code is None else code
        self._connection.close()
        os.close(self._handle)


def _as_file(request: ForkRequest) -> IO[bytes]:
    """A file in memory: an environment can be longer than a message."""
    file = os.fdopen(os.memfd_create("request"), "w+b")
    file.write(json.dumps(typed_json.as_json(request)).encode())
    file.flush()
    return file


def read_request(file: int) -> ForkRequest:
    """Raises ValueError for what is none."""
    return typed_json.parsed(ForkRequest, os.pread(file, os.fstat(file).st_size, 0))


def _reply(connection: socket.socket, stopped: Callable[[], bool]) -> tuple[ForkReply, int] | None:
    """Of the process that was made, with a handle on it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not select.select([connection], [], [], _POLL_SECONDS)[0]:
        if stopped() or time.monotonic() > deadline:
            return None
    content, files = receive(connection, 1)
    reply = typed_json.parsed(ForkReply, content) if content else ForkReply()
    return (reply, files[0]) if reply.pid and files else None


def address_of(environment: Mapping[str, str]) -> str | None:
    """The server for a job with this environment. A job with GPUs has none, as CUDA does not survive a fork; nor has
    one of several processes."""
    alone = environment.get("CUDA_VISIBLE_DEVICES") == "" and environment.get(RANKS) == "1"
    return environment.get(ADDRESS) if can_fork() and alone else None
