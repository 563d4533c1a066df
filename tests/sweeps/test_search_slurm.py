"""A search on a real SLURM, whose jobs are killed by chance or by a person: no trial is lost and none is repeated."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from contextlib import suppress

import psutil
import pytest

from slurm.jobs import Phase
from slurm.local_cluster.cluster import LocalCluster
from sweeps.dispatch.queue_status import driver_job
from sweeps.store.claim import ClaimFile
from sweeps.store.schema import ClaimHolder
from sweeps.store.states import StepState
from sweeps.store.store import Store
from tests.support.faults import SLURM, queue_is_empty
from tests.support.processes import PATIENCE, eventually
from tests.support.read_back import present
from tests.support.shell import Shell

SCORED = ["evaluate.tasks=[bits_per_byte]", "evaluate.axis=[bits_per_byte,bits_per_byte]", "evaluate.accuracy=[]"]
CHAIN = ["uptrain.schedule=wsd", "uptrain.decay=0.5", "uptrain.rungs=[2,4]", "measure.batch_sizes=[]"]
SPACE = ["sweep.zip=[]", "layout.kv_layers=1,2", "layout.kv_heads=1", "uptrain.lr=1e-3,2e-3,3e-3"]
SPACE += ["sweep.baselines=[]", "search.sampler=random", "search.concurrent=2"]
RULE = ["stopping=halving", "stopping.eta=2", "stopping.trials=4"]
BLOWS = ["driver"] * 2 + ["driver's job"] + ["worker"] * 2 + ["worker's job"] * 2
"""Processes are killed outright, jobs are put back into the queue."""


class Killer:
    """Hits what runs, in an order and at times drawn at random."""

    def __init__(self, store: Store, cluster: LocalCluster, seed: int) -> None:
        self._store, self._cluster, self.random = store, cluster, random.Random(seed)
        self.left = self.random.sample(BLOWS, len(BLOWS))
        self.hits: Counter[str] = Counter()

    def strike(self) -> None:
        """The next blow, where there is something to hit."""
        blow = self.left[0]
        claim, job = self._driver() if blow.startswith("driver") else self._worker()
        if claim is None or job is None:
            return
        with suppress(psutil.NoSuchProcess, RuntimeError):  # it has just ended by itself
            if blow.endswith("job"):
                self._cluster.run("scontrol", "requeue", job)
            else:
                psutil.Process(claim.pid).send_signal(signal.SIGKILL)
            self.hits[self.left.pop(0)] += 1

    def _driver(self) -> tuple[ClaimHolder | None, str | None]:
        claim = ClaimFile(self._store.root / "sweeps" / "tiny" / "search.claim").read()
        job = driver_job("tiny", self._store)
        return (claim, job.id) if job and job.state.phase is Phase.RUNNING else (None, None)

    def _worker(self) -> tuple[ClaimHolder | None, str | None]:
        running = [step for step in self._store.steps() if step.state().name is StepState.RUNNING]
        if not running:
            return None, None
        step = self.random.choice(running)
        environment = present(step.attempt()).environment()
        return step.claims.read(), environment.job if environment else None


@pytest.mark.slow
@pytest.mark.long(minutes=3)
def test_workers_and_the_driver_killed_at_random_lose_no_trial_and_repeat_none(
    mlkv: Shell, tiny: list[str], cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLKV_STALE_SECONDS", "5")
    line = ["search", *tiny, *SCORED, *CHAIN, *SPACE, *RULE, *SLURM]
    assert "drives it" in mlkv(*line)
    assert "drives it already" in mlkv(*line), "two never drive"
    store = mlkv.store
    assert eventually(lambda: store.journal("tiny").exists(), every=0.2)
    killer = Killer(store, cluster, seed=3)
    deadline = time.monotonic() + PATIENCE
    while killer.left and not queue_is_empty(cluster) and time.monotonic() < deadline:
        time.sleep(0.5 + 2 * killer.random.random())
        killer.strike()
    while time.monotonic() < deadline and not queue_is_empty(cluster):
        time.sleep(0.5)
    while time.monotonic() < deadline and "pending" in mlkv("status", "tiny").splitlines()[-2]:
        mlkv(*line)
        assert eventually(lambda: queue_is_empty(cluster), every=0.5)
    assert len(killer.left) <= 2, killer.left
    check(store, killer.hits)
    assert "driver: " not in mlkv("status", "tiny")


@pytest.mark.slow
@pytest.mark.long(minutes=1.5)
def test_a_job_that_a_person_cancels_is_a_trial_that_failed(
    mlkv: Shell, tiny: list[str], cluster: LocalCluster
) -> None:
    line = [
        "search",
        *tiny,
        *SCORED,
        *SPACE,
        "measure.batch_sizes=[]",
        "uptrain.steps=100",
        "stopping.trials=3",
        *SLURM,
    ]
    mlkv(*line)
    store = mlkv.store

    def training() -> str | None:
        running = [s for s in store.steps() if s.kind == "uptrain" and s.state().name is StepState.RUNNING]
        environment = present(running[0].attempt()).environment() if running else None
        return environment.job if environment else None

    assert eventually(lambda: training() is not None, every=0.1)
    cluster.run("scancel", present(training()))
    assert eventually(lambda: queue_is_empty(cluster), every=0.5)
    printed = mlkv("logs", "tiny", "driver")
    assert "trials: 2 done, 0 running, 1 failed, 0 left of 3" in printed
    assert [row.trial for row in store.journal("tiny").rows()] == [1, 2, 3]
    mlkv(*line)
    assert eventually(lambda: queue_is_empty(cluster), every=0.5)
    assert "trials: 3 done, 0 running, 0 left of 3" in mlkv("logs", "tiny", "driver"), "a new driver tries it again"
    assert [row.trial for row in store.journal("tiny").rows()] == [1, 2, 3]


def check(store: Store, hits: Counter[str]) -> None:
    """The search is complete: journal, records and attempts say the same, and no work was done without need."""
    rows = store.journal("tiny").rows()
    rungs = {row.trial: row.steps or [] for row in rows if row.trial is not None}
    assert [row.trial for row in rows if row.trial is not None] == [1, 2, 3, 4], "none lost, none chosen twice"
    assert len({str(row.point) for row in rows}) == len(rows)
    saved = store.sweep("tiny")
    states = {id: store.step(id).state().name for id in saved.plan.steps}
    stopped = {id: states[id] for id in saved.plan.stopped or {}}
    assert set(stopped.values()) == {StepState.PENDING}, "what is stopped was never begun"
    assert {states[id] for id in states.keys() - stopped.keys()} == {StepState.DONE}
    done = {trial: sum(all(states[id] is StepState.DONE for id in ids) for ids in of) for trial, of in rungs.items()}
    assert sorted(done.values()) == [1, 1, 2, 2], "one in two goes on"
    again = sum(len(store.step(id).attempts()) - 1 for id in states.keys() - stopped.keys())
    assert again <= hits["worker"] + hits["worker's job"], "a step runs again where it was hit, and nowhere else"
    queued = Counter(id for row in store.noted_jobs() for id in row.steps or () if id.startswith("uptrain-"))
    assert set(queued.values()) == {1}, "a driver that was killed queues nothing a second time"
