"""What the terminal says of time and size, and which rows of a plan it counts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sweeps.cli import progress
from sweeps.cli.console import make_console
from sweeps.cli.position import Position
from sweeps.cli.progress import Progress, expected_left
from sweeps.cli.view import _inputs, _trained, advice, plan_tables, status_table, summary
from sweeps.planning.plan import Plan
from sweeps.planning.reconcile import Costs
from sweeps.steps.registry import KINDS
from sweeps.steps.step import Step
from sweeps.store.schema import LoggedRow
from sweeps.store.states import StepState
from sweeps.store.stepdir import State
from sweeps.store.store import Store
from tests.support.logged import logged
from tests.support.workers_here import finished, workers_here

COSTS = Costs({"base": 2.0, "evaluate": 0.5})


def step(kind: str, work: float) -> Step:
    return Step(kind, {"work": work}, how={"work": work})


def test_what_is_left_counts_records_progress_and_what_nobody_knows() -> None:
    base, uptrain, evaluate, measure = step("base", 10), step("uptrain", 4), step("evaluate", 8), step("measure", 1)
    running = State(
        StepState.RUNNING,
        progress=LoggedRow(fields={"step": 30, "steps": 40, "tokens": 3000, "tokens_per_second": 100.0}),
    )
    pending, done = State(StepState.PENDING), State(StepState.DONE)
    assert expected_left([base], {base.id: pending}, COSTS, 1) == "20 s left"
    assert expected_left([base], {base.id: running}, COSTS, 1) == "10 s left", "its own pace, not that of records"
    assert expected_left([uptrain], {uptrain.id: pending}, COSTS, 2) == "4 s left", "trains at the base's pace"
    states = {base.id: done, evaluate.id: pending, measure.id: pending}
    assert expected_left([base, evaluate, measure], states, COSTS, 1) == "over 4 s left"
    assert expected_left([measure], states, COSTS, 1) == "time left not known yet"


def test_a_start_is_no_part_of_the_pace(tmp_path: Path) -> None:
    """A tiny base of 6 s trained for half a second; what is a hundred times its work does not take ten minutes."""
    store = Store(tmp_path)
    with workers_here():
        base = finished(store, Step("base", {}), {"wall_seconds": 6.0, "work": 10.0})
    rows = [{"time": 100.0 + step / 20, "step": step, "steps": 10} for step in (2, 6, 10)]
    base.attempts()[-1].metrics_file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    uptrain = step("uptrain", 1000)
    assert Costs.of_store(store).seconds(uptrain) == pytest.approx(5.5 + 50)
    base.attempts()[-1].metrics_file.unlink()
    assert Costs.of_store(store).seconds(uptrain) == pytest.approx(600), "without rows nothing shows what a start took"


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_that_a_kind_logs_can_be_shown(kind: str, tmp_path: Path) -> None:
    """A cell of a measurement has a speed and no number of tokens; a corpus does not know how many steps there are."""
    running = step(kind, 10)
    for row in logged(kind):
        more = LoggedRow(fields={**row.fields, "steps": row.steps and row.steps + 1})
        for shown in (row, more):
            states = {running.id: State(StepState.RUNNING, progress=shown)}
            assert "left" in expected_left([running], states, COSTS, 1)
            console = Console(width=200, record=True, file=StringIO())
            console.print(status_table({running.id: running}, states))
            live = Progress(console, {running.id: running}, Store(tmp_path), slots=1)
            live._states = states
            console.print(live._render())
            assert "None" not in console.export_text()
            assert (f"{shown.step}/{shown.steps}" in Position.of(states[running.id]).text()) == bool(shown.steps)


@pytest.mark.parametrize(
    "fields", [{"step": 0, "steps": 2, "tokens": 0, "tokens_per_second": 1.0}, {"loss": "nan"}, {}]
)
def test_a_row_without_a_pace_of_its_own_is_expected_at_that_of_records(fields: dict[str, Any]) -> None:
    base = step("base", 10)
    states = {base.id: State(StepState.RUNNING, progress=LoggedRow(fields=fields))}
    assert expected_left([base], states, COSTS, 1) == "20 s left"


def test_a_plan_shows_layouts_counts_hours_and_bytes(planner: Callable[[Sequence[str]], Plan]) -> None:
    plan = planner(["layout=mlkv", "name=shown"])
    pending = {id: State(StepState.PENDING) for id in plan.steps}
    states = pending | {id: State(StepState.DONE) for id, step in plan.steps.items() if step.kind == "corpus"}
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(plan_tables(plan, states, COSTS))
    text = console.export_text()
    assert "shown: 3 variants" in text
    assert "1 ─ 1 ─ 1 ─" in text
    assert "5 jobs: at most 5.0 hours by their time limits, 63 MiB of checkpoints" in text
    assert "corpus      1     1    0" in text
    assert "corpus: python_stdlib in rows of 256 tokens" in text
    assert "tokenizer: made of the text, 2,048 tokens at most" in text
    tasks = "bits_per_byte, agreement, heldout_choice4, heldout_choice2, heldout_cloze; at most 200 items of each"
    words = " ".join(text.split())
    assert f"tasks: {tasks}; before uptraining: bits_per_byte memory: base needs 0." in words
    assert re.search(
        r"memory: uptrain needs 0\.\d+ GiB of each device \([\w-]+: weights 0\.013, gradients 0\.013", words
    )


def test_a_plan_counts_no_gpu_where_a_job_has_none(planner: Callable[[Sequence[str]], Plan]) -> None:
    minutes = [f"cluster.resources.{kind}.minutes=60" for kind in ("corpus", "base", "uptrain", "evaluate", "measure")]
    plan = planner(["layout=mlkv", "cluster=slurm", "sweep.baselines=[]", "cluster.resources.corpus.gpus=0", *minutes])
    console = Console(width=120, record=True, file=StringIO())
    console.print(plan_tables(plan, {id: State(StepState.PENDING) for id in plan.steps}, COSTS))
    assert "4 jobs: at most 3.0 GPU-hours and 1.0 hours without a GPU by their time limits" in console.export_text()


def test_brackets_in_a_label_are_text_and_no_style(
    planner: Callable[[Sequence[str]], Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list of files begins with `[/`, which rich takes for the end of a style; `[data` would be one and vanish."""
    for folder in ("words", "data"):
        (tmp_path / folder).mkdir()
        for i in range(8):
            (tmp_path / folder / f"{i}.txt").write_text(f"{folder} {i} " * 500)
    files = f"corpus.files=[{tmp_path}/words/*.txt],[{tmp_path}/data/*.txt]"
    plan = planner(["layout=mqa", "measure=none", "sweep.baselines=[]", "corpus=text_files", files])
    states = {id: State(StepState.PENDING, "[red]why[/]") for id in plan.steps}
    console = make_console()
    console.print(plan_tables(plan, states, COSTS))
    console.print(status_table(dict(list(plan.steps.items())[:1]), states), width=200)
    printed = capsys.readouterr().out
    assert all(variant.label in printed for variant in plan.variants)
    assert {variant.label for variant in plan.variants} == {
        f"MQA-6 corpus.files=[{tmp_path}/{folder}/*.txt]" for folder in ("words", "data")
    }
    assert "[red]why[/]" in printed
    store = Store.open(tmp_path / "store")
    progress = Progress(console, plan.steps, store, slots=1)
    progress._print_change(next(iter(plan.steps.values())), State(StepState.FAILED, "[/tmp/x] is :warning: full"))
    assert "[/tmp/x] is :warning: full" in capsys.readouterr().out


