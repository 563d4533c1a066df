"""A kind's schema version rises: the plan says what becomes stale and why, and old sweeps go on being read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mlkv.context import StepFailed
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan
from sweeps.planning.reconcile import replaced, saved_graph
from sweeps.steps.registry import KINDS, outdated
from sweeps.store.store import Store
from sweeps.worker import frozen
from tests.support.rows import replace_row
from tests.support.shell import TEST_CONF, exit_status
from tests.support.workers_here import finished

CHANGE = "the loss leaves out padding"
REASON = f"uptrain of schema 1, now 2: {CHANGE}"
DESCENDANTS = {"uptrain", "evaluate"}


@pytest.fixture
def store(planner: Callable[[Sequence[str]], Plan], tiny: list[str], tmp_path: Path) -> Store:
    """A sweep that was planned and run before the schema rose."""
    plan, store = planner(tiny), Store.open(tmp_path / "store")
    freeze(plan, store, tiny)
    for step in plan.steps.values():
        finished(store, step, {"metrics": [{"metric": "loss", "value": 1.0}] if step.kind == "uptrain" else []})
    return store


@pytest.fixture
def risen(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    row = dataclasses.replace(KINDS["uptrain"], changes=(CHANGE,))
    assert (KINDS["uptrain"].schema, row.schema) == (1, 2)
    replace_row(monkeypatch, KINDS, "uptrain", row)
    return store


def test_a_plan_names_what_becomes_stale_and_why(
    risen: Store, planner: Callable[[Sequence[str]], Plan], tiny: list[str]
) -> None:
    before, graph = saved_graph(risen, risen.sweep("tiny")), planner(tiny).steps
    stale = {id for id in before if id not in graph}
    assert {before[id].kind for id in stale} == DESCENDANTS
    assert {step.kind for id, step in graph.items() if id not in before} == DESCENDANTS
    assert replaced(graph, risen) == dict.fromkeys(stale, REASON)
    assert replaced(planner([*tiny, "uptrain.lr=0.5"]).steps, risen).keys() < stale, "another plan replaces less"


def test_the_line_of_a_plan_says_so(risen: Store, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", "--config-dir", str(TEST_CONF), "--store", str(risen.root), *tiny]
    assert exit_status(*line) == 0
    printed = " ".join(capsys.readouterr().out.split())
    count = sum(step.kind in DESCENDANTS for step in saved_graph(risen, risen.sweep("tiny")).values())
    # All but the evaluations of the base, which is not uptrained.
    untouched = len(outdated(saved_graph(risen, risen.sweep("tiny"))))
    assert untouched < count
    assert f"{untouched} finished steps are stale and run again ({REASON})" in printed


def test_before_it_rises_nothing_is_stale(
    store: Store, planner: Callable[[Sequence[str]], Plan], tiny: list[str]
) -> None:
    assert replaced(planner(tiny).steps, store) == {}
    assert outdated(saved_graph(store, store.sweep("tiny"))) == {}


def test_a_sweep_of_before_is_read_and_marked(risen: Store, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--store", str(risen.root)]
    assert exit_status("status", "tiny", *at) == 0
    status = " ".join(capsys.readouterr().out.split())
    assert "planned under an earlier schema" in status
    assert REASON in status
    assert exit_status("table", "tiny", "losses", "--format", "md", *at) == 0
    assert REASON in capsys.readouterr().out
    assert exit_status("gather", "tiny", *at) == 0
    printed = capsys.readouterr()
    assert "uptrain" in printed.out
    assert REASON in printed.err


def test_a_retry_of_steps_of_before_is_refused_in_one_line(risen: Store, capsys: pytest.CaptureFixture[str]) -> None:
    step = next(id for id, step in saved_graph(risen, risen.sweep("tiny")).items() if step.kind == "uptrain")
    (risen.step(step).path / "done.json").unlink()
    assert exit_status("retry", "tiny", "--store", str(risen.root)) == 2
    error = capsys.readouterr().err
    assert error.startswith("mlkv: 1 steps that are not done were planned under an earlier schema")
    assert REASON in error
    assert "run the sweep's line again" in error
    assert error.count("\n") == 1
    assert len(risen.step(step).attempts()) == 1, "that of before"


def test_a_step_of_before_is_not_run_by_code_that_means_something_else(risen: Store) -> None:
    step = next(step for step in saved_graph(risen, risen.sweep("tiny")).values() if step.kind == "uptrain")
    with pytest.raises(StepFailed, match="was planned under an earlier schema"):
        frozen.check(risen, step.id)


def test_a_version_in_a_file_that_was_edited_is_seen(risen: Store) -> None:
    step = next(step for step in saved_graph(risen, risen.sweep("tiny")).values() if step.kind == "uptrain")
    path = risen.step(step.id).path / "spec.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(StepFailed, match="was edited"):
        frozen.check(risen, step.id)
