"""Which jobs share a SLURM array, and what each array waits for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .jobs import Job, JobId, in_order


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as SLURM writes task indices: `0-5,7`."""
    given = set(numbers)
    starts = sorted(n for n in given if n - 1 not in given)
    ends = sorted(n for n in given if n + 1 not in given)
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


@dataclass(frozen=True)
class Array:
    """Jobs of one kind with equal resources, by task index, and their parents among earlier arrays.

    corresponding: arrays in which task i is the parent of this array's task i (`aftercorr`).
    every: parents of all tasks, as (array, index), or (array, None) for all tasks of that array (`afterok`).
    Arrays are named by their position in the list that `arrays` returns.
    """

    jobs: dict[int, Job]
    corresponding: tuple[int, ...] = ()
    every: tuple[tuple[int, int | None], ...] = ()

    @property
    def any_job(self) -> Job:
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


Place = tuple[int, int]
"""Array and task index."""


def arrays(jobs: Sequence[Job], max_size: int) -> list[Array]:
    """As few arrays as follow from kind, resources and parents, each of at most `max_size` tasks with indices below it;
    every array comes after those it waits for. Every job's parents are exactly those in `after` (or, where the whole
    of an array is meant, that array)."""
    made: list[Array] = []
    places: dict[str, Place] = {}
    for level in _levels(in_order(jobs)):
        for group in _alike(level, places):
            for array in _split(group, places, made, max_size):
                places |= {job.name: (len(made), index) for index, job in array.jobs.items()}
                made.append(array)
    return made


def _levels(ordered: Sequence[Job]) -> list[list[Job]]:
    """Jobs by the length of the longest chain of parents above them."""
    depth: dict[str, int] = {}
    for job in ordered:
        depth[job.name] = 1 + max((depth[parent] for parent in job.after), default=-1)
    levels: list[list[Job]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for job in ordered:
        levels[depth[job.name]].append(job)
    return levels


def _alike(level: Sequence[Job], places: dict[str, Place]) -> list[list[Job]]:
    """Jobs of one kind, with equal resources, and with parents in the same arrays."""
    groups: dict[object, list[Job]] = {}
    for job in level:
        parents = frozenset(places[parent][0] for parent in job.after)
        groups.setdefault((job.kind, job.resources, parents, job.after_ids), []).append(job)
    return list(groups.values())


def _split(group: list[Job], places: dict[str, Place], made: list[Array], max_size: int) -> Iterator[Array]:
    """One array where tasks and parents pair off by index; else one per distinct set of parents."""
    if paired := _paired(group, places, made):
        yield paired
        return
    by_parents: dict[frozenset[str], list[Job]] = {}
    for job in group:
        by_parents.setdefault(frozenset(job.after), []).append(job)
    for parents, same in by_parents.items():
        every = _compressed(sorted(places[parent] for parent in parents), made)
        for chunk in _chunks(same, max_size):
            yield Array(dict(enumerate(chunk)), every=every)


def _paired(group: list[Job], places: dict[str, Place], made: list[Array]) -> Array | None:
    """An array whose task indices are those of the parents, or None where they do not pair off.

    Each array that holds parents must either hold one per job, at an index no other job of the group has, or hold
    parents that all jobs share.
    """
    shared = frozenset.intersection(*(frozenset(job.after) for job in group))
    own = {job.name: [places[parent] for parent in job.after if parent not in shared] for job in group}
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
    return Array(tasks, tuple(sorted(corresponding)), _compressed(sorted(places[parent] for parent in shared), made))


def _compressed(parents: list[Place], made: list[Array]) -> tuple[tuple[int, int | None], ...]:
    """The same parents, with an array whose every task is meant as (array, None)."""
    terms: list[tuple[int, int | None]] = []
    for array in sorted({array for array, _ in parents}):
        indices = [index for at, index in parents if at == array]
        whole = len(indices) == len(made[array].jobs)
        terms += [(array, None)] if whole else [(array, index) for index in indices]
    return tuple(terms)


def _chunks(jobs: list[Job], size: int) -> Iterator[list[Job]]:
    return (jobs[start : start + size] for start in range(0, len(jobs), size))
