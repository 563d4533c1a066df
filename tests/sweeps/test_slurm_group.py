"""One step trained by several processes on several nodes."""

from __future__ import annotations

import shutil

import pytest

from slurm.local_cluster.cluster import LocalCluster
from tests.support.faults import SLURM, SMALL, newest
from tests.support.read_back import present
from tests.support.shell import Shell


@pytest.mark.long(minutes=1)
def test_four_processes_on_two_nodes_train_as_one_does(
    disturbed: Shell, tiny: list[str], cluster: LocalCluster
) -> None:
    line = [*tiny, *SMALL, "uptrain.steps=6", "uptrain.precision=fp32", "name=wide", "evaluate.tasks=[]"]
    disturbed("sweep", *line)
    alone = newest(disturbed.store, "uptrain")
    losses = [row.fields["loss"] for row in alone.metrics() if "loss" in row.fields]
    shutil.rmtree(alone.path)
    group = ["cluster.resources.uptrain.nodes=2", "cluster.resources.uptrain.tasks_per_node=2"]
    disturbed("sweep", *line, *SLURM, *group)
    assert "done" in disturbed("status", "wide", "--watch")
    together = disturbed.store.step(alone.id)
    record = together.record()
    assert record is not None, "the same step, whoever trains it"
    assert record.facts["devices"] == 4
    assert [row.fields["loss"] for row in together.metrics() if "loss" in row.fields] == pytest.approx(losses, rel=1e-4)
    assert [attempt.number for attempt in together.attempts()] == [1]
    job = present(present(together.attempts()[0].environment()).job)
    shown = cluster.run("scontrol", "show", "job", job)
    assert "NumNodes=2" in shown
    assert {path.name for path in together.attempts()[0].path.glob("rank-*.log")} == {
        f"rank-{i}.log" for i in (1, 2, 3)
    }
