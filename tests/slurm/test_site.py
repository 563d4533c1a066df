"""Profiles, limits and states, as far as they need no cluster."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from slurm.jobs import Job, JobState, Phase
from slurm.limits import UNLIMITED
from slurm.profile import Profile
from slurm.queue import PHASE_OF, expand, parse_state
from slurm.records import ArrayRecord, read, write
from slurm.resources import Resources
from slurm.site import Nodes, parse_minutes, parse_nodes, problems

NODES = [
    Nodes("gpu", True, 4, 64, 512_000, 8, 2880),
    Nodes("gpu", True, 2, 32, 256_000, 4, 2880),
    Nodes("cpu", False, 10, 128, 256_000, 0, UNLIMITED),
]


@pytest.mark.parametrize(
    ("word", "reason", "expected"),
    [
        ("PENDING", "Priority", JobState(Phase.PENDING, "Priority")),
        ("RUNNING", "None", JobState(Phase.RUNNING)),
        ("COMPLETING", "None", JobState(Phase.RUNNING)),
        ("COMPLETED", "None", JobState(Phase.DONE)),
        ("FAILED", "NonZeroExitCode", JobState(Phase.FAILED, "NonZeroExitCode")),
        ("NODE_FAIL", "None", JobState(Phase.FAILED, "NODE_FAIL")),
        ("CANCELLED by 1000", "None", JobState(Phase.CANCELLED, "CANCELLED by 1000")),
        ("CANCELLED", "DependencyNeverSatisfied", JobState(Phase.CANCELLED, "DependencyNeverSatisfied")),
        ("CANCELLED+", "None", JobState(Phase.CANCELLED, "CANCELLED+")),
        ("TIMEOUT", "TimeLimit", JobState(Phase.TIMEOUT, "TimeLimit")),
        ("PREEMPTED", "None", JobState(Phase.PREEMPTED)),
        ("OUT_OF_MEMORY", "OutOfMemory", JobState(Phase.OUT_OF_MEMORY, "OutOfMemory")),
        ("SOMETHING_NEW", "None", JobState(Phase.UNKNOWN, "SOMETHING_NEW")),
        ("", "", JobState(Phase.UNKNOWN)),
    ],
)
def test_states(word: str, reason: str, expected: JobState) -> None:
    assert parse_state(word, reason) == expected


def test_only_pending_and_running_jobs_can_change() -> None:
    assert {phase for phase in Phase if not JobState(phase).ended} == {Phase.PENDING, Phase.RUNNING}
    assert set(PHASE_OF.values()) == set(Phase) - {Phase.UNKNOWN}


@pytest.mark.parametrize(
    ("shown", "ids"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[0-2,5%1]", ["12_0", "12_1", "12_2", "12_5"]),
        ("12_[7]", ["12_7"]),
    ],
)
def test_ids_of_waiting_tasks_are_told_apart(shown: str, ids: list[str]) -> None:
    assert expand(shown) == ids


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("1-00:00:00", 1440), ("2-12:30", 3630), ("1:00:00", 60), ("30:00", 30), ("45", 0), ("infinite", UNLIMITED)],
)
def test_minutes(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


def test_nodes() -> None:
    line = "gpu*|4|64+|512000+|gpu:a100:4(S:0-1),gpu:h100:2,nvme:1|2-00:00:00"
    assert parse_nodes(line) == Nodes("gpu", True, 4, 64, 512_000, 6, 2880)
    assert parse_nodes("cpu|1|8|1000|(null)|infinite") == Nodes("cpu", False, 1, 8, 1000, 0, UNLIMITED)


@pytest.mark.parametrize(
    ("profile", "resources", "expected"),
    [
        (Profile(), Resources(gpus=8, cpus=64), []),
        (Profile(partition="cpu"), Resources(minutes=10**6), []),
        (Profile(partition="cpu,gpu"), Resources(gpus=8, cpus=128), []),
        (Profile(partition="gqu"), Resources(), ["cluster.partition = gqu: this site has cpu, gpu"]),
        (Profile(), Resources(gpus=9), ["resources.gpus: 9 GPUs per node requested, partition gpu has 8"]),
        (Profile(time=3000), Resources(), ["resources.minutes: 3000 minutes requested, partition gpu has 2880"]),
        (Profile(), Resources(nodes=7), ["resources.nodes: 7 nodes requested, partition gpu has 6"]),
        (
            Profile(memory_gb=501),
            Resources(),
            ["resources.memory_gb: 513024 MB per node requested, partition gpu has 512000"],
        ),
        (
            Profile(),
            Resources(cpus=9, tasks_per_node=8),
            ["resources.cpus: 72 CPUs per node requested, partition gpu has 64"],
        ),
    ],
)
def test_what_no_node_could_run_is_named(profile: Profile, resources: Resources, expected: list[str]) -> None:
    assert problems(profile, resources, NODES) == expected


def test_a_site_without_a_default_partition_wants_one_named() -> None:
    assert problems(Profile(), Resources(), NODES[2:]) == [
        "cluster.partition is empty and this site has no default: choose from cpu"
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"extra": {"dependency": "afterok:1"}}, "extra.dependency"),
        ({"extra": {"kill_on_invalid_dep": "no"}}, "extra.kill_on_invalid_dep"),
        ({"gres": "gpu:{count}"}, "gres"),
        ({"max_running": 0}, "max_running = 0: must be at least 1"),
        ({"time": 0}, "time = 0: must be at least 1"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Profile(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"gpus": -1}, "resources.gpus"), ({"cpus": 0}, "resources.cpus"), ({"memory_gb": -1}, "resources.memory_gb")],
)
def test_resources_that_make_no_sense_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Resources(**fields)  # type: ignore[arg-type]


def test_the_profile_wins_over_the_time_and_the_resources_over_the_memory() -> None:
    profile = Profile(time=30, memory_gb=8, gres="gpu:h100:{gpus}")
    parameters = profile.parameters(Resources(gpus=2, minutes=600, memory_gb=1.5))
    assert (parameters["time"], parameters["mem"], parameters["gres"]) == (30, "1536M", "gpu:h100:2")
    assert Profile(memory_gb=8).parameters(Resources())["mem"] == "8192M"
    assert "gres" not in profile.parameters(Resources())
    assert "mem" not in Profile().parameters(Resources())


def test_the_interpreter_can_be_a_container() -> None:
    profile = Profile(python="apptainer exec image.sif python")
    job = Job("a", (sys.executable, "-m", "worker", "a b"))
    assert profile.command(job) == "apptainer exec image.sif python -m worker 'a b'"
    assert profile.command(Job("a", ("/bin/other", "x"))) == "/bin/other x"
    assert Profile().command(job) == f"{sys.executable} -m worker 'a b'"


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "a;b", "a$"])
def test_names_that_a_shell_or_a_path_would_misread_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="job name"):
        Job(name, ("true",))


def test_records_are_read_in_order_of_creation_and_one_that_was_not_queued_has_no_ids(tmp_path: Path) -> None:
    for record in (
        ArrayRecord("mlkv-b", {"x": 0, "y": 1}, created=1.0, array_id="10"),
        ArrayRecord("mlkv-a", {"y": 0}, created=2.0, array_id="11"),
        ArrayRecord("mlkv-c", {"x": 0}, created=3.0),
    ):
        write(tmp_path, record)
    assert [record.ids() for record in read(tmp_path)] == [{"x": "10_0", "y": "10_1"}, {"y": "11_0"}, {}]


def test_the_manual_explains_every_field_of_a_profile() -> None:
    manual = (Path(__file__).resolve().parents[2] / "docs" / "slurm.md").read_text()
    table = manual.split("## What each profile field does")[1].split("##")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    explained = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert explained == {field.name for field in fields(Profile)}


def test_the_manual_names_tests_that_exist() -> None:
    root = Path(__file__).resolve().parents[2]
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "slurm.md").read_text()))
    written = {
        name for path in root.glob("tests/**/test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 20
    assert named <= written
