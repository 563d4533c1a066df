"""Jobs: every step in one, none before its parents, cheap ones together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm.resources import Resources
from sweeps.dispatch.grouping import JobSpec, job_specs
from sweeps.planning.config import ClusterConfig
from sweeps.planning.plan import Plan
from sweeps.steps.step import Step

CLUSTER = ClusterConfig(resources={"measure": Resources(exclusive=True), "base": Resources(cpus=2)})


@pytest.fixture(scope="module")
def steps(planner: Callable[[Sequence[str]], Plan]) -> dict[str, Step]:
    return planner(["experiment=quickstart", "uptrain.lr=1e-3,1e-4"]).steps


@settings(max_examples=50)
@given(data=st.data())
def test_whatever_is_missing_is_run_after_what_it_needs(steps: dict[str, Step], data: st.DataObject) -> None:
    done = data.draw(st.sets(st.sampled_from(sorted(steps))))
    missing = [step for id, step in steps.items() if id not in done]
    jobs = job_specs(missing, CLUSTER)
    assert {id for job in jobs for id in job.steps} == {step.id for step in missing}
    for job in jobs:
        check_order(job, {j.name: j for j in jobs}, {step.id: step for step in missing})


def check_order(job: JobSpec, jobs: dict[str, JobSpec], missing: dict[str, Step]) -> None:
    ran = {id for name in job.after for id in jobs[name].steps}
    for id in job.steps:
        assert {parent for parent in missing[id].parents.values() if parent in missing} <= ran | above(job, jobs)
        ran.add(id)


def above(job: JobSpec, jobs: dict[str, JobSpec]) -> set[str]:
    found = {id for name in job.after for id in jobs[name].steps}
    return found.union(*(above(jobs[name], jobs) for name in job.after))


def test_what_shares_a_process(planner: Callable[[Sequence[str]], Plan]) -> None:
    steps = planner(["experiment=quickstart"]).steps
    jobs = job_specs(steps.values(), CLUSTER)
    kinds = [[steps[id].kind for id in job.steps] for job in jobs]
    assert kinds.count(["convert", "uptrain"] + ["evaluate"] * 6) == 8  # one of them scores the conversion
    assert sorted(map(len, kinds)) == [1, 1, 1, 4] + [8] * 8 + [
        8
    ]  # corpus, base, calibrate; the untouched base's scores
    assert jobs[-1].kind == "measure"
    assert jobs[-1].resources.exclusive


@pytest.fixture(scope="module")
def evaluations(steps: dict[str, Step]) -> list[Step]:
    """All that is left of a sweep with two learning rates when its evaluations are lost."""
    return [step for step in steps.values() if step.kind == "evaluate"]


def checkpoints(job: JobSpec, steps: dict[str, Step]) -> list[str]:
    return list(dict.fromkeys(steps[id].parents["checkpoint"] for id in job.steps))


@pytest.mark.parametrize(
    ("cluster", "most"),
    [
        (ClusterConfig(slots=2), None),
        (ClusterConfig(slots=100), 1),
        (ClusterConfig(name="slurm"), 4),
        (ClusterConfig(name="slurm", checkpoints_per_job=1), 1),
        (ClusterConfig(slots=2, checkpoints_per_job=3), 3),
    ],
    ids=str,
)
def test_finished_checkpoints_share_jobs(
    cluster: ClusterConfig, most: int | None, steps: dict[str, Step], evaluations: list[Step]
) -> None:
    """In equal portions, each checkpoint's evaluations one after another in one job."""
    jobs = job_specs(evaluations, cluster)
    portions = [checkpoints(job, steps) for job in jobs]
    every = list(dict.fromkeys(step.parents["checkpoint"] for step in evaluations))
    assert sorted(id for portion in portions for id in portion) == sorted(every)
    count = 2 if most is None else -(-len(every) // most)
    assert len(jobs) == len({job.name for job in jobs}) == count
    assert max(map(len, portions)) - min(map(len, portions)) <= 1
    for job in jobs:
        assert [steps[id].parents["checkpoint"] for id in job.steps] == [
            checkpoint
            for checkpoint in checkpoints(job, steps)
            for step in evaluations
            if step.parents["checkpoint"] == checkpoint
        ]


def test_what_waits_is_not_waited_for(steps: dict[str, Step], evaluations: list[Step]) -> None:
    """A checkpoint that is being made, by this plan's jobs or by earlier ones, holds up its own evaluations alone."""
    cluster = ClusterConfig(name="slurm", checkpoints_per_job=100)
    uptrain = next(step for step in steps.values() if step.kind == "uptrain")
    own = {step.id for step in evaluations if uptrain.id in step.parents.values()}
    for todo, live in (([uptrain, *evaluations], ()), (evaluations, (uptrain.id,))):
        jobs = job_specs(todo, cluster, live)
        assert len(jobs) == 2
        assert {frozenset(job.steps) - {uptrain.id} for job in jobs} == {
            frozenset(own),
            frozenset(step.id for step in evaluations) - own,
        }
