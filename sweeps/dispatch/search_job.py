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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from slurm.jobs import Job, JobId, Phase
from slurm.submit import INTERRUPTED as INTERRUPTED
from slurm.submit import SubmissionRefusedError
from sweeps.dispatch.queue_status import JobStatus, QueueError, driver_job, executor_of, latest_jobs
from sweeps.dispatch.submit import job_environment, submit
from sweeps.planning.config import DRIVER, ClusterConfig
from sweeps.steps.step import Step
from sweeps.store.code import import_variables
from sweeps.store.errors import UserError
from sweeps.store.outside import plain_reason
from sweeps.store.schema import JobRow
from sweeps.store.store import SavedSweep, Store
from sweeps.worker.job_context import SIGNALS, JobContext

LOOK_SECONDS = 3.0
"""Between two looks of a driver at the queue, at least: squeue asks one controller that all share."""


def submit_driver(
    sweep: str, command: Sequence[str], cluster: ClusterConfig, store: Store, after: Iterable[JobId] = ()
) -> JobStatus | JobId:
    """Queue the job that drives a sweep; the one that does so already where it waits or runs, unless it is this one.

    command: the arguments of `mlkv`. after: jobs that have to end well first. Raises UserError where SLURM refuses or
    does not answer.
    """
    executor = executor_of(cluster, store, {**job_environment(cluster, store), **_imports(store)})
    name = f"{DRIVER}.{secrets.token_hex(3)}"
    try:
        if (there := driver_job(sweep, store)) and there.live and there.id != JobContext.current().id:
            return there
        store.note_jobs([JobRow(name=name, sweep=sweep, drives=sweep)])
        argv = (sys.executable, "-m", "sweeps.cli", *command)
        job = Job(name, argv, cluster.resources_of(DRIVER), kind=DRIVER, after_ids=tuple(sorted(after)))
        return executor.submit([job])[name]
    except (SubmissionRefusedError, QueueError, ValueError) as error:
        if not isinstance(error, QueueError):
            store.note_jobs([JobRow(refused=[name])])
        reason = error.reason if isinstance(error, SubmissionRefusedError) else error
        raise UserError(f"cluster: {reason}; run the same line again when the cause is gone") from None


def _imports(store: Store) -> dict[str, str]:
    """The driver's own copy of the code, which plans: neither an edit of it nor of conf/ changes it in its next run.
    Raises UserError where it cannot be copied."""
    try:
        return import_variables(store.snapshot_driver())
    except OSError as error:
        raise UserError(f"store = {store.root}: the code cannot be copied there ({plain_reason(error)})") from None


class SlurmSearchJobs:
    """The jobs of a search in SLURM's queue. They go on whatever becomes of the driver, and the next one finds them."""

    def __init__(self, cluster: ClusterConfig, store: Store, known: Iterable[str] = ()) -> None:
        """known: steps that an earlier driver may have queued."""
        self._cluster, self._store = cluster, store
        self._steps, self._live, self._by_hand = set(known), set[str](), set[str]()
        self._asked = -LOOK_SECONDS
        self._ended_before: set[JobId | None] = set()
        """Jobs that somebody had cancelled before this driver began."""
        self._knows = False
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
                self._sort(latest_jobs(self._steps, self._store))
            except QueueError as error:
                self.notes.append(f"the queue does not answer ({error})")
            self._asked = time.monotonic()
        return self._live

    def _sort(self, jobs: Mapping[str, JobStatus]) -> None:
        self._live = {id for id, job in jobs.items() if job.live}
        ended = {id: job.id for id, job in jobs.items() if job.state.phase is Phase.CANCELLED}
        if not self._knows:
            self._ended_before, self._knows = set(ended.values()), True
        self._by_hand = {id for id, job in ended.items() if job not in self._ended_before}

    def ended_by_hand(self) -> set[str]:
        self.live()
        return self._by_hand

    def poll(self) -> None: ...

    def close(self) -> None: ...


class Warned(BaseException):
    """SLURM has warned the driver's job: it ends now, and goes on in its next run."""


def in_job() -> bool:
    """Whether this process is a job that mlkv queued."""
    return bool(JobContext.current().id)


@contextmanager
def warned() -> Iterator[None]:
    """Within it, the signal by which SLURM warns a job raises Warned."""

    def warn(number: int, _frame: FrameType | None) -> None:
        raise Warned(SIGNALS[signal.Signals(number)])

    before = signal.signal(signal.SIGUSR2, warn)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, before)
