"""The state of a sweep's steps from the store and from SLURM's queue together.

The store has the last word on what was done; the queue says what will still run, and why what ended is not done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from slurm import queue, records
from slurm.jobs import JobId, JobState, Phase
from slurm.queue import QueueError as QueueError
from slurm.submit import SlurmExecutor
from sweeps.planning.config import ClusterConfig
from sweeps.store.schema import JobRow
from sweeps.store.states import NOTHING_LEFT, StepState
from sweeps.store.stepdir import State
from sweeps.store.store import Store


@dataclass(frozen=True)
class JobStatus:
    """The latest job that was to run a step. Without an id: the store knows of it, but it never reached the queue."""

    id: JobId | None
    state: JobState
    output: Path | None = None

    @property
    def live(self) -> bool:
        return not self.state.ended

    @property
    def forgotten(self) -> bool:
        """Whether it was in the queue, which no longer knows how it ended."""
        return self.id is not None and self.state.phase is Phase.UNKNOWN

    def __str__(self) -> str:
        reason = f" ({self.state.reason})" if self.state.reason else ""
        if self.id is None:
            return self.state.reason
        return f"job {self.id}: {self.state.phase.lower()}{reason}"


JobStatuses = dict[str, JobStatus]
"""Step id → its latest job."""

CANCELLED = JobState(Phase.CANCELLED, "by mlkv cancel")
NOT_SUBMITTED = JobStatus(None, JobState(Phase.UNKNOWN, "its job never reached the queue"))
REFUSED = JobStatus(None, JobState(Phase.UNKNOWN, "SLURM did not take its job; the same `mlkv sweep` line tries again"))


def latest_jobs(steps: Iterable[str], store: Store) -> JobStatuses:
    """The latest job of each of these steps that ever had one. Raises QueueError.

    Asks SLURM once, whatever the number of steps.
    """
    wanted = set(steps)
    noted = store.noted_jobs()
    return _statuses({step: str(row.name) for row in noted for step in row.steps or () if step in wanted}, store)


def driver_job(sweep: str, store: Store) -> JobStatus | None:
    """The latest job that was to drive a sweep; None where none ever was. Raises QueueError."""
    names = [str(row.name) for row in store.noted_jobs() if row.drives == sweep]
    return _statuses({sweep: names[-1]}, store)[sweep] if names else None


def _statuses(latest: Mapping[str, str], store: Store) -> JobStatuses:
    """The states of jobs by their names. Raises QueueError."""
    noted = store.noted_jobs()
    if not latest:
        return {}
    known = {
        name: (id, records.output(store.queue, record, int(id.split("_")[1])))
        for record in records.recover(store.queue)
        for name, id in record.ids().items()
    }
    refused = {name for row in noted for name in row.refused or ()}
    states = queue.states(known[name][0] for name in set(latest.values()) if name in known)
    for id in {id for row in noted for id in row.cancelled or ()} & states.keys():
        # SLURM may keep no trace of a task that was cancelled before it started; `cancel` below left a note of it.
        states[id] = CANCELLED if states[id].phase is Phase.UNKNOWN else states[id]
    statuses = {name: JobStatus(id, states[id], output) for name, (id, output) in known.items() if id in states}
    missing = {name: REFUSED if name in refused else NOT_SUBMITTED for name in latest.values()}
    return {step: statuses.get(name, missing[name]) for step, name in latest.items()}


def with_queue(states: dict[str, State], store: Store) -> tuple[dict[str, State], JobStatuses]:
    """States of steps by the store and the queue, and the jobs of those that are neither done nor stopped. Raises
    QueueError.

    states: by the store alone.
    """
    jobs = latest_jobs((id for id, state in states.items() if state.name not in NOTHING_LEFT), store)
    return states | {id: _with_job(states[id], job, store, id) for id, job in jobs.items()}, jobs


def _with_job(state: State, job: JobStatus, store: Store, step: str) -> State:
    if state.name == StepState.RUNNING:
        return replace(state, reason=f"{state.reason}, job {job.id}")
    if job.live:
        # A step that failed in this job stays failed while the job runs other steps. A step that failed in an earlier
        # job is waiting: this job was submitted to run it again.
        last = store.step(step).attempt()
        environment = last.environment() if last else None
        if state.name == StepState.FAILED and environment and environment.job == job.id:
            return state
        return replace(state, name=StepState.PENDING, reason=str(job))
    if state.name == StepState.FAILED:
        return state
    if job is REFUSED and state.name == StepState.PENDING:
        return replace(state, reason=job.state.reason)
    if job.state.phase is Phase.CANCELLED:
        return replace(state, name=StepState.CANCELLED, reason=_why_not_done(state, job))
    if state.name == StepState.INTERRUPTED:
        return replace(state, reason=_why_not_done(state, job))
    return replace(state, name=StepState.LOST, reason=_why_not_done(state, job))


def _why_not_done(state: State, job: JobStatus) -> str:
    """The reason to show for a step whose job has ended without finishing it."""
    hints = {
        Phase.TIMEOUT: "reached its time limit (cluster.resources.KIND.minutes)",
        Phase.OUT_OF_MEMORY: "ran out of memory (cluster.resources.KIND.memory_gb)",
    }
    queue_reason = f"job {job.id} {hints[job.state.phase]}" if job.state.phase in hints else str(job)
    return "; ".join(filter(None, [state.reason, queue_reason]))


def cancel(steps: Iterable[str], store: Store) -> int:
    """End the live jobs that would run any of these steps; returns their number. Raises QueueError."""
    return _cancel(latest_jobs(steps, store).values(), store)


def cancel_driver(sweep: str, store: Store) -> int:
    """End the live job that drives a sweep, so that it queues no more; returns how many these were. Raises
    QueueError."""
    return _cancel(filter(None, [driver_job(sweep, store)]), store)


def _cancel(jobs: Iterable[JobStatus], store: Store) -> int:
    ids = {job.id for job in jobs if job.live and job.id}
    SlurmExecutor(store.queue).cancel(ids)
    store.note_jobs([JobRow(cancelled=sorted(ids))])
    return len(ids)


def throttle(jobs: Iterable[JobStatus], cluster: ClusterConfig, store: Store) -> None:
    """Apply `max_running` to the arrays that still have waiting tasks."""
    waiting = [job.id for job in jobs if job.id and job.state.phase is Phase.PENDING]
    executor_of(cluster, store).apply_max_running(waiting)


def executor_of(cluster: ClusterConfig, store: Store, env: Mapping[str, str] | None = None) -> SlurmExecutor:
    """Queues the store's jobs, each kind of step with its own profile."""
    profiles = {kind: cluster.profile_of(kind) for kind in cluster.profiles}
    return SlurmExecutor(store.queue, cluster, profiles=profiles, env=env)
