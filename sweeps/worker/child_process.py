"""The supervisor's end of the process that computes (sweeps.worker.child_main): start it, send it requests, read its
answers, end it."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

import psutil

from sweeps.steps.registry import kind_of
from sweeps.store import typed_json
from sweeps.store.attempt import Attempt
from sweeps.store.store import Store
from sweeps.worker.environment import computing
from sweeps.worker.forked_process import ForkedProcess, ForkRequest, address_of
from sweeps.worker.messages import Answer, Request, line_of


class Child:
    """The process that computes. Started at the first step that is not done, so that a hit costs nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._process: subprocess.Popen[str] | ForkedProcess | None = None
        self._stopped = False
        self._modules: list[str] = []
        self._answers: queue.Queue[str] = queue.Queue()

    def expect(self, steps: Sequence[str]) -> None:
        """The steps of its job, so that what they import is imported before it is forked."""
        kinds = [kind_of(self._store.step(id).kind) for id in steps]
        self._modules = sorted({name for kind in kinds for name in kind.modules})

    def send(self, request: Request) -> None:
        """Have it run an attempt; it is started where it is not running. What it prints at its start goes to this
        attempt's logs: it may die there."""
        step = self._store.step(request.step)
        fresh = kind_of(step.kind).fresh_process
        if fresh and isinstance(self._process, ForkedProcess):
            self.close()
        if self._process is None or self._process.poll() is not None:
            self._start(next(a for a in step.attempts() if a.number == request.attempt), fresh)
            if self._stopped:  # while it was started
                self.stop()
        assert self._process
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has died already, and `answer` says how
            self._process.stdin.write(line_of(request))
            self._process.stdin.flush()

    def _start(self, attempt: Attempt, fresh: bool) -> None:
        with attempt.stdout.open("ab") as out, attempt.stderr.open("ab") as err:
            ours, theirs = os.pipe()
            self._process = None if fresh else self._forked(out, err, theirs)
            self._process = self._process or self._imported_anew(out, err, theirs)
        os.close(theirs)
        self._answers = queue.Queue()
        threading.Thread(target=_read, args=(os.fdopen(ours), self._answers), daemon=True).start()

    def _forked(self, out: IO[bytes], err: IO[bytes], answers: int) -> ForkedProcess | None:
        """From the sweep's fork server, where there is one for this job and it serves this environment."""
        if (address := address_of(os.environ)) is None:
            return None
        request = ForkRequest(
            store=str(self._store.root), modules=self._modules, environment=computing(), folder=os.getcwd()
        )
        return ForkedProcess.start(request, address, [out.fileno(), err.fileno(), answers], lambda: self._stopped)

    def _imported_anew(self, out: IO[bytes], err: IO[bytes], answers: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "sweeps.worker.child_main", str(self._store.root), str(answers)]
        return subprocess.Popen(
            command, env=computing(), stdin=subprocess.PIPE, stdout=out, stderr=err, text=True, pass_fds=[answers]
        )

    def answer(self, timeout: float) -> Answer | None:
        """How the requested attempt ended; None where the child has not answered within `timeout` seconds."""
        assert self._process
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            return None
        if line:
            return typed_json.parsed(Answer, line.encode())
        code = self._process.wait()
        how = f"was killed by {_name_of(-code)}" if code < 0 else f"exited with {code}"
        return Answer(state="vanished", reason=f"its process {how}", returncode=code)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def resident_bytes(self) -> int:
        try:
            if isinstance(self._process, ForkedProcess):
                return self._process.resident_bytes()
            return psutil.Process(self._process.pid).memory_info().rss if self._process else 0
        except psutil.Error:
            return 0

    def stop(self) -> None:
        self._stopped = True
        if self._process and self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        if self._process and self._process.stdin:
            with suppress(OSError):  # it is gone, and cannot take what was left to be written
                self._process.stdin.close()
            self._process.wait()


def _name_of(number: int) -> str:
    """Of the real-time signals only the first and the last have a name."""
    return next((each.name for each in signal.Signals if each == number), f"signal {number}")


def _read(answers: IO[str], into: queue.Queue[str]) -> None:
    """Every line, then an empty one at the end of file."""
    with answers:
        for line in answers:
            into.put(line)
    into.put("")
