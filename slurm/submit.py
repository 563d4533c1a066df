"""Submits jobs to SLURM as arrays with dependencies, and leaves them to the queue.

submitit makes the batch script, sbatch.py submits it. submitit's `submit` and `map_array` are not used. They send a
pickled function to the node, which has three faults here (submitit 1.5):

- A pickle is moved to its final name only after sbatch has returned. A launcher that dies in between leaves jobs that
  wait 60 s for it and fail.
- Its handler of SIGUSR2 decides by its own clock whether a job was preempted or reached its time limit. It ends some
  preempted jobs as COMPLETED, and their dependents start.
- Its tasks are always numbered 0 … n-1, so `aftercorr` could not pair children with tasks 3 and 9 of their parent.

So the commands of an array are a shell script that is complete before sbatch runs. Its `_submit_command` is not used
either: it waits for sbatch without an end, takes the first number after the word "job" for the id, whoever printed it,
and hides all the user's variables for sbatch.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import submitit

from . import queue, records, sbatch, site
from .arrays import Array, arrays
from .command import NoAnswerError, QueueError
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
    """SLURM took only some of the jobs. `submitted` are queued and will run; `not_submitted` are not queued, and the
    same jobs may be taken later where the queue is `full`."""

    def __init__(self, reason: str, submitted: dict[str, JobId], not_submitted: list[str], *, full: bool) -> None:
        super().__init__(f"{reason} ({len(submitted)} jobs queued, {len(not_submitted)} left)")
        self.reason, self.submitted, self.not_submitted, self.full = reason, submitted, not_submitted, full


class _BatchScript(submitit.SlurmExecutor):
    """Used for the text of batch scripts alone."""

    @classmethod
    def affinity(cls) -> int:
        """Positive: only the nodes need srun."""
        return 1


class SlurmExecutor(Executor):
    """Queues jobs on SLURM and returns. No process has to stay alive for them to run.

    folder: shared with the nodes; gets a directory per array (records.py).
    profiles: kind of job → its profile, where that is not `profile`. `max_submit` is read from `profile` alone.
    env: exported in every job, over the environment of this process.
    interrupted: the exit status after which a job is queued again (at most `max_requeues` times).
    """

    def __init__(
        self,
        folder: Path,
        profile: Profile | None = None,
        *,
        profiles: Mapping[str, Profile] | None = None,
        env: Mapping[str, str] | None = None,
        interrupted: int = INTERRUPTED,
    ) -> None:
        self.folder = folder.absolute()
        self.profile = profile or Profile()
        self.profiles = dict(profiles or {})
        self.env = dict(env or {})
        self.interrupted = interrupted

    def profile_of(self, kind: str) -> Profile:
        return self.profiles.get(kind, self.profile)

    def submit(self, jobs: Sequence[Job]) -> dict[str, JobId]:
        """Queue jobs as arrays, parents first; returns job name → id.

        Raises ValueError where SLURM says that a job can never run here, QueueError where it does not answer, and
        SubmissionRefusedError where it takes some of the jobs alone.
        """
        ordered = in_order(jobs)
        room = site.room(self.profile)
        if room:
            self._check(ordered)
        submitted = self._submit_arrays(ordered[:room], [job.name for job in ordered])
        if left := [job.name for job in ordered[room:]]:
            reason = f"cluster.max_submit = {self.profile.max_submit} lets {room} more jobs into the queue"
            raise SubmissionRefusedError(reason, submitted, left, full=True)
        return submitted

    def _check(self, jobs: Sequence[Job]) -> None:
        """Raise ValueError if SLURM would refuse a job: before the first is queued, as the others would already run
        when the last is refused."""
        for job in {(job.kind, job.resources): job for job in jobs}.values():
            try:
                self.start_estimate(job.resources, job.kind)
            except sbatch.RefusedError as error:
                if self.may_wait(error, job.resources, job.kind):
                    continue
                raise ValueError(f"job {job.name}: {self.explained(error, job.resources, job.kind)}") from None
            except sbatch.FullError:
                continue  # the queue may take it by the time that it is submitted, or later
            except NoAnswerError:
                return  # a controller that takes long to simulate its queue may accept a job at once

    def may_wait(self, error: sbatch.RefusedError, resources: Resources, kind: str) -> bool:
        """Whether `sbatch --test-only` refuses such a job only because nodes are away: sbatch itself takes it, and it
        waits for them."""
        if not isinstance(error, sbatch.NoNodesError) or self.doubts(resources, kind):
            return False
        try:
            return site.nodes_away(self.profile_of(kind))
        except QueueError:
            return False

    def explained(self, error: sbatch.RefusedError, resources: Resources, kind: str) -> str:
        """What the site's tables say that would be valid, and sbatch's own words."""
        doubts = "; ".join(self.doubts(resources, kind))
        return f"{doubts} (SLURM: {error})" if doubts else str(error)

    def doubts(self, resources: Resources, kind: str) -> list[str]:
        """Why no node could ever run such a job, by the site's tables; nothing where these cannot be read."""
        return site.problems(self.profile_of(kind), resources, self._nodes) if self._nodes else []

    @cached_property
    def _nodes(self) -> list[site.Nodes]:
        """The site's nodes; empty where it does not tell."""
        try:
            return site.nodes()
        except QueueError:
            return []

    def start_estimate(self, resources: Resources, kind: str = "job", count: int = 1) -> datetime | None:
        """When SLURM expects to start such jobs, so many as an array, if they were queued now; None if it does not say.

        Raises sbatch.RefusedError (a ValueError) and sbatch.FullError with SLURM's own words, and QueueError.
        """
        with tempfile.TemporaryDirectory() as folder:
            text = self._batch_script(Path(folder), Job("estimate", ("true",), resources, kind=kind), "true", count)
            script = Path(folder) / "estimate.sh"
            _write(script, text)
            return sbatch.start_estimate(script, self._environment(text, kind))

    def overridden(self, resources: Resources, kind: str = "job") -> dict[str, str]:
        """The user's variables for sbatch that do not count for such a job → the field that counts."""
        text = self._batch_script(self.folder, Job("estimate", ("true",), resources, kind=kind), "true", 1)
        return self._overridden(text, kind)

    def _overridden(self, text: str, kind: str) -> dict[str, str]:
        options = re.findall(r"^#SBATCH --([a-z0-9-]+)", text, re.MULTILINE)
        return sbatch.overridden(options, self.profile_of(kind).options)

    def _environment(self, text: str, kind: str) -> dict[str, str]:
        return sbatch.environment(without=self._overridden(text, kind))

    def _submit_arrays(self, jobs: Sequence[Job], names: Sequence[str]) -> dict[str, JobId]:
        """Queue jobs that are in order, the first of those with these names. An array that is too many jobs for the
        queue is halved, and so on: the site's limit may belong to a QOS that no table shows, and what it lets in makes
        progress."""
        submitted: dict[str, JobId] = {}
        size = site.max_array_size() if jobs else 1
        ids: list[str] = []
        planned = arrays(jobs, size)
        while len(ids) < len(planned):
            array = planned[len(ids)]
            try:
                record = self._submit_array(array, array.dependency(ids))
            except sbatch.FullError as error:
                if len(array.jobs) > 1:
                    size = (len(array.jobs) + 1) // 2
                    planned = arrays(jobs, size, planned[: len(ids)])
                    continue
                reason = f"the queue takes no more jobs of yours now ({error})"
                raise _refused(reason, names, submitted, full=True) from None
            except (sbatch.RefusedError, QueueError) as error:
                raise _refused(str(error), names, submitted, full=False) from None
            ids.append(str(record.array_id))
            submitted |= record.ids()
        return submitted

    def _submit_array(self, array: Array, dependency: str | None) -> ArrayRecord:
        tasks = {job.name: index for index, job in array.jobs.items()}
        record = records.new_record(array.any_job.kind, tasks, dependency)
        records.write(self.folder, record)  # before sbatch: an array that is queued must never be without a record
        directory = self.folder / record.name
        _write(directory / "tasks.sh", self.task_script(array))
        limit = f"%{most}" if (most := self.profile_of(array.any_job.kind).max_running) else ""
        options = {"array": array.indices + limit, "job_name": record.name, "parsable": True}
        command = f"sh {shlex.quote(str(directory / 'tasks.sh'))}"
        options |= {"dependency": dependency} if dependency else {}
        text = self._batch_script(directory, array.any_job, command, len(array.jobs), options)
        script = directory / "submission.sh"
        _write(script, text)
        try:
            id = _queued(script, self._environment(text, array.any_job.kind), record.name)
        except sbatch.FullError as error:
            if error.certain:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        script.rename(directory / f"{id}_submission.sh")
        record = replace(record, array_id=id)
        records.write(self.folder, record)
        return record

    def _batch_script(
        self, directory: Path, job: Job, command: str, count: int, options: Mapping[str, object] | None = None
    ) -> str:
        """The text of a batch script that runs a command for `count` jobs like this one."""
        profile = self.profile_of(job.kind)
        executor = _BatchScript(directory)
        # Without kill-on-invalid-dep the children of a failed parent stay in the queue (DependencyNeverSatisfied).
        fixed = {"kill-on-invalid-dep": "yes", "requeue": True}
        executor.update_parameters(
            **profile.parameters(job.resources),
            additional_parameters=fixed | profile.options | dict(options or {}),
            setup=self._setup(job),
            teardown=self._teardown(directory, profile),
        )
        executor.parameters["map_count"] = count
        return str(executor._make_submission_file_text(command, ""))

    def _setup(self, job: Job) -> list[str]:
        threads = dict.fromkeys(THREAD_VARIABLES, str(job.resources.cpus))
        exports = [f"export {name}={shlex.quote(value)}" for name, value in (threads | self.env).items()]
        return [*exports, *self.profile_of(job.kind).setup, "set +e"]  # `_teardown` looks at the command's exit status

    def _teardown(self, directory: Path, profile: Profile) -> list[str]:
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
        requeues_left = f'[ "${{SLURM_RESTART_COUNT:-0}}" -lt {profile.max_requeues} ]'
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
        command = self.profile_of(array.any_job.kind).command
        cases = [f"{i}) exec {command(job)} ;;  # {job.name}" for i, job in sorted(array.jobs.items())]
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

    def apply_max_running(self, ids: Iterable[JobId]) -> None:
        """Let so many tasks at a time run of every array that holds one of these jobs as its profile has it now."""
        kinds = {record.array_id: record.kind for record in records.read(self.folder)}
        for array_id in sorted({id.split("_")[0] for id in ids}):
            queue.throttle(array_id, self.profile_of(kinds.get(array_id, "")).max_running or 0)

    def output(self, job_id: JobId) -> Path:
        array_id, index = job_id.split("_")
        record = next((record for record in records.read(self.folder) if record.array_id == array_id), None)
        if record is None:
            raise ValueError(f"job {job_id}: not submitted from {self.folder}")
        return records.output(self.folder, record, int(index))


def _write(file: Path, text: str) -> None:
    """Paths and values that came from the shell need not be UTF-8: they are written with the bytes that they had."""
    file.write_text(text, encoding="utf-8", errors="surrogateescape")


def _queued(script: Path, environment: Mapping[str, str], name: str) -> str:
    """Submit a batch script; the id of its array, which has this name. Raises as sbatch.submit."""
    reason = QueueError("sbatch printed no job id, and the queue does not know the job")
    try:
        id = sbatch.submit(script, environment)
    except QueueError as error:
        # A busy controller may queue the array and answer too late ("Socket timed out on send/recv operation").
        id, reason = None, error
    if found := id or queue.array_id_of(name):
        return found
    raise reason


def _refused(reason: str, names: Sequence[str], submitted: dict[str, JobId], *, full: bool) -> SubmissionRefusedError:
    return SubmissionRefusedError(reason, submitted, [name for name in names if name not in submitted], full=full)
