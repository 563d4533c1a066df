"""What the terminal says of time and size, and which rows of a plan it counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from sweeps.cli.view import advice, expected_left, plan_tables, summary
from sweeps.planning.plan import Plan
from sweeps.planning.reconcile import Costs
from sweeps.steps.step import Step
from sweeps.store.stepdir import State

COSTS = Costs({"base": 2.0, "evaluate": 0.5})


def step(kind: str, work: float) -> Step:
    return Step(kind, {"work": work}, how={"work": work})


def test_what_is_left_counts_records_progress_and_what_nobody_knows() -> None:
    base, uptrain, evaluate, measure = step("base", 10), step("uptrain", 4), step("evaluate", 8), step("measure", 1)
    running = State("RUNNING", progress={"step": 30, "steps": 40, "tokens": 3000, "tokens_per_second": 100.0})
    pending, done = State("PENDING"), State("DONE")
    assert expected_left([base], {base.id: pending}, COSTS, 1) == "20 s left"
    assert expected_left([base], {base.id: running}, COSTS, 1) == "10 s left", "its own pace, not that of records"
    assert expected_left([uptrain], {uptrain.id: pending}, COSTS, 2) == "4 s left", "trains at the base's pace"
    states = {base.id: done, evaluate.id: pending, measure.id: pending}
    assert expected_left([base, evaluate, measure], states, COSTS, 1) == "over 4 s left"
    assert expected_left([measure], states, COSTS, 1) == "time left not known yet"


def test_a_plan_shows_layouts_counts_hours_and_bytes(planner: Callable[[Sequence[str]], Plan]) -> None:
    plan = planner(["layout=mlkv", "name=shown"])
    states = {id: State("DONE" if step.kind == "corpus" else "PENDING") for id, step in plan.steps.items()}
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(plan_tables(plan, states, COSTS))
    text = console.export_text()
    assert "shown: 3 variants" in text
    assert "1 ─ 1 ─ 1 ─" in text
    assert "5 jobs: at most 5.0 hours by their time limits, 63 MiB of checkpoints" in text
    assert "corpus      1     1    0" in text


def test_a_summary_names_what_there_is() -> None:
    assert summary({"DONE": 3, "FAILED": 1, "PENDING": 0}) == "3 done, 1 failed"


def test_what_failed_is_said_with_what_runs_it_again() -> None:
    assert advice({"DONE": 3, "INTERRUPTED": 1}, "tiny") == ""
    assert advice({"FAILED": 2}, "tiny") == "2 failed: `mlkv retry tiny` runs them again, and what waits for them"
