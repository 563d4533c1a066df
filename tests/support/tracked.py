"""Steps acted out in a real store, with the real supervisor's end, helper process and wandb client behind them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan
from sweeps.store.schema import ExitState, Files, Runtime, Spec
from sweeps.store.stepdir import Claim
from sweeps.store.store import SavedSweep, Store
from sweeps.store.typed_json import as_json
from sweeps.tracking.supervisor import Mirror
from sweeps.tracking.sync import SyncResult, sync_sweep
from sweeps.tracking.target import Target, TrackingConfig
from tests.support.processes import PATIENCE, eventually
from tests.support.records import MEASURED, record_of, save_sweep
from tests.support.wandb_server import WandbServer

Planner = Callable[[Sequence[str]], Plan]


def record(metrics: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    metrics = metrics or [{"metric": "loss", "value": 4.0, "stderr": None, "n": 50}]
    return {**MEASURED, "metrics": metrics, "facts": {"nested": {"list": [1, 2.0, None]}}}


def training(first: int, last: int) -> list[str]:
    """Lines of metrics.jsonl as training logs them."""
    return [
        f'{{"time": {1e9 + k}, "step": {k}, "steps": 99, "loss": {4 + 1 / k}, "tokens": {k}.0}}\n'
        for k in range(first, last + 1)
    ]


@dataclass
class Acted:
    """One attempt of a step, mirrored as a worker would."""

    mirror: Mirror
    claim: Claim

    def log(self, lines: list[str], pause: float = 0.0) -> None:
        with self.claim.attempt.metrics_file.open("a") as file:
            for line in lines:
                file.write(line)
                file.flush()
                time.sleep(pause)

    def end(
        self,
        state: ExitState = "done",
        metrics: list[dict[str, Any]] | None = None,
        inputs: dict[str, Files] | None = None,
    ) -> None:
        if state == "done":
            made = record_of(self.claim, {**record(metrics), "inputs": as_json(inputs or {})})
            assert self.claim.step.publish(self.claim, made)
        self.claim.attempt.finish(state, "asked to stop" if state == "interrupted" else "", 0)
        self.mirror.ended(self.claim)
        self.claim.release()


@dataclass
class Stage:
    """A planned sweep whose steps the test acts out."""

    store: Store
    saved: SavedSweep
    config: TrackingConfig

    def id(self, kind: str) -> str:
        return next(id for id, planned in self.saved.plan.steps.items() if planned.kind == kind)

    def mirror(self) -> Mirror:
        """The supervisor's end, told as a launcher tells it."""
        os.environ.update(Target(self.config, self.saved.name).environment())
        return Mirror(self.store)

    def begin(self, mirror: Mirror, step: str) -> Acted:
        claim = self.store.step(step).claim()
        assert claim is not None
        mirror.began(claim, os.getpid())
        return Acted(mirror, claim)

    def act(
        self, step: str, lines: list[str], state: ExitState = "done", metrics: list[dict[str, Any]] | None = None
    ) -> None:
        """A whole attempt with a worker of its own."""
        mirror = self.mirror()
        acted = self.begin(mirror, step)
        acted.log(lines)
        acted.end(state, metrics)
        mirror.close()

    def sync(self) -> tuple[int, dict[str, SyncResult]]:
        """How many failed, and what became of each run."""
        target = Target(replace(self.config, mode="online"), self.saved.name)
        done = {each.run: each for each in sync_sweep(self.store, target)}
        return sum(each.outcome == "failed" for each in done.values()), done

    def log_of(self, step: str) -> str:
        return "".join(a.tracking_log.read_text() for a in self.store.step(step).attempts() if a.tracking_log.exists())


def make_stage(planner: Planner, arguments: list[str], folder: Path, **config: Any) -> Stage:
    plan = planner(arguments)
    store = Store.open(folder / "store")
    return Stage(
        store, freeze(plan, store, arguments), TrackingConfig(**{"timeout": 60.0, "system_seconds": 0.2, **config})
    )


def independent_steps(folder: Path, steps: int, **config: Any) -> Stage:
    """A sweep of `steps` training steps that depend on nothing."""
    store = Store.open(folder)
    planned = {f"uptrain-{i:016x}": {"kind": "uptrain", "label": f"step {i}", "parents": {}} for i in range(steps)}
    for id in planned:
        store.step(id).write_spec(Spec(kind="uptrain", schema=1, slice={}, parents={}, pinned={}), Runtime())
    return Stage(store, save_sweep(store, "many", {"steps": planned}), TrackingConfig(**config))


def positions(server: WandbServer, run: str) -> list[int]:
    return [row["train/global_step"] for row in server.runs[run].history]


def arrives(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    assert eventually(condition, seconds), "it did not arrive in time"


def use(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
