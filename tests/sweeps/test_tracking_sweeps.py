"""Whole sweeps that are mirrored online: requeued, killed, many at once. Steps really run, unless it says otherwise."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from sweeps.steps.registry import axis_of
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store
from sweeps.tracking.runs import variant_id
from tests.support.faults import steps_done
from tests.support.processes import PATIENCE, eventually
from tests.support.shell import Shell
from tests.support.tracked import arrives, independent_steps, positions, training
from tests.support.wandb_server import KEY, WandbServer

pytestmark = pytest.mark.long(minutes=8)

QUICK = ["experiment=quickstart", "layout.kv_layers=6,1", "layout.kv_heads=6,1", "tracking=online"]
QUICK += ["base.steps=80", "base.batch_size=2", "base.save_every=10", "base.log_every=1", "base.threads=1"]
QUICK += ["uptrain.steps=6", "uptrain.log_every=1", "evaluate.limit=8", "measure.batch_sizes=[1]", "cluster.slots=1"]
QUICK += ["measure.contexts=[32]", "measure.new_tokens=4", "tracking.system_seconds=1"]


def base_of(store: Store) -> StepDir:
    saved = store.sweep("quickstart")
    return store.step(next(id for id, planned in saved.plan.steps.items() if planned.kind == "base"))


def reaches(shell: Shell, number: int) -> StepDir:
    """The base step, once it trains and has got so far."""

    def there() -> bool:
        if "quickstart" not in shell.store.sweep_names():
            return False
        state = base_of(shell.store).state()
        return state.name == "RUNNING" and steps_done(state) >= number

    assert eventually(there)
    return base_of(shell.store)


def kill_outright(step: StepDir) -> None:
    """The supervisor with all its children: what computes, the helper, the wandb client's own process."""
    supervisor = psutil.Process(json.loads(step.claim_file.read_text())["pid"])
    for process in [supervisor, *supervisor.children(recursive=True)]:
        process.kill()


def test_quickstart_requeued_twice_and_killed_has_every_row_once(mlkv: Shell, server: WandbServer) -> None:
    for reached in (3, 20):
        launched = mlkv.start("sweep", *QUICK)
        step = reaches(mlkv, reached)
        mlkv("cancel", "quickstart")
        launched.communicate(timeout=PATIENCE)
        assert step.state().name == "INTERRUPTED"
        assert server.runs[step.id].state == "preempted"
    launched = mlkv.start("sweep", *QUICK)
    step = reaches(mlkv, 45)
    kill_outright(step)
    killed = time.time()
    os.killpg(launched.pid, 9)
    launched.communicate()
    time.sleep(1)
    arrived = positions(server, step.id)
    logged = {at: row["_timestamp"] for at, row in step.history(axis_of(step.kind))}
    assert len(logged) >= 45
    assert arrived == sorted(set(arrived)), "no row twice"
    assert not [at for at, when in logged.items() if when < killed - 2.0 and at not in arrived]

    mlkv("sweep", *QUICK)
    assert [attempt.number for attempt in step.attempts()] == [1, 2, 3, 4]
    assert positions(server, step.id) == [at for at, _ in step.history(axis_of(step.kind))] == list(range(1, 81))
    saved = mlkv.store.sweep("quickstart")
    ids = {*saved.plan.steps, *(variant_id("quickstart", row.variant) for row in saved.variants)}
    assert {id for id, run in server.runs.items() if run.state == "finished"} == ids == set(server.runs)
    assert "already there" in mlkv("sync", "quickstart")
    assert any("proc.memory" in key for row in server.runs[step.id].events for key in row)
    mlkv("report", "quickstart")
    mlkv("gather", "quickstart", "source=api", "-o", "cells.csv")
    left = [path for path in mlkv.folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert not left, "the key is in no log, record, spec, report or table"


def test_hundreds_of_runs_of_two_dozen_workers_all_arrive_though_the_server_says_wait(
    server: WandbServer, tmp_path: Path
) -> None:
    """The steps are acted out: nothing trains."""
    stage = independent_steps(tmp_path, 360, mode="online", timeout=60.0)
    waited = server.fail(status=429, retry_after=0.2, every=20, times=10_000)
    steps = list(stage.saved.plan.steps)

    def work(own: list[str]) -> None:
        mirror = stage.mirror()
        for step in own:
            acted = stage.begin(mirror, step)
            acted.log(training(1, 5))
            acted.end()
        mirror.close()

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(work, [steps[i::24] for i in range(24)]))
    failed, done = stage.sync()
    assert not failed, [each for each in done.values() if each.outcome == "failed"][:3]
    assert {tuple(positions(server, step)) for step in steps} == {(1, 2, 3, 4, 5)}
    assert set(server.runs) == set(steps)
    assert waited.done > 20


def test_a_server_that_is_down_for_the_whole_sweep_and_then_gets_everything(
    mlkv: Shell, tiny: list[str], server: WandbServer
) -> None:
    small = ["layout=mqa", "sweep.baselines=[]", "evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]"]
    line = [*tiny, *small, "evaluate.axis=null", "measure.batch_sizes=[]", "tracking=online", "tracking.timeout=3"]
    server.stop()
    printed = mlkv("sweep", *line)
    assert "`mlkv sync tiny` uploads the rest" in printed
    assert "failed" in mlkv("sync", "tiny", status=1)
    server.start()
    assert mlkv("sync", "tiny").splitlines()[-1] == "6 sent"
    arrives(lambda: {run.state for run in server.runs.values()} == {"finished"})
