"""The worker's side of mirroring: starts the helper process and sends it messages. Waits for it at the end alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sweeps.store.attempt import Attempt
from sweeps.store.console import say
from sweeps.store.outside import in_one_line
from sweeps.store.stepdir import Claim
from sweeps.store.store import Store
from sweeps.tracking.environment import environment
from sweeps.tracking.target import Target

GAVE_UP = 3
"""Exit status of a helper whose time was up."""
MAX_RESTARTS = 3
"""How often a worker replaces its helper: one that always dies would only use up time."""
GRACE_SECONDS = 1.0
"""How much longer than the configured timeout the worker waits for its helper, which says what it has not sent."""


class Mirror:
    """Sends a worker's steps to the helper process; does nothing where the environment names no target."""

    def __init__(self, store: Store) -> None:
        self._store, self._target = store, Target.of_environment()
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self._attempt: Attempt | None = None
        self._began: dict[str, object] | None = None

    def began(self, claim: Claim, pid: int | None) -> None:
        """An attempt has begun; `pid` is the process that computes."""
        if not self._target:
            return
        self._attempt = claim.attempt
        self._began = {"step": claim.step.id, "attempt": claim.attempt.number, "pid": pid}
        with self._harmless():
            if self._process is None:
                self._start()
            if self._runs:
                self._send(self._began)
            else:
                self._replace()

    def watch(self) -> None:
        """Replace the helper where it was killed while an attempt runs: a new one reads what was logged from the
        start, and sends what W&B does not have."""
        with self._harmless():
            if self._began and not self._runs:
                self._replace()

    def ended(self, claim: Claim, given_up: bool = False) -> None:
        """The attempt has ended and its record, if any, is written. `given_up`: no job tries the step again by
        itself."""
        self.watch()
        with self._harmless():
            self._send({"step": claim.step.id, "given_up": given_up})
        self._began = None

    def close(self) -> None:
        """Wait until the helper has finished, for at most the configured timeout."""
        if not self._process or not self._target:
            return
        assert self._process.stdin
        self._process.stdin.close()
        try:
            code = self._process.wait(self._target.config.timeout + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._give_up("W&B took too long")
        else:
            if code == GAVE_UP:  # and has said so at each attempt
                say("W&B took too long; `mlkv sync` uploads the rest", sys.stderr)
            elif code:
                self._give_up(f"W&B's process ended with {code}")

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Give up mirroring for any error: a step must not fail for it."""
        try:
            yield
        except Exception as error:
            self._process = None
            self._give_up(in_one_line(error))

    @property
    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _replace(self) -> None:
        """Start another helper for one that has ended, and tell it of the attempt that runs."""
        if self._process is None:
            return
        if self._restarts == MAX_RESTARTS:
            code, self._process = self._process.returncode, None
            self._give_up(f"W&B's process ended {MAX_RESTARTS + 1} times, the last time with {code}")
            return
        self._restarts += 1
        self._start()
        if self._began:
            self._send(self._began)

    def _start(self) -> None:
        """Start the helper in a session of its own: a signal to the worker's process group must not end it before the
        last rows have arrived."""
        assert self._target
        self._process = None
        command = [sys.executable, "-m", "sweeps.tracking.helper", str(self._store.root)]
        try:
            process = subprocess.Popen(
                command,
                env=environment(self._target),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            self._give_up(f"W&B's process cannot be started ({error})")
            return
        assert process.stdin
        os.set_blocking(process.stdin.fileno(), False)  # a helper that hangs must not stop the worker
        self._process = process

    def _send(self, message: dict[str, object]) -> None:
        """Send a message to a helper that may die or hang at this very moment; `watch` sees to it."""
        if self._process and self._process.stdin:
            with suppress(OSError):
                self._process.stdin.write(json.dumps(message).encode() + b"\n")

    def _give_up(self, reason: str) -> None:
        say(f"{reason}; `mlkv sync` uploads the rest", sys.stderr)
        if self._attempt:
            self._attempt.log_tracking(reason)
