"""Submits jobs: as subprocesses of this machine, or to SLURM (queue_status.py says what became of them there)."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from slurm import site
from slurm.jobs import Job, JobId, Phase
from slurm.local import LocalExecutor
from slurm.queue import QueueError
from slurm.submit import SlurmExecutor, SubmissionRefusedError
from sweeps.dispatch.grouping import JobSpec, job_specs
from sweeps.dispatch.queue_status import JobStatus, latest_jobs, throttle
from sweeps.planning.config import ClusterConfig
from sweeps.steps.step import Step
from sweeps.store.code import import_variables
from sweeps.store.errors import StoreError, UserError
from sweeps.store.schema import JobRow
from sweeps.store.store import SavedSweep, Store
from sweeps.tracking.target import saved_target
from sweeps.worker.frozen import CODE
from sweeps.worker.job_context import QUEUED

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""For nodes without internet: else Hugging Face's libraries ask the hub about every file that they already have."""


class LocalJobs:
    """Jobs on this machine. A step that its job could not begin at all (its process did not start, or died before the
    first step) is left with a note that says so."""

    def __init__(self, executor: LocalExecutor, jobs: Sequence[JobSpec], store: Store) -> None:
        """Raises ValueError for a job that this machine cannot run."""
        self._executor, self._jobs, self._store = executor, jobs, store
        self._attempts = {id: self._count(id) for job in jobs for id in job.steps}
        self._ids = executor.submit([_job(store, job) for job in jobs])

    @property
    def idle(self) -> bool:
        return self._executor.idle

    def poll(self) -> None:
        self._executor.poll()

    def close(self) -> None:
        """End what runs, and wait until it has ended."""
        self._executor.close()
        states = self._executor.states(self._ids.values())
        for job in self._jobs:
            if (state := states[self._ids[job.name]]).phase is Phase.FAILED:
                with suppress(OSError, StoreError):  # the store cannot be read, which the next reader of it says
                    self._note(job, state.reason)

    def _note(self, job: JobSpec, ended: str) -> None:
        """The first step that could have begun and did not has the reason; those after it wait for it, or for what
        failed before."""
        output = self._executor.output(self._ids[job.name])
        log = output.read_text(encoding="utf-8", errors="replace").splitlines() if output.is_file() else []
        last = next((" ".join(line.split()) for line in reversed(log) if line.strip()), "it printed nothing")
        for id in job.steps:
            step = self._store.step(id)
            if step.record() or self._count(id) > self._attempts[id]:
                continue
            spec = step.spec()
            if spec and all(self._store.step(parent).record() for parent in spec.parents.values()):
                step.note_not_begun("interrupted", f"its job could not begin ({ended}): {last}", "\n".join(log[-20:]))
            return

    def _count(self, id: str) -> int:
        try:
            return len(self._store.step(id).attempts())
        except OSError:
            return 0


def start_local(jobs: list[JobSpec], cluster: ClusterConfig, store: Store, saved: SavedSweep) -> LocalJobs:
    """Start jobs on this machine; the caller polls. Raises UserError for a job that this machine cannot run."""
    executor = LocalExecutor(saved.submissions, slots=cluster.slots, env={**os.environ, **_environment(store, saved)})
    try:
        return LocalJobs(executor, jobs, store)
    except ValueError as error:
        raise UserError(f"cluster: {error}") from None


def submit(steps: Iterable[Step], cluster: ClusterConfig, store: Store, saved: SavedSweep) -> dict[str, JobId]:
    """Submit to SLURM the steps that no live job will run already; returns job name → id without waiting.

    `cluster.max_running` is applied to the sweep's queued jobs too. Raises UserError where SLURM refuses or does not
    answer.
    """
    todo = {step.id: step for step in steps}
    offline = OFFLINE if cluster.offline else {}
    executor = SlurmExecutor(store.queue, cluster, env={**_environment(store, saved), **offline, QUEUED: "1"})
    try:
        live = {id: job for id, job in latest_jobs(_with_parents(todo.values()), store).items() if job.live}
        throttle(live.values(), cluster, store)
        specs = job_specs([step for id, step in todo.items() if id not in live], cluster)
        stamp = secrets.token_hex(3)
        # Noted before they are queued: a launcher that dies in between leaves jobs that the next one can still find.
        store.note_jobs(
            JobRow(name=_stamped(spec.name, stamp), steps=list(spec.steps), sweep=saved.name) for spec in specs
        )
        return executor.submit([_slurm_job(store, spec, live, stamp) for spec in specs])
    except SubmissionRefusedError as error:
        raise UserError(f"cluster: {error}; run the same line again when there is room") from None
    except (QueueError, ValueError) as error:
        raise UserError(f"cluster: {error}") from None


