"""Every process but the first in a job of several: it joins each training that the first one begins, and does no more.

The first process claims steps and writes records as usual. It writes the attempt's env.json, in which the others read
the address of the process group. A rank worker's exit status is 0 unless its own process dies, so that the first
process's status is the job's.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Sequence
from types import FrameType

from sweeps.steps.extensions import is_training
from sweeps.store.attempt import Attempt
from sweeps.store.console import say
from sweeps.store.errors import StoreError
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store
from sweeps.worker.child_process import Child
from sweeps.worker.job_context import SIGNALS, JobContext
from sweeps.worker.messages import Request, answer_to

POLL_SECONDS = 0.5
EXIT_PEER_DIED = 4
"""Exit status when the process that trains here died, or the store cannot be read: the job goes back into the queue."""


class RankWorker:
    def __init__(self, store: Store, job: JobContext) -> None:
        self._store, self._job = store, job
        self._child = Child(store)
        self._stopping = False
        self._joined: set[int] = set()

    def run(self, steps: Sequence[str]) -> int:
        for number in SIGNALS:
            signal.signal(number, self._on_stop)
        try:
            status = next((status for id in steps if (status := self._join_all_attempts(self._store.step(id)))), 0)
        except Exception as error:  # of this process or of the store: the child's own end is an answer
            if not isinstance(error, OSError | StoreError):
                say(traceback.format_exc().rstrip(), sys.stderr)
            say(f"rank {self._job.rank}: {answer_to(error).reason}", sys.stderr)
            self._child.kill()
            status = EXIT_PEER_DIED
        self._child.close()
        return status

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        self._child.stop()

    def _join_all_attempts(self, step: StepDir) -> int:
        """Until the step is done; 0 at once for a step that processes do not share."""
        spec = step.spec()
        shared = spec is not None and is_training(self._store, spec)
        while shared and not (step.record() or self._stopping):
            if attempt := self._attempt_to_join(step):
                self._joined.add(attempt.number)
                if status := self._join(step, attempt):
                    return status
            else:
                time.sleep(POLL_SECONDS)
        return 0

    def _attempt_to_join(self, step: StepDir) -> Attempt | None:
        """The attempt that this job's first process has begun and this one has not joined."""
        attempts = step.attempts()
        if not attempts or attempts[-1].number in self._joined:
            return None
        return attempts[-1] if self._job.same_run(attempts[-1].environment()) else None

    def _join(self, step: StepDir, attempt: Attempt) -> int:
        environment = attempt.environment()
        first = (environment.group if environment else None) or {}
        group = self._job.group(first["MASTER_ADDR"], int(first["MASTER_PORT"]))
        self._child.send(Request(step=step.id, attempt=attempt.number, group=group))
        while not (answer := self._child.answer(timeout=POLL_SECONDS)):
            pass
        if answer.state == "done" or self._stopping:
            return 0
        say(f"rank {self._job.rank}: {answer.state}: {answer.reason}", sys.stderr)
        return EXIT_PEER_DIED if answer.state == "vanished" else 0
