"""A small sweep with every oddity, in a store, in W&B's offline files and on a W&B server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sweeps.store.stepdir import Claim
from sweeps.store.store import Store
from sweeps.tracking.sync import sync_sweep
from sweeps.tracking.target import Target, TrackingConfig
from tests.support.filler import Filler
from tests.support.read_back import present
from tests.support.records import record_of
from tests.support.wandb_server import WandbServer


@dataclass(frozen=True)
class Mirrored:
    store: Store
    name: str
    offline: Path
    server: WandbServer
    resumed: str
    """The training step that was requeued twice."""


def play(filler: Filler) -> str:
    """One step resumed (the one returned), one failed, some never begun; numbers whole, missing and not numbers."""
    filler.shared()
    odd = filler.variant("MLKV-3")["steps"]
    interrupt(filler, odd["uptrain"], rows(1, 20))
    interrupt(filler, odd["uptrain"], rows(11, 30))
    filler.train("MHA-36")
    filler.done(odd["convert"], [])
    claim = present(filler.store.step(odd["uptrain"]).claim())
    claim.attempt.metrics_file.write_text(rows(25, 40))
    whole = [{"metric": "loss", "value": 4.0, "stderr": None, "n": 50}, {"metric": "tokens", "value": 1e15, "n": None}]
    publish(claim, whole)
    for task in ("bits_per_byte", "cloze"):
        filler.evaluate("MLKV-3", task)
        filler.evaluate("MHA-36", task)
    filler.evaluate_conversion("MLKV-3", "bits_per_byte", 2.9)
    filler.done(odd["evaluate"]["four_way"], [{"metric": "acc", "value": None, "stderr": None, "n": 0}])
    filler.fail(filler.variant("MQA-6")["steps"]["convert"], "kv_heads = 4 at layer 0")
    filler.measure("MHA-36", failed=(64,))
    return str(odd["uptrain"])


def publish(claim: Claim, metrics: list[dict[str, Any]]) -> None:
    times = {"started": "2025-01-01T00:00:00Z", "finished": "2025-01-01T00:00:30Z", "wall_seconds": 30.0}
    costs = {"device_seconds": 30, "peak_memory_bytes": 2**40, "code": "c0de" * 4, "inputs": {}}
    record = {**times, **costs, "metrics": metrics, "facts": {"deep": {"er": [1, 2.0, None, {"est": True}]}}}
    assert claim.step.publish(claim, record_of(claim, record))
    claim.attempt.finish("done", "", 0)
    claim.release()


def interrupt(filler: Filler, step: str, text: str) -> None:
    claim = present(filler.store.step(step).claim())
    claim.attempt.metrics_file.write_text(text)
    claim.attempt.finish("interrupted", "asked to stop", 0)
    claim.release()


def rows(first: int, last: int) -> str:
    def loss(k: int) -> str:
        return {15: "NaN", 29: "Infinity"}.get(k, "2.0" if k % 2 else str(4 + 1 / k))

    lines = [
        f'{{"time": {1e9 + k}, "step": {k}, "steps": 40, "loss": {loss(k)}, "lr": null}}'
        for k in range(first, last + 1)
    ]
    return "\n".join(lines) + "\n"


def mirror(filler: Filler, server: WandbServer) -> Mirrored:
    resumed = play(filler)
    with patch.dict(os.environ, server.environment()):
        for mode in ("offline", "online"):
            target = Target(TrackingConfig(mode=mode, timeout=20), filler.name)
            done = list(sync_sweep(filler.store, target))
            assert not [each for each in done if each.outcome == "failed"]
    return Mirrored(filler.store, filler.name, filler.store.tracking(filler.name).runs, server, resumed)
