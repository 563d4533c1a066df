"""Seconds until N variants are queued on SLURM: ours and hydra-submitit-launcher, each from its process's start.

    python benchmarks/launch.py [--variants 200] [--other PYTHON]

A SLURM of its own is started on this machine (as root, with slurm/local_cluster's packages). hydra-submitit-launcher is
no dependency of ours, so it is installed into an environment of its own; PYTHON is an interpreter that has it. Jobs are
submitted held, so that running them costs nothing, and cancelled afterwards.

- `sweep_seconds`: `mlkv sweep` of N uptrainings with their conversion, their base, their corpus and four evaluations of
  each, from the shell and back: composed, planned, frozen, checked against the site's limits, queued with dependencies.
- `again_seconds`: the same line again, which queues nothing.
- `executor_seconds`: the part that talks to SLURM alone: 2 N + 1 trivial jobs, a parent and a child of each.
- `hydra_submitit_launcher_seconds`: until its N jobs are in the queue; it then waits for them, ours has gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.turns import ROOT, arguments, circumstances, report
from slurm.local_cluster.cluster import LocalCluster

OTHER = "hydra-submitit-launcher==1.2.0"

OURS = """
import sys
from pathlib import Path
from slurm.jobs import Job
from slurm.profile import Profile
from slurm.submit import SlurmExecutor
count = int(sys.argv[1])
jobs = [Job("base", ("true",), kind="base")]
jobs += [Job(f"u{i}", ("true",), after=("base",), kind="uptrain") for i in range(count)]
jobs += [Job(f"e{i}", ("true",), after=(f"u{i}",), kind="evaluate") for i in range(count)]
SlurmExecutor(Path("submissions"), Profile(extra={"hold": True})).submit(jobs)
"""
THEIRS = """
import hydra
@hydra.main(version_base=None)
def main(config): pass
main()
"""


def queued() -> list[str]:
    """The array id of every job in the queue."""
    shown = subprocess.run(["squeue", "-h", "-r", "-o", "%F"], capture_output=True, text=True, check=True)
    return shown.stdout.split()


def seconds_until_queued(argv: Sequence[str], folder: Path, count: int) -> float:
    """From the start of the process until so many more jobs are in the queue; then both are ended."""
    before = queued()
    start = time.perf_counter()
    with (folder / "log").open("wb") as log:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        launcher = subprocess.Popen(argv, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        while len(queued()) - len(before) < count:
            if launcher.poll() or time.perf_counter() - start > 600:
                raise RuntimeError(f"{argv[0]} did not queue {count} jobs\n{(folder / 'log').read_text()}")
            time.sleep(0.02)
        return time.perf_counter() - start
    finally:
        launcher.kill()
        launcher.wait()
        subprocess.run(["scancel", "--quiet", *set(queued()) - set(before)], check=False)


def sweep(count: int, folder: Path) -> dict[str, Any]:
    """Our command, twice."""
    rates = ",".join(f"{i}e-6" for i in range(1, count + 1))
    line = ["sweep", "name=launch", "layout=mqa", "sweep.baselines=[]", "measure=none", f"uptrain.lr={rates}"]
    line += ["cluster=slurm_local", "+cluster.extra={hold:true}"]
    argv = [sys.executable, "-m", "sweeps.cli", *line]
    before, env = queued(), os.environ | {"PYTHONPATH": str(ROOT), "MLKV_STORE": str(folder / "store")}
    try:
        took, submitted = [], []
        for _ in range(2):
            start = time.perf_counter()
            done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=True)
            took.append(round(time.perf_counter() - start, 2))
            submitted.append(done.stdout.splitlines()[-1].split(" jobs submitted")[0])
        steps = len(list((folder / "store" / "steps").glob("*/*")))
    finally:
        subprocess.run(["scancel", "--quiet", *set(queued()) - set(before)], check=False)
    jobs = dict(zip(("sweep_jobs", "again_jobs"), map(int, submitted), strict=True))
    return {"steps": steps, **dict(zip(("sweep_seconds", "again_seconds"), took, strict=True)), **jobs}


def executor(count: int, folder: Path) -> float:
    return seconds_until_queued([sys.executable, "-c", OURS, str(count)], folder, 2 * count + 1)


def theirs(python: str, count: int, folder: Path) -> float:
    (folder / "app.py").write_text(THEIRS)
    launcher = ["hydra/launcher=submitit_slurm", "+hydra.launcher.additional_parameters={hold: true}"]
    return seconds_until_queued([python, "app.py", "-m", *launcher, f"+i=range(0,{count})"], folder, count)


def with_other(folder: Path) -> str:
    """A Python that has hydra-submitit-launcher."""
    python = folder / "other" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder / "other")], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", OTHER], check=True)
    return str(python)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--variants", type=int, default=200)
    parser.add_argument("--other", metavar="PYTHON")
    given, where = parser.parse_args(), circumstances()
    count: int = given.variants
    with tempfile.TemporaryDirectory() as temporary:
        folder, cluster = Path(temporary), LocalCluster(Path(temporary) / "slurm")
        for name in ("sweep", "executor", "theirs"):
            (folder / name).mkdir()
        other = given.other or with_other(folder)
        cluster.up()
        os.environ |= cluster.environment
        try:
            numbers: dict[str, Any] = {"variants": count} | sweep(count, folder / "sweep")
            numbers["executor_seconds"] = executor(count, folder / "executor")
            numbers["hydra_submitit_launcher_seconds"] = theirs(other, count, folder / "theirs")
        finally:
            cluster.down()
    numbers["ratio"] = numbers["sweep_seconds"] / numbers["hydra_submitit_launcher_seconds"]
    report("launch", where, numbers, given.save)


if __name__ == "__main__":
    main()
