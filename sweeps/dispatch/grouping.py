"""Which steps share a process, and which jobs wait for which. Pure.

Cheap steps ride with their consumer: a conversion with its uptraining, the evaluations of a checkpoint with what made
it. A base is waited for by many, so nothing rides with it. All measurements share one process that runs alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sweeps.planning.config import ClusterConfig, Resources
from sweeps.steps.step import Step


@dataclass(frozen=True)
class PlannedJob:
    """Steps that one process runs in order, after the jobs named in `after`."""

    name: str
    kind: str
    steps: tuple[str, ...]
    after: tuple[str, ...]
    needs: tuple[str, ...]
    """Steps of other jobs, of this plan's or of an earlier one, that must be done before it starts."""
    resources: Resources


def planned_jobs(steps: Iterable[Step], cluster: ClusterConfig) -> list[PlannedJob]:
    """Jobs for the given steps, parents before children. A conversion with several consumers is listed in each job: the
    first to claim it runs it."""
    todo = {step.id: step for step in steps}
    converted = {step.parents["start"] for step in todo.values() if step.kind == "uptrain"}
    members: dict[str, list[Step]] = {}
    for step in todo.values():
        if step.kind == "convert" and step.id in converted:
            continue
        members.setdefault(_home(step, todo), []).extend(_with_conversion(step, todo))
    names = {step.id: name for name, group in members.items() for step in group}
    jobs = [_job(name, group, names, cluster) for name, group in members.items()]
    return sorted(jobs, key=lambda job: job.kind == "measure")


def _home(step: Step, todo: dict[str, Step]) -> str:
    if step.kind == "measure":
        return "measure"
    if step.kind == "evaluate":
        checkpoint = step.parents["checkpoint"]
        rides = checkpoint in todo and todo[checkpoint].kind != "base"
        return _name(checkpoint) if rides else f"evaluate-{_name(checkpoint)}"
    return _name(step.id)


def _name(step_id: str) -> str:
    return step_id[:-8]


def _with_conversion(step: Step, todo: dict[str, Step]) -> list[Step]:
    start = todo.get(step.parents.get("start", ""))
    return [start, step] if start else [step]


def _job(name: str, group: list[Step], names: dict[str, str], cluster: ClusterConfig) -> PlannedJob:
    parents = {parent for step in group for parent in step.parents.values()} - {step.id for step in group}
    after = sorted({names[parent] for parent in parents if parent in names} - {name})
    kind = next((step.kind for step in group if step.kind in ("uptrain", "base")), group[0].kind)
    resources = cluster.resources.get(kind, Resources())  # type: ignore[call-overload]
    return PlannedJob(name, kind, tuple(step.id for step in group), tuple(after), tuple(sorted(parents)), resources)
