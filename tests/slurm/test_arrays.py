"""Grouping into arrays changes nothing about who waits for whom, and makes few arrays where sweeps are regular."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm.arrays import Array, arrays
from slurm.jobs import Job
from slurm.resources import Resources


def job(name: str, *after: str, kind: str = "job", **resources: int) -> Job:
    return Job(name, ("true",), Resources(**resources), after, kind)  # type: ignore[arg-type]


def parents_of(array: Array, index: int, made: list[Array]) -> set[str]:
    """What SLURM makes of the array's dependency, for one task: aftercorr by index, afterok by task or whole array."""
    parents = {made[parent].jobs[index].name for parent in array.corresponding}
    for parent, at in array.every:
        parents |= {made[parent].jobs[at].name} if at is not None else {job.name for job in made[parent].jobs.values()}
    return parents


@st.composite
def graphs(draw: st.DrawFn) -> list[Job]:
    """Mostly regular, as sweeps are: layers of jobs, each with a parent at the same place in an earlier layer, a shared
    parent, or any parents."""
    jobs: list[Job] = []
    layers: list[list[str]] = []
    for depth in range(draw(st.integers(1, 4))):
        names = [f"{depth}.{i}" for i in range(draw(st.integers(1, 7)))]
        for i, name in enumerate(names):
            parents = set()
            for layer in layers:
                choice = draw(st.sampled_from(["none", "same place", "first", "any"]))
                parents |= {"same place": set(layer[i : i + 1]), "first": {layer[0]}}.get(choice, set())
                if choice == "any":
                    parents |= draw(st.sets(st.sampled_from(layer)))
            kind = draw(st.sampled_from(["uptrain", "evaluate"]))
            jobs.append(job(name, *sorted(parents), kind=kind, gpus=draw(st.integers(0, 1))))
        layers.append(names)
    return draw(st.permutations(jobs))


@given(jobs=graphs(), max_size=st.integers(1, 5))
def test_any_graph_keeps_its_parents_and_fits(jobs: list[Job], max_size: int) -> None:
    made = arrays(jobs, max_size)
    assert sorted(job.name for array in made for job in array.jobs.values()) == sorted(job.name for job in jobs)
    for position, array in enumerate(made):
        assert 1 <= len(array.jobs) <= max_size
        assert max(array.jobs) < max_size
        assert len({(job.kind, job.resources) for job in array.jobs.values()}) == 1
        assert all(parent < position for parent in (*array.corresponding, *(at for at, _ in array.every)))
        for index, one in array.jobs.items():
            assert parents_of(array, index, made) == set(one.after)
            assert all(index in made[parent].jobs for parent in array.corresponding), (
                "a task without its pair would run"
            )


@given(jobs=graphs(), sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4), kept=st.integers(0, 9))
def test_arrays_can_be_cut_while_they_are_submitted(jobs: list[Job], sizes: list[int], kept: int) -> None:
    """As the queue refuses them: what is queued stays as it is, the rest is in smaller arrays."""
    made: list[Array] = []
    for size in sorted(sizes, reverse=True):
        before, made = made[:kept], arrays(jobs, size, made[:kept])
        assert made[: len(before)] == before
        assert all(len(array.jobs) <= size for array in made[len(before) :])
        assert sorted(job.name for array in made for job in array.jobs.values()) == sorted(job.name for job in jobs)
        for position, array in enumerate(made):
            assert max(array.jobs) < max(sizes)
            assert all(parent < position for parent in (*array.corresponding, *(at for at, _ in array.every)))
            for index, one in array.jobs.items():
                assert parents_of(array, index, made) == set(one.after)


def test_a_regular_sweep_is_one_array_per_kind() -> None:
    base = [job("base", kind="base", gpus=1)]
    uptrain = [job(f"u{i}", "base", kind="uptrain", gpus=1) for i in range(20)]
    evaluate = [job(f"e{i}", f"u{i}", "base", kind="evaluate") for i in range(20)]
    made = arrays([*evaluate, *uptrain, *base], 1000)
    assert [array.indices for array in made] == ["0", "0-19", "0-19"]
    ids = ["7", "8", "9"]
    assert [array.dependency(ids) for array in made] == [None, "afterok:7", "aftercorr:8,afterok:7"]


def test_children_of_some_tasks_take_their_indices() -> None:
    uptrain = [job(f"u{i}", kind="uptrain") for i in range(9)]
    evaluate = [job(f"e{i}", f"u{i}", kind="evaluate") for i in (7, 2, 4, 3)]
    made = arrays([*uptrain, *evaluate], 1000)
    assert made[1].indices == "2-4,7"
    assert made[1].dependency(["5"]) == "aftercorr:5"


def test_one_child_of_some_tasks_names_them() -> None:
    made = arrays([job("a"), job("b"), job("c"), job("z", "a", "c"), job("all", "a", "b", "c")], 1000)
    dependencies = {array.any_job.name: array.dependency(["5"]) for array in made}
    assert dependencies == {"a": None, "z": "afterok:5_0,afterok:5_2", "all": "afterok:5"}


def test_jobs_queued_earlier_are_waited_for() -> None:
    later = [replace(job(f"e{i}", f"u{i}"), after_ids=("77_3", "78")) for i in range(2)]
    made = arrays([job("u0"), job("u1"), *later], 1000)
    assert made[1].dependency(["5"]) == "aftercorr:5,afterok:77_3,afterok:78"


def test_large_arrays_are_cut_and_their_children_follow_the_cut() -> None:
    parents = [job(f"u{i}") for i in range(150)]
    children = [job(f"e{i}", f"u{i}") for i in range(150)]
    made = arrays([*parents, *children], 64)
    assert [array.indices for array in made] == ["0-63", "0-63", "0-21"] * 2
    assert [array.corresponding for array in made[3:]] == [(0,), (1,), (2,)]


def test_nothing_to_submit() -> None:
    assert arrays([], 64) == []


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="in a circle: a, b"):
        arrays([job("a", "b"), job("b", "a"), job("c")], 64)
