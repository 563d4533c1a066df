"""Which jobs share a SLURM array, and what each array waits for. Pure.

An array is one sbatch call and one line of the queue, whatever its size. Its tasks can still have parents of their
own: with `aftercorr`, task i of one array waits for task i of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from .jobs import Job, JobId, in_order

T = TypeVar("T")


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as SLURM writes task indices: `0-5,7`."""
    present = set(numbers)
    starts = sorted(n for n in present if n - 1 not in present)
    ends = sorted(n for n in present if n + 1 not in present)
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


@dataclass(frozen=True)
class Array:
    """Jobs of one kind with equal resources, by task index, and their parents in earlier arrays.

    corresponding: arrays in which task i is the parent of this array's task i (`aftercorr`).
    every: parents of all tasks, as (array, index), or (array, None) for all tasks of that array (`afterok`).
    An array's number is its index in the list that `arrays` returns.
    """

    jobs: dict[int, Job]
    corresponding: tuple[int, ...] = ()
    every: tuple[tuple[int, int | None], ...] = ()

    @property
    def any_job(self) -> Job:
        """One of its jobs: kind, resources and `after_ids` are the same for all."""
        return next(iter(self.jobs.values()))

    @property
    def indices(self) -> str:
        return ranges(self.jobs)

    def dependency(self, ids: Sequence[JobId]) -> str | None:
        """sbatch's --dependency, given the ids of all earlier arrays."""
        terms = [f"aftercorr:{ids[array]}" for array in self.corresponding]
        terms += [f"afterok:{ids[array]}" + ("" if index is None else f"_{index}") for array, index in self.every]
        terms += [f"afterok:{id}" for id in self.any_job.after_ids]
        return ",".join(terms) or None


Position = tuple[int, int]
"""Array and task index."""


def arrays(jobs: Sequence[Job], max_size: int, earlier: Sequence[Array] = ()) -> list[Array]:
    """The arrays to submit, in order: each comes after those that it waits for.

    Jobs share an array where kind, resources and parents allow it. An array has at most `max_size` tasks, with indices
    below `max_size`. A task waits for exactly the jobs in its `after`.

    earlier: arrays of some of these jobs, parents first, to begin with. They may be larger, and so may be the indices
    of tasks that wait for theirs.
    """
    planned = list(earlier)
    positions = {job.name: (at, index) for at, array in enumerate(planned) for index, job in array.jobs.items()}
    for level in _levels([job for job in in_order(jobs) if job.name not in positions]):
        for group in _group_equal(level, positions):
            for array in _split(group, positions, planned, max_size):
                positions |= {job.name: (len(planned), index) for index, job in array.jobs.items()}
                planned.append(array)
    return planned


def _levels(ordered: Sequence[Job]) -> list[list[Job]]:
    """Jobs by the length of the longest chain of parents among them above them."""
    depth: dict[str, int] = {}
    for job in ordered:
        depth[job.name] = 1 + max((depth.get(parent, -1) for parent in job.after), default=-1)
    levels: list[list[Job]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for job in ordered:
        levels[depth[job.name]].append(job)
    return levels


def _group_equal(level: Sequence[Job], positions: dict[str, Position]) -> list[list[Job]]:
    """Groups of jobs with equal kind and resources whose parents are in the same arrays."""
    groups: dict[object, list[Job]] = {}
    for job in level:
        parents = frozenset(positions[parent][0] for parent in job.after)
        groups.setdefault((job.kind, job.resources, parents, job.after_ids), []).append(job)
    return list(groups.values())


def _split(group: list[Job], positions: dict[str, Position], earlier: list[Array], max_size: int) -> Iterator[Array]:
    """The arrays of a group: as few as its size allows where each task has the index of its parent; else those of each
    set of parents."""
    if paired := _paired_array(group, positions, earlier):
        for tasks in _chunks(list(paired.jobs.items()), max_size):
            yield replace(paired, jobs=dict(tasks))
        return
    by_parents: dict[frozenset[str], list[Job]] = {}
    for job in group:
        by_parents.setdefault(frozenset(job.after), []).append(job)
    for parents, same in by_parents.items():
        every = _whole_arrays(sorted(positions[parent] for parent in parents), earlier)
        for chunk in _chunks(same, max_size):
            yield Array(dict(enumerate(chunk)), every=every)


def _paired_array(group: list[Job], positions: dict[str, Position], earlier: list[Array]) -> Array | None:
    """One array whose tasks have the indices of their parents, or None where that is impossible.

    `aftercorr` pairs the tasks of two arrays by index and by nothing else. A task without a counterpart in the parent
    array starts at once, so each task here must have one (both measured on SLURM 22.05). Each array that holds parents
    must therefore hold either one for each job, at an index that no other job of the group has, or only parents that
    all jobs share.
    """
    shared = frozenset.intersection(*(frozenset(job.after) for job in group))
    own = {job.name: [positions[parent] for parent in job.after if parent not in shared] for job in group}
    index_of = {name: {index for _, index in parents} for name, parents in own.items()}
    if len(group) < 2 or any(len(indices) != 1 for indices in index_of.values()):
        return None
    indices = {name: next(iter(indices)) for name, indices in index_of.items()}
    if len(set(indices.values())) < len(group):
        return None
    tasks = {indices[job.name]: job for job in sorted(group, key=lambda job: indices[job.name])}
    corresponding = {array for parents in own.values() for array, _ in parents}
    if any(len(parents) != len(corresponding) for parents in own.values()):
        return None
    every = _whole_arrays(sorted(positions[parent] for parent in shared), earlier)
    return Array(tasks, tuple(sorted(corresponding)), every)


def _whole_arrays(parents: list[Position], earlier: list[Array]) -> tuple[tuple[int, int | None], ...]:
    """The same parents; where all tasks of an array are among them, (array, None) stands for these."""
    terms: list[tuple[int, int | None]] = []
    for array in sorted({array for array, _ in parents}):
        indices = [index for at, index in parents if at == array]
        whole = len(indices) == len(earlier[array].jobs)
        terms += [(array, None)] if whole else [(array, index) for index in indices]
    return tuple(terms)


def _chunks(jobs: list[T], size: int) -> Iterator[list[T]]:
    return (jobs[start : start + size] for start in range(0, len(jobs), size))
