"""Seconds until N trivial jobs are queued on SLURM: ours beside hydra-submitit-launcher, each from its process's start.

    eval "$(python -m slurm.local_cluster up)"
    python benchmarks/launch.py [--jobs 200] [--other PYTHON]

PYTHON is an interpreter with hydra-submitit-launcher (an environment of its own: it is no dependency of ours). Jobs
are submitted held, so that running them costs nothing, and cancelled afterwards. Hydra composes a config per job on its
side of the clock; ours for that is timed by benchmarks/plan.py. Ours also checks limits, asks `sbatch --test-only`, and
queues a parent and a child of every job, as a sweep has. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

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
        env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
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


def ours(count: int, folder: Path) -> float:
    return seconds_until_queued([sys.executable, "-c", OURS, str(count)], folder, 2 * count + 1)


def theirs(python: str, count: int, folder: Path) -> float:
    (folder / "app.py").write_text(THEIRS)
    launcher = ["hydra/launcher=submitit_slurm", "+hydra.launcher.additional_parameters={hold: true}"]
    return seconds_until_queued([python, "app.py", "-m", *launcher, f"+i=range(0,{count})"], folder, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--other", metavar="PYTHON")
    arguments = parser.parse_args()
    result: dict[str, object] = {"jobs": arguments.jobs, "cores": os.cpu_count(), "machine": platform.machine()}
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        result["ours_seconds"] = round(ours(arguments.jobs, Path(one)), 2)
        print(f"ours: {2 * arguments.jobs + 1} jobs queued after {result['ours_seconds']} s")
        if arguments.other:
            result["hydra_submitit_launcher_seconds"] = round(theirs(arguments.other, arguments.jobs, Path(two)), 2)
            took = result["hydra_submitit_launcher_seconds"]
            print(f"hydra-submitit-launcher: {arguments.jobs} jobs queued after {took} s")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
