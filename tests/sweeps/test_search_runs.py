"""Four real searches on one store, one of them killed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from sweeps.store.states import NOTHING_LEFT, StepState
from sweeps.store.store import Store
from tests.support.processes import PATIENCE
from tests.support.shell import Shell

SCORED = ["evaluate.tasks=[bits_per_byte]", "evaluate.axis=[bits_per_byte,bits_per_byte]", "evaluate.accuracy=[]"]
LINE = ["experiment=tiny", *SCORED, "measure.batch_sizes=[]", "layout=kv_budget"]
LR = "uptrain.lr=tag(log,interval(1e-3,1e-2))"


def trials(store: Store, name: str) -> list[int]:
    """Those of the journal, of which none may be there twice."""
    numbers = [row.trial for row in store.journal(name).rows() if row.trial is not None]
    assert len(set(numbers)) == len(numbers)
    return sorted(numbers)


def attempts(store: Store, name: str) -> dict[str, int]:
    """Step → how often it was run to its end."""
    steps = map(store.step, store.sweep(name).plan.steps)
    ended = {step.id: [exit.state for a in step.attempts() if (exit := a.exit())] for step in steps}
    return {id: states.count("done") for id, states in ended.items()}


@pytest.mark.long(minutes=2)
def test_searches_share_a_store_survive_a_kill_and_spend_their_hours(tmp_path: Path, text_files: Path) -> None:
    mlkv = Shell(tmp_path)
    line = [*LINE, f"corpus.files=[{text_files}/*.txt]", "layout.budget=1,2,4", LR]
    mlkv("search", *line, "name=modelled", "search.sampler=gp", "stopping.trials=6", "tracking=offline")
    assert trials(mlkv.store, "modelled") == [1, 2, 3, 4, 5, 6]
    runs = list((tmp_path / "store/sweeps/modelled/wandb").glob("*-variant-*"))
    assert len(runs) >= 6

    printed = mlkv("search", *line, "name=bred", "search.sampler=nsga2", "stopping.trials=3")
    assert "trials: 3 done, 0 running, 0 left of 3" in printed
    assert "front so far" in printed
    shared = mlkv.store.sweep("bred").plan.steps.keys() & mlkv.store.sweep("modelled").plan.steps.keys()
    assert {"corpus", "base"} <= {mlkv.store.step(id).kind for id in shared}
    assert (tmp_path / "reports/bred/index.html").is_file()

    rungs = ["uptrain.rungs=[0,4,8]", "uptrain.steps=null", "uptrain.schedule=wsd", "stopping=halving"]
    halved = ["search", *line, *rungs, "name=halved", "stopping.trials=5", "sweep.baselines=[]"]
    driver = mlkv.start(*halved)
    until = time.monotonic() + PATIENCE
    while len(mlkv.store.journal("halved").rows()) < 3 and driver.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    mlkv(*halved)
    assert trials(mlkv.store, "halved") == [1, 2, 3, 4, 5]
    assert set(attempts(mlkv.store, "halved").values()) <= {0, 1}
    states = json.loads(mlkv("status", "halved", "--json"))["steps"]
    found = {StepState(step["state"]) for step in states}
    assert found == set(NOTHING_LEFT)

    hours = 0.0005
    printed = mlkv("search", *line, "name=timed", f"stopping.gpu_hours={hours}", "search.seed=3", "search.concurrent=1")
    assert f"timed has ended: stopping.gpu_hours = {hours}: " in printed
    before = {id for name in ("modelled", "bred", "halved") for id in mlkv.store.sweep(name).plan.steps}
    own = [id for id in mlkv.store.sweep("timed").plan.steps if id not in before]
    spent = {id: record.device_seconds / 3600 for id in own if (record := mlkv.store.step(id).record())}
    assert sum(spent.values()) >= hours
    last = mlkv.store.journal("timed").rows()[-1]
    assert last.steps
    assert sum(hours for id, hours in spent.items() if id not in last.steps[-1]) < hours, "what runs goes to its end"
