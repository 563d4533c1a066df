"""The worker's end of mirroring: starts the helper process and tells it what happens. Never waits but at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from sweeps.store.console import say
from sweeps.store.stepdir import Claim
from sweeps.store.store import Store
from sweeps.tracking.target import Target


def environment(target: Target) -> dict[str, str]:
    """Of a process that writes to W&B. WANDB_SERVICE would make it share, and end with, somebody else's client."""
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return {**inherited, "WANDB_SILENT": "true", **target.environment()}


class Mirror:
    """Does nothing at all where the environment names no target."""

    def __init__(self, store: Store) -> None:
        self._store, self._target = store, Target.of_environment()
        self._process: subprocess.Popen[bytes] | None = None

    def began(self, claim: Claim, pid: int | None) -> None:
        """An attempt has begun; process `pid` computes."""
        if self._target and self._process is None:
            try:
                self._start()
            except OSError as error:
                say(f"W&B's helper cannot be started ({error}); `mlkv sync` sends it all", sys.stderr)
        self._tell({"step": claim.step.id, "attempt": claim.attempt.number, "pid": pid})

    def ended(self, claim: Claim) -> None:
        """The attempt has ended and its record, if any, is written."""
        self._tell({"step": claim.step.id})

    def close(self) -> None:
        """Let the helper finish, for as long as the configuration says."""
        if not self._process or not self._target:
            return
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(self._target.config.timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            say("W&B took too long; `mlkv sync` sends what it did not get", sys.stderr)

    def _start(self) -> None:
        """In a session of its own, so that what ends the worker's group lets the last rows arrive."""
        assert self._target
        command = [sys.executable, "-m", "sweeps.tracking.helper", str(self._store.root)]
        self._process = subprocess.Popen(
            command,
            env=environment(self._target),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin
        os.set_blocking(self._process.stdin.fileno(), False)

    def _tell(self, message: dict[str, object]) -> None:
        """A helper that died or hangs is not waited for."""
        if self._process and self._process.stdin:
            try:
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
            except OSError:
                say("W&B's helper is gone; `mlkv sync` sends what it did not", sys.stderr)
