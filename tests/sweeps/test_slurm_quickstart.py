"""The quickstart, smaller, through SLURM: the same table as on this machine, and nothing left to do the second time."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from slurm.local_cluster.cluster import LocalCluster
from tests.support.faults import SLURM, all_done, attempts
from tests.support.processes import eventually
from tests.support.shell import Shell

LINE = ["experiment=quickstart", 'sweep.filter="budget < 3"', "corpus.sequence_length=64", "base.steps=10"]
LINE += ["base.batch_size=4", "uptrain.steps=4", "evaluate.limit=8", "measure.batch_sizes=[1]", "measure.contexts=[32]"]
CLOCKED = ("tokens_per_second", "seconds", "peak_memory", "decode_", "machine")
"""What no two runs have in common, or no two nodes, by parts of the column's name."""


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return [
            {name: cell for name, cell in row.items() if not any(part in name for part in CLOCKED)}
            for row in csv.DictReader(file)
        ]


@pytest.mark.long(minutes=4)
def test_the_quickstart_through_slurm_gives_the_table_of_this_machine(cluster: LocalCluster, tmp_path: Path) -> None:
    here, there = Shell(tmp_path / "here"), Shell(tmp_path / "there")
    for shell in (here, there):
        shell.folder.mkdir()
    there("sweep", *LINE, *SLURM, "cluster.max_running=2")
    assert eventually(all_done(there.store), 1200, 1.0), there("status", "quickstart")
    assert "0 jobs submitted" in there("sweep", *LINE, *SLURM)
    assert set(attempts(there.store).values()) == {1}
    there("report", "quickstart")
    out, err = here.start("sweep", *LINE, "cluster.slots=2").communicate(timeout=1200)
    assert "done" in out, err
    wanted = rows(here.folder / "reports" / "quickstart" / "results.csv")
    assert len(wanted) == 4, "two budgets and the baselines"
    assert all(row["quality"] and row["accuracy"] for row in wanted)
    assert rows(there.folder / "reports" / "quickstart" / "results.csv") == wanted
