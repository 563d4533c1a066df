"""Runs jobs as subprocesses of this machine, a limited number at a time. `poll()` does the work: call it in a loop."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from . import guard
from .jobs import THREAD_VARIABLES, Executor, Job, JobId, JobState, Phase, in_order
from .resources import Resources

JOB_VARIABLE = "MLKV_LOCAL_JOB"
"""Holds the job's id in the environment of its processes; no two jobs of this machine have the same."""


def visible_cores() -> int:
    """The number of CPUs that this process may run on (its affinity, which its children inherit)."""
    return len(os.sched_getaffinity(0))


def visible_gpus() -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES names them: those it lists already, else a number per line of `nvidia-smi -L`."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))]


def default_slots(cores: int | None = None, gpus: Sequence[str] | None = None) -> int:
    """Jobs at a time where nothing is said: one per GPU, else half the cores, at least one."""
    cores = visible_cores() if cores is None else cores
    return len(visible_gpus() if gpus is None else gpus) or max(1, cores // 2)


@dataclass
class _Entry:
    id: JobId
    job: Job
    parents: tuple[JobId, ...]
    state: JobState = field(default_factory=lambda: JobState(Phase.PENDING))
    process: subprocess.Popen[bytes] | None = None
    slots: tuple[int, ...] = ()
    cancelled: bool = False
    kill_at: float | None = None


class LocalExecutor(Executor):
    """Runs jobs on this machine in order of submission, each in a session of its own with its share of cores and GPUs.

    folder: gets one `<job name>.log` per job (stdout and stderr).
    slots: jobs at a time (default: one per GPU, else half the cores, at least one).
    cores, gpus: what to divide between the slots (default: what this process may use).

    A job takes one slot for each GPU, else one for each process (at most all slots). A job without GPUs sees none. An
    exclusive job waits for all slots and takes them. Time limits and memory are not enforced.

    Leaving the `with` block, or `close()`, ends every job that this executor started. If the launcher is killed, the
    jobs are ended by their guards (guard.py).
    """

    def __init__(
        self,
        folder: Path,
        *,
        slots: int | None = None,
        cores: int | None = None,
        gpus: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        grace_seconds: float = 10.0,
    ) -> None:
        self.folder = folder
        self.gpus = list(visible_gpus() if gpus is None else gpus)
        self.cores = visible_cores() if cores is None else cores
        self.slots = default_slots(self.cores, self.gpus) if slots is None else slots
        if self.slots < 1 or self.cores < 1:
            raise ValueError(f"slots = {self.slots}, cores = {self.cores}: both must be at least 1")
        self.env = dict(os.environ if env is None else env)
        self.grace_seconds = grace_seconds
        self._entries: dict[JobId, _Entry] = {}
        self._free = list(range(self.slots))
        self._numbers = itertools.count(1)
        self._name = secrets.token_hex(3)
        self._lifeline, self._lifeline_writer = os.pipe()

    def submit(self, jobs: Sequence[Job]) -> dict[str, JobId]:
        ordered = in_order(jobs)
        for job in ordered:
            self._check(job)
        ids = {job.name: str(next(self._numbers)) for job in ordered}
        for job in ordered:
            parents = (*(ids[name] for name in job.after), *job.after_ids)
            self._entries[ids[job.name]] = _Entry(ids[job.name], job, parents)
        return ids

    def _check(self, job: Job) -> None:
        need = job.resources
        if need.nodes > 1:
            raise ValueError(f"job {job.name}: resources.nodes = {need.nodes}, but this is one machine")
        if need.gpus > min(len(self.gpus), self.slots):
            available = f"this machine has {len(self.gpus)} in {self.slots} slots"
            raise ValueError(f"job {job.name}: resources.gpus = {need.gpus}, but {available}")
        if unknown := [parent for parent in job.after_ids if parent not in self._entries]:
            raise ValueError(f"job {job.name}: after_ids names unknown jobs ({', '.join(unknown)})")

    def states(self, ids: Iterable[JobId]) -> dict[JobId, JobState]:
        unknown = JobState(Phase.UNKNOWN, "this executor did not start it")
        return {id: self._entries[id].state if id in self._entries else unknown for id in ids}

    def output(self, job_id: JobId) -> Path:
        return self.folder / f"{self._entries[job_id].job.name}.log"

    @property
    def running(self) -> int:
        return sum(entry.process is not None for entry in self._entries.values())

    @property
    def idle(self) -> bool:
        """True when nothing runs and nothing waits."""
        return all(entry.state.ended for entry in self._entries.values())

    def poll(self) -> None:
        """Note which jobs have ended, kill those whose grace is over, start those that are ready. Never blocks."""
        for entry in self._entries.values():
            if entry.process is not None:
                self._reap(entry)
        for entry in self._entries.values():
            self._cancel_if_parent_failed(entry)
        for entry in self._entries.values():
            if not self._is_ready(entry):
                continue
            if slots := self._slots_for(entry.job):
                self._start(entry, slots)
            elif entry.job.resources.exclusive or self._slot_count(entry.job.resources) > 1:
                break  # later jobs must not take the slots that this one waits for, or it might never start

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Poll until everything has ended (True) or time is up (False)."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self.poll()
        while not self.idle:
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(0.02)
            self.poll()
        return True

    def cancel(self, ids: Iterable[JobId]) -> None:
        """Waiting jobs are cancelled at once; running ones get SIGTERM now and SIGKILL from `poll` after the grace."""
        for id in ids:
            entry = self._entries.get(id)
            if entry is None or entry.state.ended:
                continue
            entry.cancelled = True
            if entry.process is None:
                entry.state = JobState(Phase.CANCELLED, "cancelled before it started")
            elif entry.kill_at is None:
                entry.kill_at = time.monotonic() + self.grace_seconds
                _signal_group(entry.process, signal.SIGTERM)

    def close(self) -> None:
        """End everything and wait until it has ended."""
        self.cancel(list(self._entries))
        self.wait()
        for descriptor in (self._lifeline, self._lifeline_writer):
            if descriptor >= 0:
                os.close(descriptor)
        self._lifeline = self._lifeline_writer = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reap(self, entry: _Entry) -> None:
        process = entry.process
        assert process is not None
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if entry.kill_at is not None and time.monotonic() > entry.kill_at:
                _signal_group(process, signal.SIGKILL)
            return
        # End the processes that the job left running, as SLURM does. Its leader is dead but not reaped yet, so the
        # number of its process group cannot have been given to another.
        _signal_group(process, signal.SIGKILL)
        entry.state = _outcome(process.wait(), entry.cancelled)
        self._free = sorted({*self._free, *entry.slots})
        entry.process, entry.slots = None, ()

    def _cancel_if_parent_failed(self, entry: _Entry) -> None:
        parents = (self._entries[parent] for parent in entry.parents)
        failed = next((parent for parent in parents if parent.state.ended and not parent.state.ok), None)
        if failed and entry.state.phase is Phase.PENDING:
            entry.state = JobState(Phase.CANCELLED, f"{failed.job.name} ended {failed.state.phase}")

    def _is_ready(self, entry: _Entry) -> bool:
        pending = entry.state.phase is Phase.PENDING
        return pending and all(self._entries[parent].state.ok for parent in entry.parents)

    def _slots_for(self, job: Job) -> tuple[int, ...]:
        """Slots for the job, or none as long as too few are free. Slot i has GPU i; jobs without a GPU take slots from
        the other end, so that they block no GPU while there is another slot."""
        if job.resources.exclusive:
            return tuple(self._free) if len(self._free) == self.slots else ()
        free = [slot for slot in self._free if slot < len(self.gpus)] if job.resources.gpus else self._free[::-1]
        count = self._slot_count(job.resources)
        return tuple(free[:count]) if len(free) >= count else ()

    def _slot_count(self, need: Resources) -> int:
        return need.gpus or min(need.tasks, self.slots)

    def _start(self, entry: _Entry, slots: tuple[int, ...]) -> None:
        tasks = str(entry.job.resources.tasks)
        command = [sys.executable, "-I", "-S", guard.__file__, str(self.grace_seconds), tasks, *entry.job.argv]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.output(entry.id).open("ab") as log:
                entry.process = subprocess.Popen(
                    command,
                    stdin=self._lifeline,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment(entry, slots),
                    start_new_session=True,
                )
        except OSError as error:  # a full disk, too many processes: the jobs that run are not to end for it
            place = f": {error.filename}" if error.filename else ""
            entry.state = JobState(Phase.FAILED, f"could not be started: {error.strerror}{place}")
            return
        self._free = [slot for slot in self._free if slot not in slots]
        entry.slots, entry.state = slots, JobState(Phase.RUNNING)

    def environment_of(self, need: Resources) -> dict[str, str]:
        """The variables of a job with these resources, but for its id and the GPUs that it sees; none as long as it
        does not run."""
        slots = self.slots if need.exclusive else self._slot_count(need)
        threads = str(max(1, self.cores * slots // self.slots // need.tasks))
        return self.env | dict.fromkeys(THREAD_VARIABLES, threads) | {"CUDA_VISIBLE_DEVICES": ""}

    def _environment(self, entry: _Entry, slots: tuple[int, ...]) -> dict[str, str]:
        need = entry.job.resources
        gpus = [self.gpus[slot] for slot in slots if slot < len(self.gpus)][: need.gpus]
        ours = {JOB_VARIABLE: f"local-{os.getpid()}-{self._name}-{entry.id}", "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        return self.environment_of(need) | ours


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the process group that this executor made for a child it has not reaped yet."""
    if process.pid > 1 and process.returncode is None:
        os.killpg(process.pid, number)


def _outcome(code: int, cancelled: bool) -> JobState:
    """A job's state by its guard's exit status: 128 + n where signal n ended the command (guard.py), negative where a
    signal ended the guard itself."""
    number = -code if code < 0 else code - 128
    reason = f"ended by {signal.Signals(number).name}" if number in set(signal.Signals) else f"exit status {code}"
    if cancelled:
        return JobState(Phase.CANCELLED, reason)
    return JobState(Phase.DONE) if code == 0 else JobState(Phase.FAILED, reason)
