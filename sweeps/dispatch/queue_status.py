"""What SLURM says of a sweep's steps, put together with the store, which has the last word on what was done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from slurm import queue, records
from slurm.jobs import JobId, JobState, Phase
from slurm.queue import QueueError as QueueError
from slurm.submit import SlurmExecutor
from sweeps.planning.config import ClusterConfig
from sweeps.store.stepdir import State
from sweeps.store.store import Store


@dataclass(frozen=True)
class QueuedJob:
    """The latest job that was to run a step. No id: it was written down, but never reached the queue."""

    id: JobId | None
    state: JobState
    output: Path | None = None

    @property
    def live(self) -> bool:
        return not self.state.ended

    def __str__(self) -> str:
        said = f"{self.state.phase.lower()}{f' ({self.state.reason})' if self.state.reason else ''}"
        return f"job {self.id}: {said}" if self.id else "its job never reached the queue"


Queued = dict[str, QueuedJob]
"""Step id → its latest job."""

CANCELLED = JobState(Phase.CANCELLED, "by mlkv cancel")
NEVER = QueuedJob(None, JobState(Phase.UNKNOWN, "not submitted"))


def jobs_of(steps: Iterable[str], store: Store) -> Queued:
    """The latest job of each of these steps that ever had one; one question to SLURM. Raises QueueError."""
    wanted = set(steps)
    noted = store.noted_jobs()
    latest = {step: str(row["name"]) for row in noted for step in row.get("steps", ()) if step in wanted}
    if not latest:
        return {}
    known = {
        name: (id, records.output(store.queue, record, int(id.split("_")[1])))
        for record in records.recover(store.queue)
        for name, id in record.ids().items()
    }
    states = queue.states(known[name][0] for name in set(latest.values()) if name in known)
    for id in {id for row in noted for id in row.get("cancelled", ())} & states.keys():
        # Of a task that never started SLURM may keep no trace.
        states[id] = CANCELLED if states[id].phase is Phase.UNKNOWN else states[id]
    found = {name: QueuedJob(id, states[id], output) for name, (id, output) in known.items() if id in states}
    return {step: found.get(name, NEVER) for step, name in latest.items()}


def with_queue(standing: dict[str, State], store: Store) -> tuple[dict[str, State], Queued]:
    """The standing of steps with what the queue says of those that are not done, and their jobs. Raises QueueError."""
    jobs = jobs_of((id for id, state in standing.items() if state.name != "DONE"), store)
    told = {id: _told(standing[id], job, store, id) for id, job in jobs.items()}
    return standing | told, jobs


def _told(state: State, job: QueuedJob, store: Store, step: str) -> State:
    if state.name == "RUNNING":
        return replace(state, reason=f"{state.reason}, job {job.id}")
    if job.live:
        last = store.step(step).attempt()
        mine = last is not None and (last.environment() or {}).get("job") == job.id
        return state if state.name == "FAILED" and mine else replace(state, name="PENDING", reason=str(job))
    if state.name == "FAILED":
        return state
    if job.state.phase is Phase.CANCELLED:
        return replace(state, name="CANCELLED", reason=_after(state, job))
    if state.name == "INTERRUPTED":
        return replace(state, reason=_after(state, job))
    return replace(state, name="LOST", reason=_after(state, job))


def _after(state: State, job: QueuedJob) -> str:
    """Why a step is not done although its job has ended."""
    hints = {
        Phase.TIMEOUT: "reached its time limit (cluster.resources.KIND.minutes)",
        Phase.OUT_OF_MEMORY: "ran out of memory (cluster.resources.KIND.memory_gb)",
    }
    said = f"job {job.id} {hints[job.state.phase]}" if job.state.phase in hints else str(job)
    return "; ".join(filter(None, [state.reason, said]))


def cancel(steps: Iterable[str], store: Store) -> int:
    """End the live jobs that would run any of these steps; how many. Raises QueueError."""
    ids = {job.id for job in jobs_of(steps, store).values() if job.live and job.id}
    SlurmExecutor(store.queue).cancel(ids)
    store.note_jobs([{"cancelled": sorted(ids)}])
    return len(ids)


def throttle(jobs: Iterable[QueuedJob], cluster: ClusterConfig, store: Store) -> None:
    """Let `cluster.max_running` hold for arrays of which something waits."""
    waiting = [job.id for job in jobs if job.id and job.state.phase is Phase.PENDING]
    SlurmExecutor(store.queue).set_max_running(waiting, cluster.max_running or 0)
