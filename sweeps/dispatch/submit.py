"""Where planned jobs go: subprocesses of this machine, or SLURM (what became of them there: queued.py)."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from slurm import site
from slurm.jobs import Job, JobId, Resources
from slurm.local import LocalExecutor
from slurm.queue import QueueError
from slurm.submit import SlurmExecutor, SubmissionRefusedError
from sweeps.dispatch.grouping import PlannedJob, planned_jobs
from sweeps.dispatch.queue_status import QueuedJob, jobs_of, throttle
from sweeps.planning.config import TRAINED, ClusterConfig
from sweeps.steps.step import Step
from sweeps.store.errors import UserError
from sweeps.store.store import SavedSweep, Store
from sweeps.tracking.target import saved_target
from sweeps.worker.frozen import CODE
from sweeps.worker.job_context import QUEUED

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""The environment of jobs that see no internet."""


def start_here(jobs: list[PlannedJob], cluster: ClusterConfig, store: Store, saved: SavedSweep) -> LocalExecutor:
    """Begin jobs on this machine; the caller polls. Raises UserError for a job that this machine cannot run."""
    executor = LocalExecutor(saved.submissions, slots=cluster.slots, env={**os.environ, **_environment(store, saved)})
    try:
        executor.submit([_job(store, job) for job in jobs])
    except ValueError as error:
        raise UserError(f"cluster: {error}") from None
    return executor


def queue_up(steps: Iterable[Step], cluster: ClusterConfig, store: Store, saved: SavedSweep) -> dict[str, JobId]:
    """Submit what no live job will run already, and return; job name → id. `cluster.max_running` holds for what is
    queued, too. Raises UserError where SLURM refuses or does not answer."""
    todo = {step.id: step for step in steps}
    offline = OFFLINE if cluster.offline else {}
    executor = SlurmExecutor(store.queue, cluster, env={**_environment(store, saved), **offline, QUEUED: "1"})
    try:
        live = {id: job for id, job in jobs_of(_with_parents(todo.values()), store).items() if job.live}
        throttle(live.values(), cluster, store)
        planned = planned_jobs([step for id, step in todo.items() if id not in live], cluster)
        stamp = secrets.token_hex(3)
        jobs = [_slurm_job(store, job, live, stamp) for job in planned]
        store.note_jobs(
            [{"name": _stamped(job.name, stamp), "steps": job.steps, "sweep": saved.name} for job in planned]
        )
        return executor.submit(jobs)
    except SubmissionRefusedError as error:
        raise UserError(f"cluster: {error}; run the same line again when there is room") from None
    except (QueueError, ValueError) as error:
        raise UserError(f"cluster: {error}") from None


def _with_parents(steps: Iterable[Step]) -> set[str]:
    return {id for step in steps for id in (step.id, *step.parents.values())}


@dataclass(frozen=True)
class Forecast:
    """What the site says of jobs before they are queued."""

    starts: dict[str, datetime | None]
    """Kind → when SLURM would start a first such job; None: it does not say."""
    refusals: list[str]


def forecast(steps: Iterable[Step], cluster: ClusterConfig, store: Store) -> Forecast:
    """Ask SLURM about the jobs of these steps; nothing is written or queued. Raises UserError where it does not
    answer."""
    planned = planned_jobs(list(steps), cluster)
    executor = SlurmExecutor(store.queue, cluster)
    asked = {job.kind: _resources(job) for job in planned}
    starts: dict[str, datetime | None] = {}
    refusals: list[str] = []
    try:
        room, nodes = site.room(cluster), site.nodes()
        for kind, resources in asked.items():
            problems = site.problems(cluster, resources, nodes)
            refusals += [f"{kind}: {problem}" for problem in problems]
            if not problems:
                try:
                    starts[kind] = executor.start_estimate(resources)
                except ValueError as error:
                    refusals.append(f"{kind}: {error}")
    except QueueError as error:
        raise UserError(f"cluster: {error}") from None
    if room < len(planned):
        refusals.append(f"the site lets {room} more jobs of yours into the queue; the same line later queues the rest")
    return Forecast(starts, refusals)


def _slurm_job(store: Store, planned: PlannedJob, live: Mapping[str, QueuedJob], stamp: str) -> Job:
    elsewhere = {str(live[parent].id) for parent in planned.needs if parent in live}
    job = _job(store, planned)
    return replace(
        job,
        name=_stamped(job.name, stamp),
        after=tuple(_stamped(name, stamp) for name in job.after),
        after_ids=tuple(sorted(elsewhere)),
    )


def _stamped(name: str, stamp: str) -> str:
    """Job names are told apart over submissions."""
    return f"{name}.{stamp}"


def _job(store: Store, planned: PlannedJob) -> Job:
    argv = (sys.executable, "-m", "sweeps.worker", str(store.root), *planned.steps)
    return Job(planned.name, argv, _resources(planned), planned.after, planned.kind)


def _resources(planned: PlannedJob) -> Resources:
    """Kinds that do not train are one process, whatever GPUs they ask for."""
    asked = planned.resources
    processes = asked.processes_per_node if planned.kind in TRAINED else asked.tasks_per_node or 1
    return Resources(**{**asdict(asked), "tasks_per_node": processes})


_QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    # Libraries' bars would only fill err.log; progress is in metrics.jsonl.
    "TQDM_DISABLE": "1",
    # Threads of one job that wait for each other soon sleep: spinning costs a factor of four beside any other process.
    "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "100"),
}


def _environment(store: Store, saved: SavedSweep | None) -> dict[str, str]:
    """Jobs import the code as it is now, wherever they start and whatever is edited meanwhile. Raises UserError where
    the store cannot be written."""
    try:
        snapshot = store.snapshot_code()
    except OSError as error:
        raise UserError(f"store = {store.root}: the code cannot be copied there ({error.strerror})") from None
    paths = [str(snapshot), *filter(None, [os.environ.get("PYTHONPATH")])]
    tracking = saved_target(saved).environment() if saved else {}
    code = {CODE: snapshot.name, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    return {**_QUIET, **code, **tracking}
