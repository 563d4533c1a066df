"""`python -m sweeps.worker.fork_server SOCKET EARLY,… MODULE…`: imports what steps need once, and makes by fork the
processes in which the jobs of a sweep on this machine compute. Each is what `python -m sweeps.worker.child_main` would
have been, without the seconds of importing.

Libraries read the environment while they are imported. So this program is started in that of the processes which it is
to make, and requests with another one are refused. It imports at once what the jobs that start first need (`EARLY`),
while their supervisors start. Nothing is computed here: a fork copies only the thread that calls it, so there must be
no other, and what had been computed would be every child's past. Standard
input is a pipe whose other end the sweep holds. At its end no further request is taken, and the server ends with its
last child.
"""

from __future__ import annotations

import atexit
import gc
import os
import selectors
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from sweeps.worker import child_main
from sweeps.worker.forked_process import OF_THE_JOB, ForkReply, ForkRequest, is_own, read_request, receive, send
from sweeps.worker.imports import import_modules

FILES = 5
"""A request comes with: what is wanted, standard input, output and error, and where answers go."""


@dataclass
class Client:
    """A connection; the process that was made for it, and a handle on that (pidfd)."""

    connection: socket.socket
    child: int = 0
    handle: int = -1


@dataclass(frozen=True)
class Forked:
    """What a new process is to do, and the files that it got for it."""

    request: ForkRequest
    files: Sequence[int]


@dataclass
class ForkServer:
    """Serves requests that have the environment and the folder of `own`.

    modules: what it may import. It does so at once for the jobs that start first, and before a request that needs it
    for others, as it is not to disturb what a job measures; and only while there is no child, as nothing else is seen
    to meanwhile (a child can import what is left).
    """

    listening: socket.socket
    own: ForkRequest
    modules: list[str]
    _clients: list[Client] = field(default_factory=list)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def serve(self, early: Sequence[str] = ()) -> Forked | None:
        """Import what is wanted early, then answer until the sweep has ended, and its children with it. Returns in each
        child too, with its task."""
        self._load([name for name in self.modules if name in early])
        for source in (self.listening, sys.stdin):
            self._selector.register(source, selectors.EVENT_READ)
        while self._clients or self.listening.fileno() >= 0:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._add_or_end(key.fileobj)
                elif key.data not in self._clients:
                    continue  # it came to its end in this round
                elif key.fd == key.data.handle:
                    self._reap(key.data)
                elif key.data.child:
                    self._end(key.data)
                elif forked := self._answer(key.data):
                    return forked
        return None

    def _add_or_end(self, source: object) -> None:
        """Take a connection; at the end of standard input take none from here on."""
        if source is not self.listening:
            self._selector.unregister(sys.stdin)
            self._selector.unregister(self.listening)
            self.listening.close()
        elif self.listening.fileno() >= 0:  # else it was closed in this round
            connection, _ = self.listening.accept()
            if is_own(connection):
                self._add(connection)
            else:
                connection.close()

    def _add(self, connection: socket.socket) -> None:
        self._clients.append(client := Client(connection))
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _answer(self, client: Client) -> Forked | None:
        """Read a request and make its process. Returns in that, with its task, and in the server with None."""
        files: list[int] = []
        try:
            content, files = receive(client.connection, FILES)
            request = read_request(files[0]) if content else None
        except (OSError, ValueError, IndexError):
            request = None
        refused = self._refusal(request) if request else "no request"
        if request and not refused and not any(each.child for each in self._clients):
            self._load([name for name in self.modules if name in request.modules])
        if request is None or refused:
            note(f"refused: {refused}")
            self._send(client, ForkReply(refused=refused))
            self._drop(client)
        elif not (child := os.fork()):
            return Forked(request, files)
        else:
            client.child, client.handle = child, os.pidfd_open(child)
            self._selector.register(client.handle, selectors.EVENT_READ, client)
            note(f"forked {child}")
            shared = int(psutil.Process().memory_info().shared)
            self._send(client, ForkReply(pid=child, shared_bytes=shared), client.handle)
        for file in files:
            os.close(file)
        return None

    def _load(self, modules: Sequence[str]) -> None:
        """Import; a child of a module that cannot be imported says so in its log. Exits where a thread stays."""
        if not modules:
            return
        self.modules = [name for name in self.modules if name not in modules]
        import_modules(modules)
        gc.freeze()  # else the first collection in each child would copy all that was imported
        if threads := threads_that_stay():
            sys.exit(f"{', '.join(modules)}: {threads} threads outlast a fork; jobs start without this server")

    def _refusal(self, request: ForkRequest) -> str | None:
        """Why a request cannot be served; None where it can."""
        if names := {name for name, _ in request.shared().items() ^ self.own.shared().items()}:
            return f"other environment ({', '.join(sorted(names))})"
        return None if request.folder == self.own.folder else "other folder"

    def _end(self, client: Client) -> None:
        """End the child of a supervisor that is gone; `_reap` follows."""
        signal.pidfd_send_signal(client.handle, signal.SIGKILL)
        self._selector.unregister(client.connection)

    def _reap(self, client: Client) -> None:
        """A child has ended: end the processes that it left running, as LocalExecutor does with a job's, and report.
        As long as it is not reaped, the number of its process group cannot be another's."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(client.child, signal.SIGKILL)
        _, status = os.waitpid(client.child, 0)
        self._send(client, ForkReply(returncode=os.waitstatus_to_exitcode(status)))
        self._selector.unregister(client.handle)
        os.close(client.handle)
        self._drop(client)

    def _send(self, client: Client, reply: ForkReply, *files: int) -> None:
        with suppress(OSError):  # a supervisor that is gone is seen at the end of its connection
            send(client.connection, reply, files)

    def _drop(self, client: Client) -> None:
        self._clients.remove(client)
        with suppress(KeyError):  # `_end` has taken it out
            self._selector.unregister(client.connection)
        client.connection.close()

    def close(self) -> None:
        """In a child: let go of all that is the server's."""
        self._selector.close()
        self.listening.close()
        for client in self._clients:
            client.connection.close()
            if client.child:
                os.close(client.handle)


