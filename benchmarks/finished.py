"""Finished sweeps without a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeps.planning.compose import Composer
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.resolve import Resolver
from sweeps.steps.step import Step
from sweeps.store.store import Store
from tests.support.records import MEASURED, record_of

AROUND = 97
"""Steps differ in their scores, which repeat after so many."""


def finished_sweep(root: Path, line: Sequence[str]) -> Plan:
    """The plan of a line, frozen, with every step of it done in a store."""
    store = Store.open(root)
    plan = make_plan(Composer(), Resolver(store), line)
    freeze(plan, store, list(line))
    for number, step in enumerate(plan.steps.values()):
        _finish(store, step, number)
    return plan


def _finish(store: Store, step: Step, number: int) -> None:
    claim = store.step(step.id).claim()
    assert claim
    (claim.attempt.out / "result.json").write_text("{}")
    claim.attempt.finish("done", "", 0)
    record = {**MEASURED, "work": 1.0, "metrics": _metrics(step, number % AROUND), "facts": {}}
    claim.step.publish(claim, record_of(claim, record | {"result_code": store.result_code(step.kind)}))
    claim.release()


def _metrics(step: Step, number: int) -> list[dict[str, Any]]:
    if step.kind == "measure":
        names = {"cache_bytes": 1e6 + number, "cache_bytes_per_token": 1e3 + number, "tokens_per_second": 50.0 + number}
        return [_row(name, value) | {"batch": 8, "context": 128} for name, value in names.items()]
    if step.slice.get("task") == "bits_per_byte":
        return [_row("bits_per_byte", 2.0 + number / 1000), _row("nats_per_token", 3.0 + number / 1000)]
    if step.kind == "evaluate":
        return [_row("acc", 0.4 + number / 1000), _row("acc_norm", 0.5 - number / 1000)]
    return [_row("train_loss", 2.5 + number / 1000)]


def _row(name: str, value: float) -> dict[str, Any]:
    return {"metric": name, "value": value, "stderr": abs(value) / 100, "n": 200}
