"""Which steps share a job, and which jobs wait for which. Pure.

A process start costs seconds (importing torch, transformers and lm-eval), so cheap steps run in the job of the step
that uses them or made their input: a conversion in its uptraining's job, the evaluations of a checkpoint in the job
that makes it. Many jobs wait for a base, so its job holds nothing else; and so with a training that a longer one
continues, as the longer one needs none of its evaluations. What scores a conversion runs behind its training, which
then has all of the process's memory. All measurements share one job that runs alone.

Where checkpoints are done already (a task was added to an old sweep), the evaluations of several share a job: imports,
questions and tokens are then made once, and a checkpoint of the same configuration is read into the model of the last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from slurm.limits import UNLIMITED
from slurm.local import default_slots
from slurm.resources import Resources
from sweeps.planning.config import ClusterConfig
from sweeps.steps.registry import kind_of
from sweeps.steps.step import Step


@dataclass(frozen=True)
class JobSpec:
    """A job before it is submitted: steps to run in order, after the jobs named in `after`."""

    name: str
    kind: str
    steps: tuple[str, ...]
    after: tuple[str, ...]
    needs: tuple[str, ...]
    """Steps of other jobs, of this plan's or of an earlier one, that must be done before it starts."""
    resources: Resources

    @property
    def device_hours(self) -> float | None:
        """The hours of its GPUs, or its own where it has none, until its time limit; None where it has no limit."""
        need = self.resources
        return None if need.minutes >= UNLIMITED else need.minutes * max(need.gpus, 1) * need.nodes / 60


CHECKPOINTS_PER_JOB = 4
"""Where there is a queue: so many finished checkpoints are scored in one job unless `checkpoints_per_job` says
otherwise. The job's time limit stays that of one checkpoint's evaluations, and what it cuts off is queued again."""


def slots_of(cluster: ClusterConfig) -> int:
    """How many jobs run on this machine at a time."""
    return cluster.slots or default_slots()


def job_specs(steps: Iterable[Step], cluster: ClusterConfig, live: Collection[str] = ()) -> list[JobSpec]:
    """Jobs for the given steps, parents before children. A conversion that several uptrainings need is listed in the
    job of each: the first to claim it runs it, the others find it done.

    live: steps of jobs that were queued earlier; no other step is to wait because one of its job needs these.
    """
    todo = {step.id: step for step in steps}
    brought = {step.id: _parents_in_its_job(step, todo) for step in todo.values()}
    elsewhere = {parent.id for parents in brought.values() for parent in parents}
    alone = {
        parent
        for step in todo.values()
        if kind_of(step.kind).trains
        for parent in step.parents.values()
        if parent in todo and kind_of(todo[parent].kind).trains
    }
    makers = {parent.id: id for id, parents in reversed(brought.items()) for parent in parents}
    groups: dict[str, list[Step]] = {}
    for step in todo.values():
        if step.id not in elsewhere:
            groups.setdefault(_job_name(step, todo, alone, makers), []).extend([*brought[step.id], step])
    order = {id: place for place, id in enumerate(todo)}
    groups = {name: sorted(group, key=lambda step: order[step.id]) for name, group in groups.items()}
    groups = _together_where_done(groups, {*todo, *live}, cluster)
    job_of = {step.id: name for name, group in groups.items() for step in group}
    jobs = [_job_spec(name, group, job_of, cluster) for name, group in groups.items()]
    return sorted(jobs, key=lambda job: kind_of(job.kind).job == "together")


def _together_where_done(
    groups: Mapping[str, list[Step]], unfinished: Collection[str], cluster: ClusterConfig
) -> dict[str, list[Step]]:
    """Groups of steps that only read what is done, some of them joined, by the name of their first; others as they are.

    On this machine there are as many as jobs run at a time.
    """
    kinds: dict[str, list[str]] = {}
    for name, group in groups.items():
        waits = any(parent in unfinished for step in group for parent in step.parents.values())
        if not waits and all(kind_of(step.kind).job == "with_parent" for step in group):
            kinds.setdefault(group[0].kind, []).append(name)
    joined = dict(groups)
    for names in kinds.values():
        size = cluster.checkpoints_per_job
        if size is None:
            at_a_time = slots_of(cluster)
            size = CHECKPOINTS_PER_JOB if cluster.name == "slurm" else -(-len(names) // at_a_time)
        jobs = -(-len(names) // size)
        for i in range(jobs):
            first, *others = names[i * len(names) // jobs : (i + 1) * len(names) // jobs]
            joined[first] = [*groups[first], *(step for name in others for step in joined.pop(name))]
    return joined


def _parents_in_its_job(step: Step, todo: dict[str, Step]) -> list[Step]:
    if kind_of(step.kind).job != "own":
        return []
    parents = (todo[id] for id in step.parents.values() if id in todo)
    return [parent for parent in parents if kind_of(parent.kind).job == "with_child"]


def _job_name(step: Step, todo: dict[str, Step], alone: Collection[str], makers: Mapping[str, str]) -> str:
    """The name of the job that a step belongs to; steps with one name share the job. `alone`: steps whose job has no
    evaluations in it. `makers`: step that runs in another's job → the first such other."""
    kind = kind_of(step.kind)
    if kind.job == "together":
        return step.kind
    if kind.job == "with_parent" and (parent := step.parents.get(kind.reads)):
        parent = makers.get(parent, parent)
        with_parent = parent in todo and parent not in alone and kind_of(todo[parent].kind).shares_job
        return _short(parent) if with_parent else f"{step.kind}-{_short(parent)}"
    return _short(step.id)


def _short(step_id: str) -> str:
    """A step id without the second half of its hash: job names are read in squeue."""
    return step_id[:-8]


def _job_spec(name: str, group: list[Step], job_of: dict[str, str], cluster: ClusterConfig) -> JobSpec:
    parents = {parent for step in group for parent in step.parents.values()} - {step.id for step in group}
    after = sorted({job_of[parent] for parent in parents if parent in job_of} - {name})
    kind = next((step.kind for step in group if kind_of(step.kind).trains), group[0].kind)
    steps = tuple(step.id for step in group)
    return JobSpec(name, kind, steps, tuple(after), tuple(sorted(parents)), cluster.resources_of(kind))
