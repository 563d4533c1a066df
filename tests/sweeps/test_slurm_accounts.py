"""What accounting adds to a sweep: jobs that the queue has forgotten are told apart."""

from __future__ import annotations

import pytest

from slurm.local_cluster.cluster import LocalCluster
from tests.support.faults import HELD, SLURM, SMALL, newest
from tests.support.processes import eventually
from tests.support.read_back import present
from tests.support.shell import Shell

pytestmark = pytest.mark.long


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
