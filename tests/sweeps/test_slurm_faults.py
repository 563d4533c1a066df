"""Whatever happens to jobs: nothing is lost, nothing finished runs again, and the weights are those of a quiet run.

Faults overlap on one cluster; docs/slurm.md lists which test shows what.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from slurm.jobs import Job, Phase
from slurm.local_cluster.cluster import LocalCluster
from slurm.profile import Profile
from slurm.submit import SlurmExecutor
from tests.support.faults import (
    HELD,
    SLURM,
    SMALL,
    Fault,
    all_done,
    attempts,
    faulty,
    nothing_was_repeated,
    on,
    queue_is_empty,
    wait,
    weights,
)
from tests.support.processes import eventually
from tests.support.read_back import present
from tests.support.shell import ROOT, Shell

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims of lost nodes are taken over soon."""
    monkeypatch.setenv("MLKV_STALE_SECONDS", "5")


@pytest.mark.long(minutes=6)
def test_whatever_happens_to_a_job_its_step_ends_as_if_nothing_had(
    tiny: list[str], undisturbed: Shell, cluster: LocalCluster, tmp_path: Path
) -> None:
    def fault(name: str, *more: str) -> Fault:
        return faulty(name, tmp_path, undisturbed, tiny, cluster, *more)

    try:
        child, cancelled = fault("child", on("n1")), fault("cancelled", on("n1"))
        with child.held_at(25) as process:
            assert "BatchHost=n1" in cluster.run("scontrol", "show", "job", child.job())
            process.kill()
        with cancelled.held_at(25):
            cluster.run("scancel", cancelled.job())
        wait(lambda: cancelled.step.state().name == "INTERRUPTED", cancelled)
        wait(lambda: "CANCELLED" in cancelled.shell("why", "tiny", "MQA-2"), cancelled)
        assert "SIGTERM" in cancelled.shell("why", "tiny", "MQA-2")

        preempted = fault("preempted", on("n2"), "cluster.resources.uptrain.cpus=8")
        for early_and_late in (5, 150):
            with preempted.held_at(early_and_late):
                preempted.preempt("n2")
        supervisor = fault("supervisor", on("n1"))
        with supervisor.held_at(25):
            supervisor.supervisor().kill()
        cancelled.submit()

        with cancelled.held_at(35):
            cluster.daemon("slurmctld").stop()
            assert "the queue does not answer" in cancelled.shell("status", "tiny")
            cluster.up()

        warned = fault("warned", on("n3"))
        with warned.held_at(25):
            assert "BatchHost=n3" in cluster.run("scontrol", "show", "job", warned.job())
            cluster.run("scancel", "--signal=USR2", warned.job())

        faults = [child, cancelled, preempted, supervisor, warned]
        wait(lambda: all(all_done(f.shell.store)() for f in faults), *faults)
        for f in faults:
            assert f.weights() == weights(undisturbed.store), f.name
            assert nothing_was_repeated(f), f.name
        assert {f.name: len(f.step.attempts()) for f in faults} == {f.name: 3 if f is preempted else 2 for f in faults}
        assert {f.name for f in faults if len(f.jobs()) > 1} == {"cancelled"}, "SLURM and the jobs did the rest"
    finally:
        cluster.run("scancel", "--user", os.environ.get("USER", "root"), check=False)
        cluster.up()


@pytest.mark.long
def test_a_failed_parent_blocks_its_descendants_alone_and_is_failed_in_the_queue(
    disturbed: Shell, tiny: list[str], cluster: LocalCluster
) -> None:
    line = [*tiny, *SMALL, *SLURM, "name=wild", "uptrain.steps=4", "uptrain.lr=1e-3,1e30"]
    before = attempts(disturbed.store)
    disturbed("sweep", *line)
    printed = disturbed("status", "wild", "--watch", status=1)
    assert printed.rstrip().endswith("1 failed, 1 blocked")
    assert "training diverged" in disturbed("why", "wild", "MQA-2 uptrain.lr=1e+30")
    failed = next(step for step in disturbed.store.steps() if step.state().name == "FAILED")
    job = present(present(failed.attempts()[0].environment()).job)
    assert eventually(lambda: "JobState=FAILED" in cluster.run("scontrol", "show", "job", job), every=0.2)
    assert "ExitCode=1:0" in cluster.run("scontrol", "show", "job", job)
    again = attempts(disturbed.store)
    assert sorted((again - before).values()) == [1, 1, 1], "the failed one, its sibling, and what descends from that"
    assert "0 jobs submitted" in disturbed("sweep", *line)
    assert "1 jobs submitted" in disturbed("retry", "wild")
    disturbed("cancel", "wild", "MQA-2 uptrain.lr=1e+30")
    assert eventually(lambda: queue_is_empty(cluster), every=0.2)


