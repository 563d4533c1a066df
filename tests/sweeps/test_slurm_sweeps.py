"""Sweeps through a real SLURM: submitted, left, steered, and run where there is no network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from slurm.local_cluster.cluster import LocalCluster
from tests.support.faults import HELD, SLURM, SMALL, all_done, attempts, queue_is_empty, states
from tests.support.processes import PATIENCE, eventually
from tests.support.read_back import present
from tests.support.shell import Shell

pytestmark = pytest.mark.slow


def test_a_sweep_is_submitted_left_and_done_as_on_this_machine(
    mlkv: Shell, tiny: list[str], cluster: LocalCluster
) -> None:
    line = [*tiny, "layout.kv_layers=2", "layout.kv_heads=1", "sweep.baselines=[untouched]"]
    assert "5 jobs submitted" in mlkv("sweep", *line, *SLURM)
    assert "waits for" in mlkv("status", "tiny"), "whether or not SLURM has looked at the job yet"
    assert "waits for" in mlkv("why", "tiny", "MQA-2")
    watched = mlkv("status", "tiny", "--watch")
    assert watched.rstrip().endswith("14 done")
    assert "0 jobs submitted" in mlkv("sweep", *line, *SLURM)
    before = attempts(mlkv.store)
    assert "14 done" in mlkv("sweep", *line, "cluster.slots=1")
    assert attempts(mlkv.store) == before, "this machine has nothing left to do"
    assert set(before.values()) == {1}
    environments = [present(attempt.environment()) for step in mlkv.store.steps() for attempt in step.attempts()]
    assert {environment.host for environment in environments} <= {"n1", "n2", "n3", "n4"}
    assert all(environment.job for environment in environments)


@pytest.mark.long(minutes=3)
def test_two_hundred_variants_are_queued_once_and_steered(mlkv: Shell, tiny: list[str], cluster: LocalCluster) -> None:
    rates = ",".join(f"{i}e-6" for i in range(1, 201))
    line = [*tiny, *SMALL, *SLURM, HELD, f"uptrain.lr={rates}"]
    line += ["evaluate.tasks=[bits_per_byte,heldout_cloze,heldout_choice2,heldout_choice4]"]
    assert "202 jobs submitted" in mlkv("sweep", *line)
    assert len(mlkv.store.sweep("tiny").plan.steps) == 1003
    assert "0 jobs submitted" in mlkv("sweep", *line, "cluster.max_running=3")
    shown = cluster.run("scontrol", "show", "job")
    assert shown.count("ArrayTaskThrottle=3") >= 4, "arrays of 64 at most"
    assert "cancelled 1 jobs" in mlkv("cancel", "tiny", "MQA-2 uptrain.lr=1e-06")
    assert "CANCELLED" in mlkv("why", "tiny", "MQA-2 uptrain.lr=1e-06"), "although SLURM keeps no trace of a held task"
    assert "1 jobs submitted" in mlkv("sweep", *line)
    assert "cancelled 202 jobs" in mlkv("cancel", "tiny")
    assert eventually(lambda: queue_is_empty(cluster), every=0.2)


def fake_sbatch(folder: Path, script: str) -> None:
    """An sbatch that does this to its launcher, but answers `--test-only` as the real one."""
    folder.mkdir()
    real = f'[ "$1" != --test-only ] || exec {shutil.which("sbatch")} "$@"'
    (folder / "sbatch").write_text(f"#!/bin/sh\n{real}\n{script}\n")
    (folder / "sbatch").chmod(0o755)


@pytest.mark.parametrize(
    ("script", "left"), [("kill -9 $PPID", 3), ('"$REAL_SBATCH" "$@" > /dev/null; kill -9 $PPID', 2)]
)
def test_a_launcher_killed_around_sbatch_queues_nothing_twice(
    script: str, left: int, mlkv: Shell, tiny: list[str], cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sbatch(mlkv.folder / "bin", script)
    line = ["sweep", *tiny, *SMALL, *SLURM, HELD]
    with monkeypatch.context() as patch:
        patch.setenv("REAL_SBATCH", str(shutil.which("sbatch")))
        patch.setenv("PATH", str(mlkv.folder / "bin"), prepend=":")
        mlkv(*line, status=-9)
    assert f"{left + 2} lost" in mlkv("status", "tiny"), "uptraining carries its conversion and its evaluation"
    assert f"{left} jobs submitted" in mlkv(*line)
    assert len(cluster.run("squeue", "--noheader", "--array", "--format=%i").split()) == 3
    mlkv("cancel", "tiny")
    assert eventually(lambda: queue_is_empty(cluster), every=0.2)


NO_NETWORK = """
import socket

def refuse(self, address):
    if self.family != socket.AF_UNIX:
        raise OSError(f"the test allows no connection to {address}")

socket.socket.connect = refuse
"""


@pytest.mark.long
def test_jobs_need_no_network_and_a_hub_corpus_is_made_where_there_is_one(
    mlkv: Shell, tiny: list[str], text_files: Path, cluster: LocalCluster
) -> None:
    data = mlkv.folder / "data"
    data.mkdir()
    rows = [
        json.dumps({"text": path.read_text()[i : i + 500]}) for path in text_files.iterdir() for i in (0, 500, 1000)
    ]
    (data / "train.jsonl").write_text("\n".join(rows))
    (mlkv.folder / "hook").mkdir()
    (mlkv.folder / "hook" / "sitecustomize.py").write_text(NO_NETWORK)
    setup = f"cluster.setup=['export PYTHONPATH={mlkv.folder}/hook:$PYTHONPATH']"
    line = [*tiny, *SMALL, *SLURM, setup, "cluster.offline=true", "corpus.source=hf", f"corpus.dataset={data}"]
    line = [each for each in line if not each.startswith("corpus.files=")] + ["corpus.files=[]"]
    assert "2 jobs submitted" in mlkv("sweep", *line)
    assert "done" in mlkv("status", "tiny", "--watch")
    assert set(states(mlkv.store)) == {"DONE"}
    made = {step.kind: present(step.record()).host for step in mlkv.store.steps()}
    assert made["corpus"] not in ("n1", "n2", "n3", "n4")
    assert made["uptrain"] in ("n1", "n2", "n3", "n4")


@pytest.mark.long
def test_two_launchers_at_once_run_nothing_twice(disturbed: Shell, tiny: list[str], cluster: LocalCluster) -> None:
    line = ["sweep", *tiny, *SMALL, *SLURM, "uptrain.steps=4"]
    launchers = [disturbed.start(*line), disturbed.start(*line, "name=other")]
    for launcher in launchers:
        out, err = launcher.communicate(timeout=PATIENCE)
        assert launcher.returncode == 0, out + err
    assert eventually(lambda: queue_is_empty(cluster), every=0.2)
    assert all_done(disturbed.store)()
    assert set(attempts(disturbed.store).values()) == {1}
