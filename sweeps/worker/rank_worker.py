"""A process beside the first in a job of several: it joins every training that the first one begins, and no more.

The first process claims steps and writes records as ever; what it tells the others is its attempt's env.json, where
they find their meeting place. A follower's exit status is 0 unless its own process dies, so that the first process's
status is the job's.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from sweeps.steps.registry import trains
from sweeps.store.attempt import Attempt
from sweeps.store.console import say
from sweeps.store.outside import describe_error
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store
from sweeps.worker.child_process import Child
from sweeps.worker.job_context import SIGNALS, JobContext

POLL_SECONDS = 0.5
EXIT_PEER_DIED = 4
"""Exit status when the process that trains here died, or the store cannot be read: the job goes back into the queue."""


class Follower:
    def __init__(self, store: Store, job: JobContext) -> None:
        self._store, self._job = store, job
        self._child = Child(store)
        self._stopping = False
        self._joined: set[int] = set()

    def run(self, steps: Sequence[str]) -> int:
        for number in SIGNALS:
            signal.signal(number, self._on_stop)
        try:
            shared = (step for step in map(self._store.step, steps) if trains(step.spec() or {}))
            status = next((status for step in shared if (status := self._follow(step))), 0)
        except OSError as error:
            say(f"rank {self._job.rank}: the store: {describe_error(error)}", sys.stderr)
            self._child.kill()
            status = EXIT_PEER_DIED
        self._child.close()
        return status

    def _on_stop(self, number: int, frame: Any) -> None:
        self._stopping = True
        self._child.stop()

    def _follow(self, step: StepDir) -> int:
        while not (step.record() or self._stopping):
            if attempt := self._begun(step):
                self._joined.add(attempt.number)
                if status := self._join(step, attempt):
                    return status
            else:
                time.sleep(POLL_SECONDS)
        return 0

    def _begun(self, step: StepDir) -> Attempt | None:
        """The attempt that this job's first process has begun and this one has not joined."""
        attempts = step.attempts()
        if not attempts or attempts[-1].number in self._joined:
            return None
        return attempts[-1] if self._job.same_run(attempts[-1].environment()) else None

    def _join(self, step: StepDir, attempt: Attempt) -> int:
        environment = attempt.environment()
        meeting = (environment.group if environment else None) or {}
        self._child.ask(step.id, attempt.number, self._job.group(meeting["MASTER_ADDR"], int(meeting["MASTER_PORT"])))
        while not (answer := self._child.answer(timeout=POLL_SECONDS)):
            pass
        if answer["state"] == "done" or self._stopping:
            return 0
        say(f"rank {self._job.rank}: {answer['state']}: {answer.get('reason', '')}", sys.stderr)
        return EXIT_PEER_DIED if answer["state"] == "vanished" else 0
