"""The process that mirrors a worker's steps to W&B: `python -m sweeps.tracking.helper STORE`.

The worker (supervisor.py) sends it messages, a JSON object per line on stdin. The running step comes first; while there
is nothing to do for it, the runs of variants are written, one at a time. It is a process of its own because wandb may
hang, fail or end the process that imports it: the step does not notice. It ends when stdin does, at the latest after
the configured timeout.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

from mlkv.files import Json
from sweeps.steps.extensions import know_kind
from sweeps.steps.registry import axis_of
from sweeps.store.attempt import Attempt
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store
from sweeps.tracking.alerts import step_alert, sweep_alert
from sweeps.tracking.console import attempt_console
from sweeps.tracking.mirror import MirrorError, OpenRun, ServiceEndedError, redacted, restart_service
from sweeps.tracking.runs import Run, step_run
from sweeps.tracking.supervisor import GAVE_UP
from sweeps.tracking.target import Target
from sweeps.tracking.variants import VariantRuns

POLL_SECONDS = 0.5
CONSOLE_SECONDS = 5.0
"""Between two looks at what the step prints."""
RETRY_SECONDS = 300.0
"""Pause after a failure, so that a step of hours is mirrored again once W&B is back."""


class AttemptMirror:
    """Mirrors one attempt of a step while it runs: a W&B run that is open, and how far it has read metrics.jsonl."""

    def __init__(self, store: Store, target: Target, step: StepDir, attempt: Attempt, pid: int) -> None:
        self._store, self._step, self._attempt, self._target = store, step, attempt, target
        self._directory = store.tracking(target.sweep)
        self._sweep = None
        if target.sweep:
            self._sweep = store.sweep(target.sweep)
        if spec := step.spec():
            know_kind(store, spec)
        self._axis, self._position = axis_of(step.kind), 0
        self._skip_earlier_attempts()
        self._printed_at = 0.0
        run = self._shown()
        self._run = OpenRun(run, target.config, self._directory, pid)
        self._run.log(run.rows)
        self._run.print(run.console)

    def _shown(self) -> Run:
        return step_run(self._store, self._step, self._sweep, self._target.config)

    def _skip_earlier_attempts(self) -> None:
        """Move the axis past the rows of earlier attempts: a resumed attempt logs some of them again."""
        for earlier in self._step.attempts():
            if earlier.number < self._attempt.number:
                self._axis.new_attempt()
                list(self._axis.rows(earlier.metrics()))
        self._axis.new_attempt()

    def send_new_rows(self) -> None:
        rows, self._position = self._attempt.metrics_from(self._position)
        self._run.log(self._axis.rows(rows))
        if self._target.config.console and time.monotonic() >= self._printed_at + CONSOLE_SECONDS:
            self._printed_at = time.monotonic()
            self._run.print(attempt_console(self._attempt))

    def finish(self, given_up: bool = False) -> None:
        """given_up: the job does not try the step again."""
        run = self._shown()
        self._alert(run, given_up)
        self._run.finish(run)
        if self._target.config.mode == "offline" and run.settled:
            self._directory.mark_written(run.id, run.fingerprint)

    def _alert(self, run: Run, given_up: bool) -> None:
        wanted = self._target.config.alerts
        if wanted != "none" and (alert := step_alert(run, given_up, self._target.sweep)):
            self._run.alert(alert)
        end = sweep_alert(self._store, self._sweep) if wanted == "end" and self._sweep else None
        if end and self._directory.note_alert(end.once):
            self._run.alert(end)


class Helper:
    def __init__(self, store: Store, target: Target) -> None:
        self._store, self._target = store, target
        self._messages: queue.Queue[Json | None] = queue.Queue()
        self._mirror: AttemptMirror | None = None
        self._open_mirror: Callable[[], AttemptMirror] | None = None
        self._attempt: Attempt | None = None
        self._retry_at = 0.0
        self._variants = VariantRuns(store, target)

    def listen(self, lines: IO[str]) -> None:
        """Queue every message, then None. From the end of stdin on, the configured timeout runs."""
        for line in lines:
            self._messages.put(json.loads(line))
        self._messages.put(None)
        overdue = threading.Timer(self._target.config.timeout, self._give_up)
        overdue.daemon = True
        overdue.start()

    def _give_up(self) -> None:
        """Note at every attempt that is not with W&B yet that time is up, and end without waiting any longer."""
        reason = f"it took longer than tracking.timeout = {self._target.config.timeout:g} s"
        unsent = [self._attempt] if self._attempt else []
        with suppress(queue.Empty):
            while True:
                message = self._messages.get_nowait()
                if message and "attempt" in message:
                    unsent.append(self._attempt_of(message))
        for attempt in unsent:
            attempt.log_tracking(reason)
        os._exit(GAVE_UP)

    def run(self) -> None:
        threading.Thread(target=self.listen, args=(sys.stdin,), daemon=True).start()
        while (message := self._next()) is not None:
            if "attempt" in message:
                self._try(partial(self._begin, message))
            elif message:
                self._try(partial(self._variants.ended, message["step"]))
            else:
                self._try(self._send_new_rows)
                self._try(self._write_variant)
        while self._variants.waiting:
            self._try(self._write_variant)

    def _next(self) -> Json | None:
        """The next message: empty when none came in time, None at the end. Any message means that the attempt before it
        has ended."""
        try:
            message = self._messages.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return {}
        self._try(partial(self._finish, bool(message and message.get("given_up"))))
        self._open_mirror = self._mirror = None
        return message

    def _begin(self, message: Json) -> None:
        step, attempt = self._store.step(message["step"]), self._attempt_of(message)
        self._attempt = attempt
        self._open_mirror = lambda: AttemptMirror(self._store, self._target, step, attempt, message["pid"])
        self._mirror = self._open_mirror()

    def _attempt_of(self, message: Json) -> Attempt:
        return next(a for a in self._store.step(message["step"]).attempts() if a.number == message["attempt"])

    def _send_new_rows(self) -> None:
        if self._mirror:
            self._mirror.send_new_rows()
        elif self._open_mirror and time.monotonic() >= self._retry_at:
            self._mirror = self._open_mirror()

    def _finish(self, given_up: bool) -> None:
        if self._mirror:
            self._mirror.finish(given_up)

    def _write_variant(self) -> None:
        if self._variants.waiting:
            self._variants.write_next()

    def _try(self, do: Callable[[], None]) -> None:
        """Call `do`. A failure, of W&B, of the disk or of ours, is logged and stops the mirroring of this attempt for
        RETRY_SECONDS; it never ends this process."""
        try:
            try:
                do()
            except ServiceEndedError:
                self._retry_with_new_service(do)
        except Exception as error:
            self._mirror, self._retry_at = None, time.monotonic() + RETRY_SECONDS
            self._variants.forget()
            self._log(str(error) if isinstance(error, MirrorError) else redacted(error))

    def _retry_with_new_service(self, do: Callable[[], None]) -> None:
        """wandb writes through a process of its own (wandb-core). Where that was killed, start another, resume the
        attempt's run in it and call `do` again."""
        restart_service()
        if self._mirror and self._open_mirror:
            self._mirror = self._open_mirror()
        do()

    def _log(self, message: str) -> None:
        if not (self._attempt and self._attempt.log_tracking(message)):
            sys.stderr.write(f"not mirrored to W&B ({message}); `mlkv sync` will\n")


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    logging.raiseExceptions = False  # on a full disk each line of W&B's own log would put a traceback into the job's
    target = Target.of_environment()
    if target:
        Helper(Store(Path(sys.argv[1])), target).run()


if __name__ == "__main__":
    main()
