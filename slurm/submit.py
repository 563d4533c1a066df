"""Submits jobs to SLURM as arrays with dependencies, through submitit, and leaves them to the queue.

submitit makes the batch script, checks its options, calls sbatch and reads the id. Its `submit` and `map_array` are not
used. They send a pickled function to the node, which has three faults here (submitit 1.5):

- A pickle is moved to its final name only after sbatch has returned. A launcher that dies in between leaves jobs that
  wait 60 s for it and fail.
- Its handler of SIGUSR2 decides by its own clock whether a job was preempted or reached its time limit. It ends some
  preempted jobs as COMPLETED, and their dependents start.
- Its tasks are always numbered 0 … n-1, so `aftercorr` could not pair children with tasks 3 and 9 of their parent.

So the commands of an array are a shell script that is complete before sbatch runs. submitit submits it through
`_submit_command`, its own layer below the pickles.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env, environment_variables

from . import queue, records, site
from .arrays import Array, arrays
from .jobs import THREAD_VARIABLES, Executor, Job, JobId, JobState, in_order
from .profile import Profile
from .records import ArrayRecord
from .resources import Resources

INTERRUPTED = 4
"""Exit status of a command that saved its progress and wants to be queued again."""
KILLED = 137
"""Exit status that the batch shell sees of a command that was ended by SIGKILL: 128 + 9."""
MAX_KILL_REQUEUES = 3
"""How often a task whose command was killed is queued again. A small number: a killed command cannot report whether it
made progress, and one that always runs out of memory would be requeued for ever."""


class SubmissionRefusedError(RuntimeError):
    """SLURM took only some of the jobs. `submitted` are queued and will run; `not_submitted` are not queued."""

    def __init__(self, reason: str, submitted: dict[str, JobId], not_submitted: list[str]) -> None:
        super().__init__(f"{reason} ({len(submitted)} jobs queued, {len(not_submitted)} left)")
        self.reason, self.submitted, self.not_submitted = reason, submitted, not_submitted


class SlurmExecutor(Executor):
    """Queues jobs on SLURM and returns. No process has to stay alive for them to run.

    folder: shared with the nodes; gets a directory per array (records.py).
    env: exported in every job, over the environment of this process.
    interrupted: the exit status after which a job is queued again (at most `profile.max_requeues` times).
    """

    def __init__(
        self,
        folder: Path,
        profile: Profile | None = None,
        *,
        env: Mapping[str, str] | None = None,
        interrupted: int = INTERRUPTED,
    ) -> None:
        self.folder = folder.absolute()
        self.profile = profile or Profile()
        self.env = dict(env or {})
        self.interrupted = interrupted

    def submit(self, jobs: Sequence[Job]) -> dict[str, JobId]:
        """Queue jobs as arrays, parents first; returns job name → id.

        Raises ValueError where a job can never run here, queue.QueueError where SLURM does not answer, and
        SubmissionRefusedError where the site takes some of the jobs alone.
        """
        ordered = in_order(jobs)
        room = site.room(self.profile)
        if room:
            self._check(ordered)
        submitted = self._submit_arrays(arrays(ordered[:room], site.max_array_size()), [job.name for job in jobs])
        if not_submitted := [job.name for job in ordered[room:]]:
            raise SubmissionRefusedError(f"the site lets {room} more jobs into the queue", submitted, not_submitted)
        return submitted

    def _check(self, jobs: Sequence[Job]) -> None:
        """Raise ValueError if the site would refuse a job or could never run it: before the first is queued, as the
        others would already run when the last is refused."""
        kinds = site.nodes()
        for job in {job.resources: job for job in jobs}.values():
            if problems := site.problems(self.profile, job.resources, kinds):
                raise ValueError(f"job {job.name}: {'; '.join(problems)}")
            self.start_estimate(job.resources)

    def start_estimate(self, resources: Resources) -> datetime | None:
        """When SLURM expects to start such a job if it were queued now; None if it does not say.

        Raises ValueError with SLURM's own words if it would refuse the job.
        """
        with tempfile.TemporaryDirectory() as folder:
            executor = self._submitit_executor(Path(folder), Job("estimate", ("true",), resources))
            script = Path(folder) / "estimate.sh"
            script.write_text(executor._make_submission_file_text("true", "estimate"))
            with submission_environment():
                return site.start_estimate(script)

    def _submit_arrays(self, planned: Sequence[Array], names: list[str]) -> dict[str, JobId]:
        array_ids: list[str] = []
        submitted: dict[str, JobId] = {}
        for array in planned:
            try:
                record = self._submit_array(array, array.dependency(array_ids))
            except (FailedJobError, FailedSubmissionError) as error:
                reason = (str(error).strip() or "sbatch failed").splitlines()[0]
                raise SubmissionRefusedError(reason, submitted, [n for n in names if n not in submitted]) from error
            array_ids.append(str(record.array_id))
            submitted |= record.ids()
        return submitted

    def _submit_array(self, array: Array, dependency: str | None) -> ArrayRecord:
        tasks = {job.name: index for index, job in array.jobs.items()}
        record = records.new_record(array.any_job.kind, tasks, dependency)
        records.write(self.folder, record)  # before sbatch: an array that is queued must never be without a record
        directory = self.folder / record.name
        script = directory / "tasks.sh"
        script.write_text(self.task_script(array))
        executor = self._submitit_executor(directory, array.any_job)
        executor.update_parameters(job_name=record.name, dependency=dependency)
        executor.parameters["map_count"] = len(array.jobs)
        limit = f"%{self.profile.max_running}" if self.profile.max_running else ""
        executor.parameters["additional_parameters"] |= {"array": array.indices + limit}
        with submission_environment():
            job = executor._submit_command(f"sh {shlex.quote(str(script))}")
        record = replace(record, array_id=job.job_id)
        records.write(self.folder, record)
        return record

    def _submitit_executor(self, directory: Path, job: Job) -> submitit.SlurmExecutor:
        executor = submitit.SlurmExecutor(directory)
        # Without kill-on-invalid-dep the children of a failed parent stay in the queue (DependencyNeverSatisfied).
        options = {"kill-on-invalid-dep": "yes", "requeue": True}
        executor.update_parameters(
            **self.profile.parameters(job.resources),
            additional_parameters=options | dict(self.profile.extra),
            setup=self._setup(job),
            teardown=self._teardown(directory),
        )
        return executor

    def _setup(self, job: Job) -> list[str]:
        threads = dict.fromkeys(THREAD_VARIABLES, str(job.resources.cpus))
        exports = [f"export {name}={shlex.quote(value)}" for name, value in (threads | self.env).items()]
        return [*exports, *self.profile.setup, "set +e"]  # `_teardown` looks at the command's exit status

    def _teardown(self, directory: Path) -> list[str]:
        """Shell lines after the command, which decide whether the task is queued again.

        They run only where SLURM itself did not end the job: a cancelled, preempted or timed-out job loses its batch
        shell too, and SLURM requeues it or not. So here, a command with the status `interrupted` was warned of its time
        limit and saved its progress, and a command that was killed was killed alone, by a person or by the kernel's
        out-of-memory killer. Both are queued again, a limited number of times. Any other status is the command's own.
        """
        killed = f'{shlex.quote(str(directory))}/killed_"$SLURM_ARRAY_TASK_ID"'
        few_kills = f'echo "run $SLURM_RESTART_COUNT" >> {killed} && [ "$(wc -l < {killed})" -le {MAX_KILL_REQUEUES} ]'
        # Not SLURM_JOB_ID: of one task it is the array's own id, and would requeue all of the array's tasks.
        task = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'
        requeues_left = f'[ "${{SLURM_RESTART_COUNT:-0}}" -lt {self.profile.max_requeues} ]'
        return [
            "code=$?",
            "again=",
            f'if [ "$code" -eq {self.interrupted} ]; then again=yes; fi',
            f'if [ "$code" -eq {KILLED} ] && {few_kills}; then again=yes; fi',
            f'if [ "$again" ] && {requeues_left}; then scontrol requeue {task}; fi',
            'exit "$code"',
        ]

    def task_script(self, array: Array) -> str:
        """A shell script that becomes (`exec`, so that signals reach it) the command of the task that it is run for."""
        cases = [f"{i}) exec {self.profile.command(job)} ;;  # {job.name}" for i, job in sorted(array.jobs.items())]
        unknown = '*) echo "no task $SLURM_ARRAY_TASK_ID in this array" >&2; exit 64 ;;'
        lines = ["#!/bin/sh", 'case "$SLURM_ARRAY_TASK_ID" in', *cases, unknown, "esac"]
        return "\n".join(lines) + "\n"

    def states(self, ids: Iterable[JobId]) -> dict[JobId, JobState]:
        return queue.states(ids)

    def cancel(self, ids: Iterable[JobId]) -> None:
        """As queue.cancel, but an array whose tasks are all cancelled is cancelled as a whole: SLURM keeps no trace of
        waiting tasks that are cancelled one by one, and their state would be UNKNOWN."""
        targets = set(ids)
        for record in records.read(self.folder):
            if record.array_id and (tasks := set(record.ids().values())) <= targets:
                targets = (targets - tasks) | {record.array_id}
        queue.cancel(targets)

    def set_max_running(self, ids: Iterable[JobId], tasks: int) -> None:
        """Limit how many tasks at a time run of every array that holds one of these jobs, from now on; 0: no limit."""
        for array_id in sorted({id.split("_")[0] for id in ids}):
            queue.throttle(array_id, tasks)

    def output(self, job_id: JobId) -> Path:
        array_id, index = job_id.split("_")
        record = next((record for record in records.read(self.folder) if record.array_id == array_id), None)
        if record is None:
            raise ValueError(f"job {job_id}: not submitted from {self.folder}")
        return records.output(self.folder, record, int(index))


@contextmanager
def submission_environment() -> Iterator[None]:
    """The environment for sbatch: without the variables of a surrounding SLURM job, which new jobs would inherit, but
    with those that name the cluster."""
    cluster = {name: os.environ[name] for name in ("SLURM_CONF", "SLURM_CLUSTERS") if name in os.environ}
    with clean_env(), environment_variables(**cluster):
        yield
