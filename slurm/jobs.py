"""The types that both executors take and return: a job and its state."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from .resources import Resources

JobId = str
"""An executor's id of a job: `12345_7` (or `12345`) on SLURM, a number counted from 1 on this machine."""

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
"""The variables by which numeric libraries learn how many threads they may start."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Job:
    """One command. It starts when every job named in `after` has ended with exit status 0; if one of them ends
    otherwise, it is cancelled and never starts."""

    name: str
    argv: tuple[str, ...]
    resources: Resources = field(default_factory=Resources)
    after: tuple[str, ...] = ()
    """Names of jobs in the same submission."""
    kind: str = "job"
    """Jobs of one kind may share an array; the kind is part of the name that SLURM shows."""
    after_ids: tuple[JobId, ...] = ()
    """Ids of jobs that the same executor queued earlier."""

    def __post_init__(self) -> None:
        for label, text in (("name", self.name), ("kind", self.kind)):
            if not NAME.fullmatch(text):
                raise ValueError(f"job {label} = {text!r}: use letters, digits and . _ + - only")
        if not self.argv:
            raise ValueError(f"job {self.name}: argv is empty")


class Phase(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    PREEMPTED = "PREEMPTED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    UNKNOWN = "UNKNOWN"
    """The queue does not know the job, or has forgotten it: only the store shows what it did."""


@dataclass(frozen=True)
class JobState:
    phase: Phase
    reason: str = ""

    @property
    def ended(self) -> bool:
        """True once the job can change no more. UNKNOWN counts: the queue has nothing left that could run."""
        return self.phase not in (Phase.PENDING, Phase.RUNNING)

    @property
    def ok(self) -> bool:
        return self.phase is Phase.DONE


class Executor(Protocol):
    """Where jobs run. `submit` returns without waiting. A job id can be used by a later process on SLURM, and by this
    process alone on this machine."""

    def submit(self, jobs: Sequence[Job]) -> dict[str, JobId]:
        """Queue jobs, parents first; returns job name → id.

        Raises ValueError for a job that can never run here: unknown parent, cycle, repeated name, more resources than
        there are.
        """

    def states(self, ids: Iterable[JobId]) -> dict[JobId, JobState]:
        """The state of each of these jobs."""

    def cancel(self, ids: Iterable[JobId]) -> None:
        """End these jobs, and with them the jobs that depend on them. Jobs that have ended are left alone."""

    def output(self, job_id: JobId) -> Path:
        """The file that holds the job's stdout and stderr; it may not exist yet."""


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """The jobs with every parent before its children, otherwise as given.

    Raises ValueError naming the job: a repeated name, an unknown parent, a cycle.
    """
    by_name = {job.name: job for job in jobs}
    if len(by_name) != len(jobs):
        repeated = next(name for name in by_name if sum(job.name == name for job in jobs) > 1)
        raise ValueError(f"job {repeated}: the name is used twice in one submission")
    for job in jobs:
        if unknown := [name for name in job.after if name not in by_name]:
            raise ValueError(f"job {job.name}: after names unknown jobs ({', '.join(unknown)})")
    return _topological(jobs)


def _topological(jobs: Sequence[Job]) -> list[Job]:
    waits_for = {job.name: len(set(job.after)) for job in jobs}
    children: dict[str, list[Job]] = {job.name: [] for job in jobs}
    for job in jobs:
        for parent in set(job.after):
            children[parent].append(job)
    ordered = [job for job in jobs if not job.after]
    for job in ordered:  # the list grows in the loop: a job is appended when its last parent is in it
        for child in children[job.name]:
            waits_for[child.name] -= 1
            if not waits_for[child.name]:
                ordered.append(child)
    if len(ordered) < len(jobs):
        raise ValueError(
            f"jobs wait for each other in a circle: {', '.join(sorted(n for n, w in waits_for.items() if w))}"
        )
    return ordered