def _with_parents(steps: Iterable[Step]) -> set[str]:
    """A job must wait for a parent that an earlier submission queued, so parents' jobs are looked up too."""
    return {id for step in steps for id in (step.id, *step.parents.values())}


@dataclass(frozen=True)
class Forecast:
    """What the site would do with jobs, found before any is queued."""

    starts: dict[str, datetime | None]
    """Kind → when SLURM would start the first job of it; None: SLURM does not say."""
    refusals: list[str]
    """Why SLURM would refuse jobs, one line each."""


def forecast(steps: Iterable[Step], cluster: ClusterConfig, store: Store) -> Forecast:
    """Ask SLURM about the jobs of these steps; nothing is written or queued. Raises UserError where it does not
    answer."""
    specs = job_specs(list(steps), cluster)
    executor = SlurmExecutor(store.queue, cluster)
    starts: dict[str, datetime | None] = {}
    refusals: list[str] = []
    try:
        room, nodes = site.room(cluster), site.nodes()
        for kind, resources in {spec.kind: spec.resources for spec in specs}.items():
            problems = site.problems(cluster, resources, nodes)
            refusals += [f"{kind}: {problem}" for problem in problems]
            if not problems:
                try:
                    starts[kind] = executor.start_estimate(resources)
                except ValueError as error:
                    refusals.append(f"{kind}: {error}")
    except QueueError as error:
        raise UserError(f"cluster: {error}") from None
    if room < len(specs):
        refusals.append(f"the site lets {room} more jobs of yours into the queue; the same line later queues the rest")
    return Forecast(starts, refusals)


def _slurm_job(store: Store, spec: JobSpec, live: Mapping[str, JobStatus], stamp: str) -> Job:
    """The job with a name of its own, waiting also for live jobs of earlier submissions."""
    earlier = {str(live[parent].id) for parent in spec.needs if parent in live}
    job = _job(store, spec)
    return replace(
        job,
        name=_stamped(job.name, stamp),
        after=tuple(_stamped(name, stamp) for name in job.after),
        after_ids=tuple(sorted(earlier)),
    )


def _stamped(name: str, stamp: str) -> str:
    """A name that no other submission uses: the store finds a step's latest job by it."""
    return f"{name}.{stamp}"


def _job(store: Store, spec: JobSpec) -> Job:
    argv = (sys.executable, "-m", "sweeps.worker", str(store.root), *spec.steps)
    return Job(spec.name, argv, spec.resources, spec.after, spec.kind)


_QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    # Progress bars would only fill err.log; progress is in metrics.jsonl.
    "TQDM_DISABLE": "1",
    # OpenMP threads that wait for each other go to sleep soon: where another process shares the cores, spinning makes
    # training four times slower (measured: docs/LOG.md, Threads).
    "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "100"),
}


def _environment(store: Store, saved: SavedSweep | None) -> dict[str, str]:
    """The variables of jobs. Jobs import a snapshot of the code as it is now, so that later edits do not change them: a
    queued job may start, or start again, days later. Raises UserError where the store cannot be written."""
    try:
        snapshot = store.snapshot_code()
    except OSError as error:
        raise UserError(f"store = {store.root}: the code cannot be copied there ({error.strerror})") from None
    tracking = saved_target(saved).environment() if saved else {}
    return {**_QUIET, CODE: snapshot.name, **import_variables(snapshot), **tracking}
