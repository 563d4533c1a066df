"""The local cluster as a command: up, again up, status, down, and nothing left."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.local_cluster.cluster import LocalCluster
from tests.support.processes import PATIENCE, alive, eventually

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("installed")]


def command(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "slurm.local_cluster", *arguments]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == code, done.stderr
    return done


def test_up_twice_and_down_leaves_nothing(tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "c"))
    cluster = LocalCluster(tmp_path / "c")
    try:
        first = command("up", *state)
        assert first.stdout == f"export SLURM_CONF={cluster.slurm_conf}\n", "as eval wants it"
        identities = {name: cluster.daemon(name).identity() for name in cluster.names()}
        assert command("up", *state).stdout == first.stdout
        assert {name: cluster.daemon(name).identity() for name in cluster.names()} == identities
        assert re.findall(r"^(\S+) +up$", command("status", *state).stdout, re.MULTILINE) == cluster.names()
        assert "take it down first" in command("up", *state, "--set", "MaxArraySize=5", code=2).stderr

        cluster.run("sbatch", f"--output={tmp_path}/out", "--wrap", "echo $$; exec sleep 600")
        step = _first_number(tmp_path / "out")
        cluster.daemon("n1").stop(kill=True)
        cluster.daemon("n2").stop(kill=True)
        assert command("status", *state, code=1).stdout.count("down") == 2
    finally:
        command("down", *state)
    assert not alive(step), "a job ends even if its node's daemon had died"
    assert not any(identity and identity.alive() for identity in identities.values())
    assert command("status", *state, code=1).stdout.count("up") == 0
    command("down", *state)


def test_two_clusters_side_by_side(plain_cluster: LocalCluster, tmp_path: Path) -> None:
    other = LocalCluster(tmp_path / "c")
    before = plain_cluster.status()
    try:
        other.up()
        job = other.run("sbatch", "--parsable", "--hold", "--wrap", "true").strip()
        assert job in other.run("squeue", "-h", "-o", "%i")
        assert job not in plain_cluster.run("squeue", "-h", "-o", "%i")
    finally:
        other.down()
    assert plain_cluster.status() == before


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="too long for a Unix socket"):
        LocalCluster(tmp_path / ("x" * 100)).up()


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slurm.local_cluster.cluster.PROGRAMS", ("sh", "not-a-program"))
    with pytest.raises(RuntimeError, match="not installed: not-a-program"):
        LocalCluster(tmp_path).up()


def _first_number(path: Path) -> int:
    assert eventually(lambda: path.exists() and bool(path.read_text().strip()))
    return int(path.read_text().splitlines()[0])
