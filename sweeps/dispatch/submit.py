"""Submits jobs: as subprocesses of this machine, or to SLURM (queue_status.py says what became of them there)."""

from __future__ import annotations

import os
import secrets
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from slurm import site
from slurm.command import NoAnswerError, QueueError
from slurm.jobs import Job, JobId, Phase
from slurm.local import LocalExecutor
from slurm.resources import Resources
from slurm.sbatch import FullError, RefusedError
from slurm.submit import SlurmExecutor, SubmissionRefusedError
from sweeps.dispatch.grouping import JobSpec, job_specs
from sweeps.dispatch.queue_status import JobStatus, executor_of, latest_jobs, throttle
from sweeps.dispatch.server_process import ServerProcess
from sweeps.planning.config import ClusterConfig
from sweeps.steps.step import Step
from sweeps.store.code import import_variables
from sweeps.store.errors import StoreError, UserError
from sweeps.store.outside import plain_reason
from sweeps.store.schema import JobRow
from sweeps.store.store import SavedSweep, Store
from sweeps.tracking.target import saved_target
from sweeps.worker.frozen import CODE
from sweeps.worker.job_context import QUEUED

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""For nodes without internet: else Hugging Face's libraries ask the hub about every file that they already have."""
LATER = "the same line queues the rest when there is room"


class LocalJobs:
    """Jobs on this machine. A step that its job could not begin at all (its process did not start, or died before the
    first step) is left with a note that says so."""

    def __init__(
        self, executor: LocalExecutor, jobs: Sequence[JobSpec], store: Store, server: ServerProcess | None = None
    ) -> None:
        """Raises ValueError for a job that this machine cannot run."""
        self._executor, self._store, self._server = executor, store, server
        self._jobs: dict[JobId, JobSpec] = {}
        self._attempts: dict[str, int] = {}
        self._noted: set[JobId] = set()
        self.add(jobs)

    def add(self, jobs: Sequence[JobSpec]) -> None:
        """Run more jobs, which wait for those before them whose steps they need. Raises ValueError as above."""
        running = {id: job for job, spec in self._jobs.items() if not self._ended(job) for id in spec.steps}
        self._attempts |= {id: self._count(id) for job in jobs for id in job.steps}
        made = [
            replace(_job(self._store, job), after_ids=tuple(sorted({running[id] for id in job.needs if id in running})))
            for job in jobs
        ]
        ids = self._executor.submit(made)
        self._jobs |= {ids[job.name]: job for job in jobs}

    def live(self) -> set[str]:
        """The steps of jobs that have not ended."""
        return {id for job, spec in self._jobs.items() if not self._ended(job) for id in spec.steps}

    def _ended(self, job: JobId) -> bool:
        return self._executor.states([job])[job].ended

    @property
    def idle(self) -> bool:
        return self._executor.idle

    def poll(self) -> None:
        self._executor.poll()
        self._note_failed()

    def close(self) -> None:
        """End what runs, and wait until it has ended."""
        self._executor.close()
        if self._server:
            self._server.close()
        self._note_failed()

    def _note_failed(self) -> None:
        states = self._executor.states(self._jobs.keys() - self._noted)
        for id, state in states.items():
            if state.ended:
                self._noted.add(id)
            if state.phase is Phase.FAILED:
                with suppress(OSError, StoreError):  # the store cannot be read, which the next reader of it says
                    self._note(id, state.reason)

    def _note(self, id: JobId, ended: str) -> None:
        """The first step that could have begun and did not has the reason; those after it wait for it, or for what
        failed before."""
        job, output = self._jobs[id], self._executor.output(id)
        log = output.read_text(encoding="utf-8", errors="replace").splitlines() if output.is_file() else []
        last = next((" ".join(line.split()) for line in reversed(log) if line.strip()), "it printed nothing")
        for step in map(self._store.step, job.steps):
            if step.record() or self._count(step.id) > self._attempts[step.id]:
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
    environment = {**os.environ, **_environment(store, saved)}
    code = store.code(environment[CODE])
    executor = LocalExecutor(saved.submissions, slots=cluster.slots, env=environment)
    server = ServerProcess.of_jobs(jobs, store, executor.environment_of, code.resolve(), saved.submissions)
    executor.env |= server.variables if server else {}
    try:
        return LocalJobs(executor, jobs, store, server)
    except ValueError as error:
        if server:
            server.close()
        raise UserError(f"cluster: {error}") from None


class LocalSearchJobs:
    """The jobs of a search on this machine: more are added while others run."""

    def __init__(self, cluster: ClusterConfig, store: Store) -> None:
        self._cluster, self._store = cluster, store
        self._jobs: LocalJobs | None = None

    def begin(self, steps: Sequence[Step], saved: SavedSweep) -> set[str]:
        specs = job_specs(steps, self._cluster, self.live())
        if self._jobs is None:
            self._jobs = start_local(specs, self._cluster, self._store, saved)
        else:
            try:
                self._jobs.add(specs)
            except ValueError as error:
                raise UserError(f"cluster: {error}") from None
        return {step.id for step in steps}

    def live(self) -> set[str]:
        return self._jobs.live() if self._jobs else set()

    def ended_by_hand(self) -> set[str]:
        return set()

    def poll(self) -> None:
        if self._jobs:
            self._jobs.poll()

    def close(self) -> None:
        """End what runs, which saves its state first."""
        if self._jobs:
            self._jobs.close()


@dataclass(frozen=True)
class Submission:
    """What SLURM took."""

    jobs: dict[str, JobId]
    """Job name → id."""
    notes: list[str]
    """What a person should know of them, one line each."""
    left: str | None = None
    """Why some jobs are not queued, in one line; None where all are."""


