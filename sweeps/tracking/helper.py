"""The process that mirrors what a worker does: `python -m sweeps.tracking.helper STORE`, told by lines on its stdin.

The step that runs comes first; when there is nothing to do for it, the runs of variants are written, one at a time. It
is no part of the work: it may hang, fail or be killed, and the step does not notice. It ends when stdin does, at the
latest after the configured timeout.
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
from functools import partial
from pathlib import Path
from typing import IO

from sweeps.store.attempt import Attempt
from sweeps.store.axis import Axis, Json
from sweeps.store.files import utc_now
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store, StoreError
from sweeps.tracking.mirror import MirrorError, OpenRun, ServiceEndedError, redacted, restart_service
from sweeps.tracking.runs import step_run
from sweeps.tracking.target import Target
from sweeps.tracking.variants import VariantRuns

POLL_SECONDS = 0.5
RETRY_SECONDS = 300.0
"""After what could not be mirrored: a long step is taken up again when W&B is back."""


class Follower:
    """Mirrors one attempt of a step while it runs."""

    def __init__(self, store: Store, target: Target, step: StepDir, attempt: Attempt, pid: int) -> None:
        self._step, self._attempt, self._target = step, attempt, target
        self._directory = store.tracking(target.sweep)
        self._sweep = None
        if target.sweep:
            self._sweep = store.sweep(target.sweep)
        self._axis, self._position = Axis(step.kind), 0
        self._catch_up()
        self._run = OpenRun(step_run(step, self._sweep), target.config, self._directory, pid)
        self._run.log(step.history())

    def _catch_up(self) -> None:
        """Move the axis past what earlier attempts logged."""
        for earlier in self._step.attempts():
            if earlier.number < self._attempt.number:
                self._axis.new_attempt()
                list(self._axis.rows(earlier.metrics()))
        self._axis.new_attempt()

    def pump(self) -> None:
        rows, self._position = self._attempt.metrics_from(self._position)
        self._run.log(self._axis.rows(rows))

    def finish(self) -> None:
        run = step_run(self._step, self._sweep)
        self._run.finish(run)
        if self._target.config.mode == "offline" and run.settled:
            self._directory.mark_written(run.id, run.fingerprint)


class Helper:
    def __init__(self, store: Store, target: Target) -> None:
        self._store, self._target = store, target
        self._told: queue.Queue[Json | None] = queue.Queue()
        self._follower: Follower | None = None
        self._follow: Callable[[], Follower] | None = None
        self._attempt: Attempt | None = None
        self._again_at = 0.0
        self._variants = VariantRuns(store, target)

    def listen(self, lines: IO[str]) -> None:
        """Every message, then None; from there on the time is limited."""
        for line in lines:
            self._told.put(json.loads(line))
        self._told.put(None)
        overdue = threading.Timer(self._target.config.timeout, os._exit, [1])
        overdue.daemon = True
        overdue.start()

    def run(self) -> None:
        threading.Thread(target=self.listen, args=(sys.stdin,), daemon=True).start()
        while (told := self._next()) is not None:
            if "attempt" in told:
                self._try(partial(self._begin, told))
            elif told:
                self._try(partial(self._variants.ended, told["step"]))
            else:
                self._try(self._pump)
                self._try(self._write_variant)
        while self._variants.waiting:
            self._try(self._write_variant)

    def _next(self) -> Json | None:
        """What the worker says; empty while it says nothing, None at the end. Whatever it says ends the attempt."""
        try:
            told = self._told.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return {}
        self._try(self._finish)
        self._follow = self._follower = None
        return told

    def _begin(self, told: Json) -> None:
        step = self._store.step(told["step"])
        attempt = next(a for a in step.attempts() if a.number == told["attempt"])
        self._attempt = attempt
        self._follow = lambda: Follower(self._store, self._target, step, attempt, told["pid"])
        self._follower = self._follow()

    def _pump(self) -> None:
        if self._follower:
            self._follower.pump()
        elif self._follow and time.monotonic() >= self._again_at:
            self._follower = self._follow()

    def _finish(self) -> None:
        if self._follower:
            self._follower.finish()

    def _write_variant(self) -> None:
        if self._variants.waiting:
            self._variants.write_next()

    def _try(self, do: Callable[[], None]) -> None:
        """W&B's failures and a full disk end the mirroring of this attempt for a while, and nothing else."""
        try:
            try:
                do()
            except ServiceEndedError:
                self._start_over(do)
        except (MirrorError, StoreError, OSError) as error:
            self._follower, self._again_at = None, time.monotonic() + RETRY_SECONDS
            self._variants.forget()
            self._log(str(error) if isinstance(error, MirrorError) else redacted(error))

    def _start_over(self, do: Callable[[], None]) -> None:
        """W&B's own process was killed: once more with a new one, which takes the attempt's run up where it stands."""
        restart_service()
        if self._follower and self._follow:
            self._follower = self._follow()
        do()

    def _log(self, message: str) -> None:
        line = f"{utc_now()} not mirrored to W&B ({message}); `mlkv sync` will\n"
        try:
            assert self._attempt
            with self._attempt.tracking_log.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError:
            sys.stderr.write(line)


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    logging.raiseExceptions = False  # on a full disk W&B's own log would fill the job's
    target = Target.of_environment()
    if target:
        Helper(Store(Path(sys.argv[1])), target).run()


if __name__ == "__main__":
    main()