def inputs(plan: Plan) -> list[str]:
    return [str(line) for line in _inputs(plan)]


def test_a_plan_says_what_is_learnt_from_and_what_is_asked(planner: Callable[[Sequence[str]], Plan]) -> None:
    line = ["layout=mqa", "measure=none", "sweep.baselines=[]"]
    tasks = "evaluate.tasks=[bits_per_byte,gsm8k,openllm]"
    [plan, swept] = [planner([*line, *more]) for more in (["evaluate=none", tasks], ["corpus.vocab_size=300,400"])]
    assert inputs(plan)[-1] == "tasks: bits_per_byte, gsm8k (5-shot), openllm (0-shot to 25-shot)"
    assert [line for line in inputs(swept) if line.startswith("tokenizer")] == [
        "tokenizer: made of the text, 300 tokens at most",
        "tokenizer: made of the text, 400 tokens at most",
    ]
    assert inputs(planner([*line, "convert=none", "evaluate=none"])) == []


def test_a_plan_says_how_much_text_a_variant_sees(planner: Callable[[Sequence[str]], Plan]) -> None:
    lengths = [["uptrain.steps=130"], ["uptrain.steps=null", "uptrain.epochs=0.2"], ["uptrain=none"], ["uptrain=cla"]]
    plans = [
        planner(["layout=mqa", "evaluate=none", "measure=none", "sweep.baselines=[]", *length]) for length in lengths
    ]
    assert [_trained(plan.variants[0]) for plan in plans] == ["133 K", "0.2 epochs", "─", "30 B"]


def test_a_summary_names_what_there_is() -> None:
    assert summary({StepState.DONE: 3, StepState.FAILED: 1, StepState.PENDING: 0}) == "3 done, 1 failed"


def test_what_failed_is_said_with_what_runs_it_again() -> None:
    assert advice({StepState.DONE: 3, StepState.INTERRUPTED: 1}, "tiny") == ""
    assert (
        advice({StepState.FAILED: 2}, "tiny")
        == "2 failed: `mlkv retry tiny` runs them again, and the steps that wait for them"
    )


def test_the_live_view_says_once_what_is_damaged_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    damaged, other = step("base", 10), step("uptrain", 10)
    console = Console(width=200, record=True, file=StringIO(), force_terminal=True)
    store = Store(tmp_path)
    with Progress(console, {each.id: each for each in (damaged, other)}, store, slots=1) as live:
        path = store.step(damaged.id).path / "done.json"
        path.parent.mkdir(parents=True)
        path.write_text("{")
        live()
        live()
        monkeypatch.setattr(live, "_render", lambda: 1 / 0)
        live()
    lines = [line.strip() for line in console.export_text().splitlines() if "the live view:" in line]
    assert lines[0].startswith(f"the live view: {path}: is no JSON")
    assert lines[1:] == ["the live view: ZeroDivisionError: division by zero"]
