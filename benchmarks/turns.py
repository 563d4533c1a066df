"""What benchmarks share: rivals that run in turns, ratios of their times with intervals, and the result's last line.

Machines drift (heat, neighbours, caches), so a ratio of two runs that lie minutes apart measures the minutes. Here
each round runs every rival once, in an order drawn anew, and a ratio is taken within rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LIBRARIES = ("torch", "transformers", "lm_eval", "accelerate", "hydra-core", "submitit")


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios within rounds, and its exact 95 % interval, which assumes nothing of their distribution
    (None below 6 rounds, of which no interval has 95 %)."""

    median: float
    low: float | None
    high: float | None
    rounds: int


def in_turns(
    rivals: Mapping[str, Callable[[], object]],
    rounds: int,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each rival in each round, after `warmups` rounds that do not count."""
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(-warmups, rounds):
        for name in order.sample(sorted(rivals), len(rivals)):
            started = clock()
            rivals[name]()
            if number >= 0:
                seconds[name].append(clock() - started)
    return seconds


def ratio(of: Sequence[float], over: Sequence[float]) -> Ratio:
    """`of` divided by `over`, both one number a round."""
    ratios = [a / b for a, b in zip(of, over, strict=True)]
    if len(ratios) < 6:
        return Ratio(statistics.median(ratios), None, None, len(ratios))
    low, high = stats.quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return Ratio(statistics.median(ratios), float(low), float(high), len(ratios))


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    return parser


def circumstances() -> dict[str, Any]:
    """Where and with what a benchmark runs. To be asked for before it begins, as it has the load that others make."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]).replace(f"{ROOT}/", ""),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            "gpu": _gpu(),
            "load": [round(load, 1) for load in os.getloadavg()],
        },
        "versions": versions,
        "revision": _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
    }


def report(name: str, where: Mapping[str, Any], numbers: Mapping[str, Any], save: bool) -> None:
    """Print a result as the last line, one JSON object; `save` keeps it in results/DATE-NAME.json too."""
    rounded = {key: _rounded(value) for key, value in numbers.items()}
    line = json.dumps({"benchmark": name, **where, **rounded})
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{where['date']}-{name}.json").write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, Ratio):
        return {key: _rounded(part) for key, part in asdict(value).items()}
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _gpu() -> str | None:
    return _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")


def _output(*command: str) -> str | None:
    """A command's first line; None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None