def note(line: str) -> None:
    with suppress(OSError):  # its log lies on a full disk
        print(line, flush=True)


def main() -> None:
    listening, early = socket.socket(fileno=int(sys.argv[1])), sys.argv[2].split(",")
    # Libraries change the environment while they are imported, as they would do in each child.
    own = ForkRequest(store="", modules=[], environment=dict(os.environ), folder=os.getcwd())
    server = ForkServer(listening, own, list(sys.argv[3:]))
    if forked := server.serve(early):
        server.close()
        compute(forked)


def threads_that_stay() -> int:
    """How many threads there are besides the first, after a fork: a library that starts some while it is imported ends
    them before one, if it is made for that (OpenBLAS's pool)."""
    if not (child := os.fork()):
        os._exit(0)
    os.waitpid(child, 0)
    return len(os.listdir("/proc/self/task")) - 1


def compute(forked: Forked) -> None:
    """Be the process that computes, as if started by the supervisor. Does not return."""
    os.setsid()
    wanted, *standard, answers = forked.files
    for target, file in enumerate(standard):
        os.dup2(file, target)
    for file in (wanted, *standard):
        os.close(file)
    for name in OF_THE_JOB:
        os.environ.pop(name, None)
        if (value := forked.request.environment.get(name)) is not None:
            os.environ[name] = value
    seed_anew()
    sys.argv = [child_main.__file__, forked.request.store, str(answers)]
    child_main.main()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(0)  # to take apart what the server imported would be to copy it first: a third of a second


def seed_anew() -> None:
    """Generators that took their state from the system while they were imported. `random` does the same by itself after
    a fork; torch's begins with a fixed seed."""
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if fingerprint := sys.modules.get("datasets.fingerprint"):  # names temporary files
        fingerprint.fingerprint_rng.seed()


if __name__ == "__main__":
    main()
