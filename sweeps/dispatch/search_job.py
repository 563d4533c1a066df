"""A search on SLURM: the job that drives it, and the jobs that this one queues.

The driver is a job like any other: the queue starts it, warns it before its time limit, and puts it back where it was
warned or killed. What it needs to go on is in the store. It asks SLURM for the states of its jobs, so a controller that
does not answer costs it a look, and no job.
"""

from __future__ import annotations

import secrets
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from slurm.jobs import Job, JobId
from slurm.submit import INTERRUPTED as INTERRUPTED
from slurm.submit import SubmissionRefusedError
from sweeps.dispatch.queue_status import JobStatus, QueueError, driver_job, executor_of, latest_jobs
from sweeps.dispatch.submit import job_environment, submit
from sweeps.planning.config import DRIVER, ClusterConfig
from sweeps.steps.step import Step
from sweeps.store.errors import UserError
from sweeps.store.schema import JobRow
from sweeps.store.store import SavedSweep, Store

LOOK_SECONDS = 3.0
"""Between two looks of a driver at the queue, at least: squeue asks one controller that all share."""


def submit_driver(sweep: str, command: Sequence[str], cluster: ClusterConfig, store: Store) -> JobStatus | JobId:
    """Queue the job that drives a sweep; the one that does so already where it waits or runs.

    command: the arguments of `mlkv`. Raises UserError where SLURM refuses or does not answer.
    """
    executor = executor_of(cluster, store, job_environment(cluster, store))
    name = f"{DRIVER}.{secrets.token_hex(3)}"
    try:
        if (there := driver_job(sweep, store)) and there.live:
            return there
        store.note_jobs([JobRow(name=name, sweep=sweep, drives=sweep)])
        argv = (sys.executable, "-m", "sweeps.cli", *command)
        return executor.submit([Job(name, argv, cluster.resources_of(DRIVER), kind=DRIVER)])[name]
    except (SubmissionRefusedError, QueueError, ValueError) as error:
        if not isinstance(error, QueueError):
            store.note_jobs([JobRow(refused=[name])])
        reason = error.reason if isinstance(error, SubmissionRefusedError) else error
        raise UserError(f"cluster: {reason}; run the same line again when the cause is gone") from None


class SlurmSearchJobs:
    """The jobs of a search in SLURM's queue. They go on whatever becomes of the driver, and the next one finds them."""

    def __init__(self, cluster: ClusterConfig, store: Store, known: Iterable[str] = ()) -> None:
        """known: steps that an earlier driver may have queued."""
        self._cluster, self._store = cluster, store
        self._steps, self._live = set(known), set[str]()
        self._asked = -LOOK_SECONDS
        self.notes: list[str] = []
        """What a person should know, one line each."""

    def begin(self, steps: Sequence[Step], saved: SavedSweep) -> set[str]:
        """Queue steps, as many as SLURM takes now; the ids of those that wait or run then. Raises UserError where it
        refuses them for good."""
        self._steps |= {step.id for step in steps}
        try:
            self.notes += submit(steps, self._cluster, self._store, saved).notes
        except UserError as error:
            if not isinstance(error.__context__, QueueError):
                raise
        self._asked = -LOOK_SECONDS
        return self.live() & {step.id for step in steps}

    def live(self) -> set[str]:
        """Steps of jobs that wait or run. Where SLURM does not answer, those that did when it last answered."""
        if time.monotonic() - self._asked >= LOOK_SECONDS:
            try:
                self._live = {id for id, job in latest_jobs(self._steps, self._store).items() if job.live}
            except QueueError as error:
                self.notes.append(f"the queue does not answer ({error})")
            self._asked = time.monotonic()
        return self._live

    def poll(self) -> None: ...

    def close(self) -> None: ...


@contextmanager
def warned() -> Iterator[list[int]]:
    """Within it, the signals by which SLURM warns a job are noted, and end nothing: the driver looks at the list."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
