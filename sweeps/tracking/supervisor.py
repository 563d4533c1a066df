"""The worker's side of mirroring: starts the helper process and sends it messages. Waits for it at the end alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from sweeps.store.code import import_variables
from sweeps.store.console import say
from sweeps.store.stepdir import Claim
from sweeps.store.store import Store
from sweeps.tracking.target import Target

OF_THE_SERVER = frozenset(
    {
        "WANDB_API_KEY",
        "WANDB_APP_URL",
        "WANDB_BASE_URL",
        "WANDB_CACHE_DIR",
        "WANDB_CONFIG_DIR",
        "WANDB_CREDENTIALS_FILE",
        "WANDB_DATA_DIR",
        "WANDB_ENTITY",
        "WANDB_ERROR_REPORTING",
        "WANDB_HTTP_TIMEOUT",
        "WANDB_IDENTITY_TOKEN_FILE",
        "WANDB_INSECURE_DISABLE_SSL",
        "WANDB_USERNAME",
        "WANDB_USER_EMAIL",
        "WANDB__EXTRA_HTTP_HEADERS",
    }
)


def environment(target: Target) -> dict[str, str]:
    """The environment of a process that writes to W&B. Of W&B's own variables it has those that say where the server is
    and who asks. The others are about a run of the shell's own (WANDB_MODE, WANDB_RUN_ID, WANDB_SWEEP_ID, WANDB_TAGS,
    WANDB_SERVICE …): its client would prefer some of them to what we say, and refuses what it does not understand.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("WANDB_") or (value and name in OF_THE_SERVER)
    }
    return {**inherited, "WANDB_SILENT": "true", **import_variables(), **target.environment()}


class Mirror:
    """Sends a worker's steps to the helper process; does nothing where the environment names no target."""

    def __init__(self, store: Store) -> None:
        self._store, self._target = store, Target.of_environment()
        self._process: subprocess.Popen[bytes] | None = None

    def began(self, claim: Claim, pid: int | None) -> None:
        """An attempt has begun; `pid` is the process that computes."""
        if self._target and self._process is None:
            try:
                self._start()
            except OSError as error:
                say(f"W&B's process cannot be started ({error}); `mlkv sync` uploads everything", sys.stderr)
        self._send({"step": claim.step.id, "attempt": claim.attempt.number, "pid": pid})

    def ended(self, claim: Claim) -> None:
        """The attempt has ended and its record, if any, is written."""
        self._send({"step": claim.step.id})

    def close(self) -> None:
        """Wait until the helper has finished, for at most the configured timeout."""
        if not self._process or not self._target:
            return
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(self._target.config.timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            say("W&B took too long; `mlkv sync` uploads the rest", sys.stderr)

    def _start(self) -> None:
        """Start the helper in a session of its own: a signal to the worker's process group must not end it before the
        last rows have arrived."""
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
        os.set_blocking(self._process.stdin.fileno(), False)  # a helper that hangs must not stop the worker

    def _send(self, message: dict[str, object]) -> None:
        """Send a message, or print a line where the helper has died or hangs."""
        if self._process and self._process.stdin:
            try:
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
            except OSError:
                say("W&B's process has ended; `mlkv sync` uploads the rest", sys.stderr)
