"""What W&B costs a sweep, and whether everything arrives: against a server on this machine that can be made to fail.

    python benchmarks/tracking.py arrive     360 runs, 24 at a time, every 20th answer "429, come back later"
    python benchmarks/tracking.py ratio      steps of 30 s: tracking off, online, and online with no server at all
    python benchmarks/tracking.py read       1,000 runs of 200 rows read back through the API, then once more

Steps are acted out (their rows are written at a training's pace); the supervisor's end, the helper processes, the wandb
client and `mlkv sync` are the real ones.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.turns import arguments, circumstances, report
from tests.support.tracked import independent_steps, training
from tests.support.wandb_graphql import ENTITY, HISTORY, StoredRun
from tests.support.wandb_server import WandbServer

RUNS, AT_ONCE, ROWS = 360, 24, 40
STEP_SECONDS = 30.0


def arrive(folder: Path, server: WandbServer) -> dict[str, Any]:
    """As many workers as fit at once, each with its share of the steps."""
    stage = independent_steps(folder, RUNS, mode="online", timeout=60.0)
    refused = server.fail(status=429, retry_after=0.2, every=20, times=10_000)
    steps = list(stage.saved.plan.steps)

    def work(own: list[str]) -> None:
        mirror = stage.mirror()
        for step in own:
            acted = stage.begin(mirror, step)
            acted.log(training(1, ROWS), pause=0.02)
            acted.end()
        mirror.close()

    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(work, [steps[i::AT_ONCE] for i in range(AT_ONCE)]))
    seconds = time.monotonic() - began
    live = sum(len(server.runs[step].history) == ROWS for step in steps if step in server.runs)
    failed, _ = stage.sync()
    whole = sum(len(server.runs[step].history) == ROWS for step in steps if step in server.runs)
    counts = {"runs": RUNS, "at_once": AT_ONCE, "seconds": round(seconds, 1), "refused_429": refused.done}
    return {**counts, "whole_when_the_sweep_ended": live, "whole_after_sync": whole, "sync_failed": failed}


def ratio(folder: Path, server: WandbServer) -> dict[str, Any]:
    """Wall seconds of one worker with one step, from its start to its exit."""

    def seconds(name: str, mode: str) -> float:
        stage = independent_steps(folder / name, 1, mode=mode)
        (step,) = stage.saved.plan.steps
        began = time.monotonic()
        mirror = stage.mirror()
        acted = stage.begin(mirror, step)
        acted.log(training(1, int(STEP_SECONDS * 10)), pause=0.1)
        acted.end()
        mirror.close()
        return time.monotonic() - began

    off, online = seconds("off", "off"), seconds("online", "online")
    server.stop()
    down = seconds("down", "online")
    server.start()
    mended = independent_steps(folder / "down", 1, mode="online").sync()[0] == 0
    times = {"off": round(off, 2), "online": round(online, 2), "server_down": round(down, 2)}
    return {**times, "online_ratio": round(online / off, 3), "down_ratio": round(down / off, 3), "sync_mends": mended}


def read(folder: Path, server: WandbServer) -> dict[str, Any]:
    from sweeps.tracking.read.api import Project

    lines = [json.dumps({"_step": k, "train/global_step": k, "train/loss": 4 + 1 / (k + 1)}) for k in range(200)]
    for i in range(1000):
        run = StoredRun(ENTITY, "mlkv", f"run-{i}", f"id-{i}", state="finished", lines={HISTORY: lines})
        server.backend.runs[ENTITY, "mlkv", run.name] = run
    times = []
    for _ in range(2):
        began = time.monotonic()
        runs = Project(f"{ENTITY}/mlkv", cache=folder).runs()
        times.append(round(time.monotonic() - began, 2))
        assert sum(len(run.rows) for run in runs) == 200_000
    return {"runs": 1000, "rows": 200_000, "seconds": times[0], "again_seconds": times[1]}


MEASURES: dict[str, Callable[[Path, WandbServer], dict[str, Any]]] = {"arrive": arrive, "ratio": ratio, "read": read}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("what", choices=MEASURES)
    given, where = parser.parse_args(), circumstances()
    with tempfile.TemporaryDirectory() as folder, WandbServer() as server:
        os.environ.update(server.environment())
        numbers = MEASURES[given.what](Path(folder), server)
    report("tracking" if given.what == "ratio" else f"tracking-{given.what}", where, numbers, given.save)


if __name__ == "__main__":
    main()