def submit(steps: Iterable[Step], cluster: ClusterConfig, store: Store, saved: SavedSweep) -> Submission:
    """Submit to SLURM the steps that no live job will run already, without waiting.

    `max_running` is applied to the sweep's queued jobs too. Raises UserError where SLURM refuses or does not answer.
    """
    todo = {step.id: step for step in steps}
    executor = executor_of(cluster, store, job_environment(cluster, store, saved))
    try:
        live = {id: job for id, job in latest_jobs(_with_parents(todo.values()), store).items() if job.live}
        throttle(live.values(), cluster, store)
        specs = job_specs([step for id, step in todo.items() if id not in live], cluster, live)
        stamp = secrets.token_hex(3)
        # Noted before they are queued: a launcher that dies in between leaves jobs that the next one can still find.
        store.note_jobs(
            JobRow(name=_stamped(spec.name, stamp), steps=list(spec.steps), sweep=saved.name) for spec in specs
        )
        notes = _unused(specs, executor)
        ids = _queue(executor, [_slurm_job(store, spec, live, stamp) for spec in specs], store)
        for kind, resources in _alike(specs):
            notes += _doubts(executor, kind, resources)
        return Submission(ids, notes)
    except SubmissionRefusedError as error:
        if not error.full:
            raise UserError(f"cluster: {error}; run the same line again when the cause is gone") from None
        left = f"{len(error.not_submitted)} jobs are left: {error.reason}"
        return Submission(error.submitted, notes, f"{left}; {LATER} (cluster.max_submit=N keeps below a limit)")
    except (QueueError, ValueError) as error:
        raise UserError(f"cluster: {error}") from None


def _queue(executor: SlurmExecutor, jobs: list[Job], store: Store) -> dict[str, JobId]:
    """Queue jobs; writes down which of them SLURM did not take. Raises as the executor does."""
    try:
        return executor.submit(jobs)
    except SubmissionRefusedError as error:
        store.note_jobs([JobRow(refused=error.not_submitted)])
        raise
    except (QueueError, ValueError):
        store.note_jobs([JobRow(refused=[job.name for job in jobs])])
        raise


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
    notes: list[str]
    """What else a person should know before the jobs are queued, one line each."""


def forecast(steps: Iterable[Step], cluster: ClusterConfig, store: Store) -> Forecast:
    """Ask SLURM about the jobs of these steps; nothing is written or queued. Raises UserError where it does not
    answer."""
    specs = job_specs(list(steps), cluster)
    executor = executor_of(cluster, store)
    starts: dict[str, datetime | None] = {}
    refusals: list[str] = []
    found = _unused(specs, executor)
    try:
        for (kind, resources), count in _alike(specs).items():
            try:
                starts[kind], note = _start(executor, kind, resources, count)
                found += note + _doubts(executor, kind, resources)
            except RefusedError as error:
                if executor.may_wait(error, resources, kind):
                    found.append(f"{kind}: such jobs wait for nodes that are down or drained now (SLURM: {error})")
                else:
                    refusals.append(f"{kind}: {executor.explained(error, resources, kind)}")
        if (room := site.room(cluster)) < len(specs):
            found.append(f"cluster.max_submit = {cluster.max_submit} lets {room} more jobs into the queue; {LATER}")
    except NoAnswerError as error:
        found.append(f"SLURM does not say whether it takes the jobs ({error})")
    except QueueError as error:
        raise UserError(f"cluster: {error}") from None
    return Forecast(starts, refusals, found)


def _start(executor: SlurmExecutor, kind: str, resources: Resources, count: int) -> tuple[datetime | None, list[str]]:
    """When the first of these jobs would start, and a note where the queue does not take all of them now. Raises as
    `SlurmExecutor.start_estimate`."""
    try:
        return executor.start_estimate(resources, kind, min(count, site.max_array_size())), []
    except FullError as error:
        note = [f"{kind}: the queue does not take {count} jobs of yours now ({error}); {LATER}"]
    try:
        return executor.start_estimate(resources, kind), note
    except FullError:
        return None, note


def _unused(specs: list[JobSpec], executor: SlurmExecutor) -> list[str]:
    """A line for each of the user's variables for sbatch that does not count."""
    fields: dict[str, str] = {}
    for kind, resources in _alike(specs):
        fields |= executor.overridden(resources, kind)
    return [f"{name} = {os.environ[name]} is not used: {field} decides" for name, field in fields.items()]


def _doubts(executor: SlurmExecutor, kind: str, resources: Resources) -> list[str]:
    """A line for each reason why jobs that SLURM takes may wait for ever."""
    return [f"{kind}: SLURM may never start such jobs: {doubt}" for doubt in executor.doubts(resources, kind)]


def _alike(specs: Iterable[JobSpec]) -> Counter[tuple[str, Resources]]:
    """How many jobs there are of each kind with the same resources."""
    return Counter((spec.kind, spec.resources) for spec in specs)


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


def job_environment(cluster: ClusterConfig, store: Store, saved: SavedSweep | None = None) -> dict[str, str]:
    """The variables of jobs on SLURM. Raises UserError where the store cannot be written."""
    return {**_environment(store, saved), **(OFFLINE if cluster.offline else {}), QUEUED: "1"}


def _environment(store: Store, saved: SavedSweep | None) -> dict[str, str]:
    """The variables of jobs. Jobs import a snapshot of the code as it is now, so that later edits do not change them: a
    queued job may start, or start again, days later. Raises UserError where the store cannot be written."""
    try:
        snapshot = store.snapshot_code()
    except OSError as error:
        raise UserError(f"store = {store.root}: the code cannot be copied there ({plain_reason(error)})") from None
    tracking = saved_target(saved).environment() if saved else {}
    return {**_QUIET, CODE: snapshot.name, **import_variables(snapshot), **tracking}
