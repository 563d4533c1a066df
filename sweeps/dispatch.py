"""Where planned jobs go: subprocesses of this machine, or SLURM. The only module of sweeps that knows slurm."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace

from slurm import records
from slurm.jobs import Job, JobId, JobState, Resources
from slurm.local import LocalExecutor
from slurm.queue import QueueError
from slurm.submit import SlurmExecutor, SubmissionRefusedError
from sweeps.config import ClusterConfig
from sweeps.errors import UserError
from sweeps.jobs import PlannedJob, planned_jobs
from sweeps.steps import Step
from sweeps.store import SavedSweep, Store
from sweeps.tracking.target import saved_target

Queued = dict[str, tuple[JobId, JobState]]
"""Step id → the live job that will run it."""


def start_here(jobs: list[PlannedJob], cluster: ClusterConfig, store: Store, saved: SavedSweep) -> LocalExecutor:
    """Begin jobs on this machine; the caller polls."""
    executor = LocalExecutor(saved.submissions, slots=cluster.slots, env={**os.environ, **_environment(store, saved)})
    executor.submit([_job(store, job) for job in jobs])
    return executor


def queue_up(steps: Iterable[Step], cluster: ClusterConfig, store: Store, saved: SavedSweep) -> dict[str, JobId]:
    """Submit what no live job will run already, and return; job name → id. Raises UserError where SLURM refuses."""
    executor = _slurm(cluster, store, saved)
    try:
        queued = queued_steps(cluster, store)
        planned = planned_jobs([step for step in steps if step.id not in queued], cluster)
        stamp = secrets.token_hex(3)
        jobs = [_slurm_job(store, job, queued, stamp) for job in planned]
        store.note_jobs(
            [{"name": _stamped(job.name, stamp), "steps": job.steps, "sweep": saved.name} for job in planned]
        )
        return executor.submit(jobs)
    except SubmissionRefusedError as error:
        raise UserError(f"cluster: {error}; run the same line again when there is room") from None
    except (QueueError, ValueError) as error:
        raise UserError(f"cluster: {error}") from None


def queued_steps(cluster: ClusterConfig, store: Store) -> Queued:
    """Steps that a pending or running job of this store will run; one question to SLURM for all of them."""
    told = {row["name"]: row["steps"] for row in store.noted_jobs()}
    ids = {name: id for record in records.recover(store.queue) for name, id in record.ids().items() if name in told}
    if not ids:
        return {}
    states = _slurm(cluster, store).states(ids.values())
    live = {name: id for name, id in ids.items() if not states[id].ended}
    return {step: (id, states[id]) for name, id in live.items() for step in told[name]}


def cancel(steps: Iterable[str], cluster: ClusterConfig, store: Store) -> int:
    """End the live jobs that would run any of these steps; how many."""
    queued = queued_steps(cluster, store)
    ids = {queued[step][0] for step in steps if step in queued}
    _slurm(cluster, store).cancel(ids)
    return len(ids)


def _slurm(cluster: ClusterConfig, store: Store, saved: SavedSweep | None = None) -> SlurmExecutor:
    return SlurmExecutor(store.queue, cluster, env=_environment(store, saved))


def _slurm_job(store: Store, planned: PlannedJob, queued: Mapping[str, tuple[JobId, JobState]], stamp: str) -> Job:
    elsewhere = {queued[parent][0] for parent in planned.needs if parent in queued}
    job = _job(store, planned)
    after = tuple(_stamped(name, stamp) for name in job.after)
    return replace(job, name=_stamped(job.name, stamp), after=after, after_ids=tuple(sorted(elsewhere)))


def _stamped(name: str, stamp: str) -> str:
    """Job names are told apart over submissions."""
    return f"{name}.{stamp}"


def _job(store: Store, planned: PlannedJob) -> Job:
    argv = (sys.executable, "-m", "sweeps.worker", str(store.root), *planned.steps)
    return Job(planned.name, argv, _resources(planned), planned.after, planned.kind)


def _resources(planned: PlannedJob) -> Resources:
    asked = planned.resources
    return Resources(**{**asdict(asked), "tasks_per_node": asked.tasks_per_node or 1})


def _environment(store: Store, saved: SavedSweep | None) -> dict[str, str]:
    """Jobs import the code as it is now, wherever they start and whatever is edited meanwhile."""
    paths = [str(store.snapshot_code()), *filter(None, [os.environ.get("PYTHONPATH")])]
    tracking = saved_target(saved).environment() if saved else {}
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false", **tracking}
