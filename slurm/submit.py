"""Jobs on SLURM: arrays with dependencies, submitted through submitit and left to the queue.

submitit makes the batch script, checks its options, calls sbatch and reads the id. What it does not do here is carry a
pickled function to the node. Its `submit` and `map_array` do, and with that three things could not hold:

- Pickles get their final place only after sbatch has returned: a launcher that dies in between leaves jobs that wait
  60 s and fail.
- Its handler of SIGUSR2 decides by its own clock whether a job was preempted or timed out, and ends some of the
  preempted ones as COMPLETED.
- Tasks are always numbered 0 … n-1: `aftercorr` could not pair children with the third and ninth task of their parent.

So the commands of an array are a shell script, complete before sbatch runs, and submitit submits that through
`_submit_command`, its own layer beneath the pickles.
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
from .jobs import THREAD_VARIABLES, Job, JobId, JobState, Resources, in_order
from .profile import Profile
from .records import ArrayRecord

INTERRUPTED = 4
"""Exit status by which a command says: my progress is saved, put me in the queue again."""
KILLED = 137
"""What the batch shell is told of a command that was ended by SIGKILL: 128 + 9."""
REVIVALS = 3
"""How often a task whose command was killed outright goes back into the queue. The command could not say whether it got
further, so these are few."""


class SubmissionRefusedError(RuntimeError):
    """SLURM took only some of the jobs. `submitted` are queued and will run; `left` are not."""

    def __init__(self, reason: str, submitted: dict[str, JobId], left: list[str]) -> None:
        super().__init__(f"{reason} ({len(submitted)} jobs queued, {len(left)} left)")
        self.reason, self.submitted, self.left = reason, submitted, left


class SlurmExecutor:
    """Queues jobs on SLURM and returns; nothing here has to stay alive for them to run.

    folder: shared with the nodes; gets a directory per array (records.py).
    env: exported in every job, after the environment of this process.
    interrupted: the exit status that puts a job back in the queue (at most `profile.max_requeues` times).
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
        """Queue jobs as arrays, parents first; job name → id.

        Raises ValueError where a job can never run here, queue.QueueError where SLURM does not answer, and
        SubmissionRefusedError where the site takes no more, with what it has taken.
        """
        ordered = in_order(jobs)
        room = site.room(self.profile)
        if room:
            self._check(ordered)
        submitted = self._submit_arrays(arrays(ordered[:room], site.max_array_size()), [job.name for job in jobs])
        if left := [job.name for job in ordered[room:]]:
            raise SubmissionRefusedError(f"the site lets {room} more jobs into the queue", submitted, left)
        return submitted

    def _check(self, jobs: Sequence[Job]) -> None:
        """Raise ValueError if the site would refuse a job or could never run it, before anything is queued."""
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
            executor = self._submitit(Path(folder), Job("estimate", ("true",), resources))
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
        records.write(self.folder, record)
        directory = self.folder / record.name
        script = directory / "tasks.sh"
        script.write_text(self.task_script(array))
        executor = self._submitit(directory, array.any_job)
        executor.update_parameters(job_name=record.name, dependency=dependency)
        executor.parameters["map_count"] = len(array.jobs)
        executor.parameters["additional_parameters"] |= {"array": array.indices + self._throttle()}
        with submission_environment():
            job = executor._submit_command(f"sh {shlex.quote(str(script))}")
        record = replace(record, array_id=job.job_id)
        records.write(self.folder, record)
        return record

    def _submitit(self, directory: Path, job: Job) -> submitit.SlurmExecutor:
        executor = submitit.SlurmExecutor(directory)
        options = {"kill-on-invalid-dep": "yes", "requeue": True}
        executor.update_parameters(
            **self.profile.parameters(job.resources),
            additional_parameters=options | dict(self.profile.extra),
            setup=self._setup(job),
            teardown=self._teardown(directory),
        )
        return executor

    def _throttle(self) -> str:
        return f"%{self.profile.max_running}" if self.profile.max_running else ""

    def _setup(self, job: Job) -> list[str]:
        threads = dict.fromkeys(THREAD_VARIABLES, str(job.resources.cpus))
        exports = [f"export {name}={shlex.quote(value)}" for name, value in (threads | self.env).items()]
        return [*exports, *self.profile.setup, "set +e"]  # what the command's end means is told below

    def _teardown(self, directory: Path) -> list[str]:
        """The batch shell outlives the command only if nobody ended the job (SLURM's own ends reach the shell too), so
        here an interrupted command was warned of its time limit, and one that was killed was singled out by somebody
        or by the kernel. Both go back into the queue, within their budgets."""
        killed = f'{shlex.quote(str(directory))}/killed_"$SLURM_ARRAY_TASK_ID"'
        revive = f'echo "run $SLURM_RESTART_COUNT" >> {killed} && [ "$(wc -l < {killed})" -le {REVIVALS} ]'
        # Never by SLURM_JOB_ID: one of the tasks shares it with the array, and would take all others along.
        task = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'
        budget = f'[ "${{SLURM_RESTART_COUNT:-0}}" -lt {self.profile.max_requeues} ]'
        return [
            "code=$?",
            "again=",
            f'if [ "$code" -eq {self.interrupted} ]; then again=yes; fi',
            f'if [ "$code" -eq {KILLED} ] && {revive}; then again=yes; fi',
            f'if [ "$again" ] && {budget}; then scontrol requeue {task}; fi',
            'exit "$code"',
        ]

    def task_script(self, array: Array) -> str:
        """A shell script that becomes the command of the task it runs in."""
        cases = [f"{i}) exec {self.profile.command(job)} ;;  # {job.name}" for i, job in sorted(array.jobs.items())]
        unknown = '*) echo "no task $SLURM_ARRAY_TASK_ID in this array" >&2; exit 64 ;;'
        lines = ["#!/bin/sh", 'case "$SLURM_ARRAY_TASK_ID" in', *cases, unknown, "esac"]
        return "\n".join(lines) + "\n"

    def states(self, ids: Iterable[JobId]) -> dict[JobId, JobState]:
        return queue.states(ids)

    def cancel(self, ids: Iterable[JobId]) -> None:
        """As queue.cancel, but an array of which every task is meant goes as a whole: of waiting tasks that are
        cancelled one by one SLURM keeps no trace, and their state would be UNKNOWN."""
        wanted = set(ids)
        for record in records.read(self.folder):
            if record.array_id and (tasks := set(record.ids().values())) <= wanted:
                wanted = (wanted - tasks) | {record.array_id}
        queue.cancel(wanted)

    def set_max_running(self, ids: Iterable[JobId], tasks: int) -> None:
        """Let so many tasks at a time run of every array that holds one of these jobs, from now on; 0: no limit."""
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
    """Without what a surrounding SLURM job would pass on to new jobs, but with the cluster that is meant."""
    kept = {name: os.environ[name] for name in ("SLURM_CONF", "SLURM_CLUSTERS") if name in os.environ}
    with clean_env(), environment_variables(**kept):
        yield
