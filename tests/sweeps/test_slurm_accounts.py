"""What accounting adds to a sweep: jobs that the queue has forgotten are told apart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm.local_cluster.cluster import LocalCluster
from tests.support.faults import HELD, SLURM, SMALL, newest
from tests.support.processes import eventually
from tests.support.read_back import present
from tests.support.shell import Shell

pytestmark = pytest.mark.long(minutes=1)


@pytest.fixture
def accounted(accounted_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    monkeypatch.setenv("SLURM_CONF", str(accounted_cluster.slurm_conf))
    return accounted_cluster


def test_a_sweep_with_accounts_tells_what_became_of_forgotten_jobs(
    disturbed: Shell, tiny: list[str], accounted: LocalCluster
) -> None:
    line = [*tiny, *SMALL, *SLURM, "cluster.account=research", "uptrain.steps=4"]
    assert "1 jobs submitted" in disturbed("sweep", *line, "name=good")
    assert "done" in disturbed("status", "good", "--watch")
    assert "2 jobs submitted" in disturbed("sweep", *line, HELD, "name=ended", "uptrain.lr=2e-3,3e-3")
    accounted.run("scancel", "--state=PENDING", "--user=root")
    disturbed("sweep", *line, "name=wild", "uptrain.lr=1e30")
    printed = disturbed("status", "wild", "--watch", status=1)
    assert "training diverged" in printed
    step = newest(disturbed.store, "uptrain")
    job = present(present(step.attempts()[0].environment()).job)
    assert eventually(lambda: not accounted.run("squeue", "-h", "-t", "all", "-o", "%i").strip(), every=1.0)
    assert "FAILED" in accounted.run("sacct", "-n", "-X", "-j", job, "-o", "State")
    assert "1:0" in accounted.run("sacct", "-n", "-X", "-j", job, "-o", "ExitCode")
    printed = disturbed("status", "ended")
    assert printed.count("CANCELLED") >= 2, "without accounts they would be LOST"
    assert "CANCELLED job" in disturbed("why", "ended", "MQA-2 uptrain.lr=0.002")
    assert "0 jobs submitted" in disturbed("sweep", *line, "name=good")
    assert "2 jobs submitted" in disturbed("sweep", *line, HELD, "name=ended", "uptrain.lr=2e-3,3e-3")
    disturbed("cancel", "ended")


@pytest.fixture
def capped(accounted: LocalCluster) -> Iterator[str]:
    """A partition that takes two jobs of a user at a time, by a QOS of its own that no question to SLURM shows."""
    accounted.run("sacctmgr", "-i", "add", "qos", "pair", "set", "MaxSubmitJobsPerUser=2", check=False)
    accounted.run("scontrol", "create", "partitionname=pairs", "nodes=n1", "qos=pair", "maxtime=60")
    yield "pairs"
    accounted.run("scancel", "--partition=pairs")
    assert eventually(lambda: not accounted.run("squeue", "-h", "-p", "pairs", "-o", "%i").strip(), every=0.2)
    accounted.run("scontrol", "delete", "partitionname=pairs")


def test_a_sweep_fills_a_small_queue_and_the_same_line_goes_on(
    disturbed: Shell, tiny: list[str], accounted: LocalCluster, capped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uptrainings alone go to that partition; jobs export nothing, and the shell has a limit that a field overrides."""
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    line = [*tiny, *SMALL, *SLURM, "uptrain.steps=4", "uptrain.lr=1e-3,2e-3,3e-3", "name=three"]
    line += [f"cluster.resources.uptrain.partition={capped}", "cluster.resources.uptrain.time=20:00"]
    planned = disturbed("plan", *line)
    assert "uptrain: the queue does not take 3 jobs of yours now (QOSMaxSubmitJobPerUserLimit)" in planned
    assert "3 jobs: at most 1.0 GPU-hours by their time limits" in planned
    printed = disturbed("sweep", *line, status=1)
    assert "SBATCH_TIMELIMIT = 1 is not used: cluster.resources.KIND.minutes or cluster.time decides" in printed
    assert "2 jobs submitted" in printed
    assert "1 jobs are left: the queue takes no more jobs of yours now (QOSMaxSubmitJobPerUserLimit)" in printed
    assert "cluster.max_submit" in printed
    assert "LOST" not in disturbed("status", "three")
    assert eventually(lambda: not accounted.run("squeue", "-h", "-p", capped, "-o", "%i").strip(), every=1.0)
    assert "1 jobs submitted" in disturbed("sweep", *line)
    printed = disturbed("status", "three", "--watch")
    assert "failed" not in printed
    assert "done" in printed