def test_a_job_whose_parent_the_queue_has_forgotten_finds_out_for_itself(
    tiny: list[str], undisturbed: Shell, cluster: LocalCluster, tmp_path: Path
) -> None:
    """SLURM takes a dependency on an id that it has purged for satisfied, and starts the job."""
    orphan = faulty("orphan", tmp_path, undisturbed, tiny, cluster, HELD)
    orphan.shell("cancel", "tiny")
    store = orphan.shell.store
    (parent,) = (step for step in store.steps() if step.kind == "convert")
    shutil.rmtree(parent.path / "out")
    (parent.path / "done.json").unlink()
    command = (sys.executable, "-m", "sweeps.worker", str(store.root), orphan.step.id)
    executor = SlurmExecutor(tmp_path / "jobs", Profile(setup=(f"export PYTHONPATH={ROOT}",)))
    ids = executor.submit([Job("orphan", command, after_ids=("999999",))])
    assert eventually(lambda: executor.states(ids.values())[ids["orphan"]].phase is Phase.FAILED, every=0.2)
    assert "ExitCode=3:0" in cluster.run("scontrol", "show", "job", ids["orphan"])
    assert f"waits for {parent.id}" in executor.output(ids["orphan"]).read_text()
    assert orphan.step.attempts() == []


def warned(child: psutil.Process) -> bool:
    """Whether a signal waits for a process that stands still, or has ended it: SLURM may wake what it signals."""
    try:
        lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return True
    return any(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd")))


@pytest.mark.long
def test_a_step_that_reaches_its_time_limit_goes_on_in_the_next_run_of_its_job(
    tiny: list[str], undisturbed: Shell, cluster: LocalCluster, tmp_path: Path
) -> None:
    limited = faulty("limited", tmp_path, undisturbed, tiny, cluster)
    with limited.held_at(25) as child:
        cluster.run("scontrol", "update", f"JobId={limited.job()}", "EndTime=now+60")
        wait(lambda: warned(child), limited)
    wait(all_done(limited.shell.store), limited)
    reasons = [present(attempt.exit()).reason for attempt in limited.step.attempts()]
    assert len(reasons) > 1
    assert all("SIGUSR2" in reason for reason in reasons[:-1])
    assert len(limited.jobs()) == 1, "the job itself went back into the queue"
    assert limited.weights() == weights(undisturbed.store)
    assert nothing_was_repeated(limited)


@pytest.mark.long
def test_a_step_on_a_node_that_goes_down_is_taken_over_by_another(
    undisturbed: Shell, tiny: list[str], cluster: LocalCluster, tmp_path: Path
) -> None:
    lost = faulty("lost", tmp_path, undisturbed, tiny, cluster, on("n3|n4"))
    try:
        wait(lambda: lost.reached(25), lost)
        lost.lose_node()
        wait(all_done(lost.shell.store), lost)
    finally:
        cluster.up()
    hosts = [present(attempt.environment()).host for attempt in lost.step.attempts()]
    assert sorted(hosts) == ["n3", "n4"]
    assert lost.weights() == weights(undisturbed.store)
    assert nothing_was_repeated(lost)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("mounting needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.long
def test_a_full_disk_and_a_store_that_cannot_be_written_lose_nothing(
    undisturbed: Shell, tiny: list[str], cluster: LocalCluster, small_disk: Path
) -> None:
    full = faulty("full", small_disk, undisturbed, tiny, cluster)
    wait(lambda: full.reached(25), full)
    fill(small_disk / "ballast")
    wait(lambda: full.step.state().name in ("INTERRUPTED", "LOST"), full)
    cluster.run("scancel", full.job())  # else it went back into the queue until there is room
    wait(lambda: queue_is_empty(cluster), full)
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "cannot be written" in full.shell("sweep", *full.line, status=2)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert "1 jobs submitted" in full.shell("sweep", *full.line)
    wait(all_done(full.shell.store), full)
    assert full.weights() == weights(undisturbed.store)
    assert nothing_was_repeated(full)


def fill(ballast: Path) -> None:
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
