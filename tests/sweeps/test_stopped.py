"""Steps that a sweep's plan says are not to be run: neither done nor failed, wherever states are shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.data.gather import gather
from analysis.statistics.sources import load
from analysis.tables.paper import make_tables
from sweeps.dispatch.queue_status import with_queue
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan
from sweeps.planning.reconcile import blockers, read_states, to_run
from sweeps.sharing.packing import pack
from sweeps.sharing.unpacking import unpack
from sweeps.store.schema import JobRow
from sweeps.store.states import SEVERITY, StepState, where_stopped, worst
from sweeps.store.store import SavedSweep, Store
from sweeps.tracking.alerts import sweep_alert
from sweeps.tracking.runs import SweepRuns
from tests.support.read_back import present
from tests.support.records import MEASURED, record_of
from tests.support.shell import exit_status

CHAIN = ["uptrain.schedule=wsd", "uptrain.decay=0.5", "uptrain.rungs=[2,4]", "evaluate.tasks=[bits_per_byte]"]
CHAIN += ["evaluate.accuracy=[]", "evaluate.axis=[bits_per_byte,bits_per_byte]", "measure=none", "name=halved"]
CHAIN += ["layout.kv_layers=1", "layout.kv_heads=1", "sweep.baselines=[mha]", "tracking=off"]
REASON = "2nd of 2 after 2 steps: 1 goes on"
STOPPED_VARIANT = "MLKV-1 uptrain.steps=4"


class Halved:
    """A sweep of two layouts and two rungs; one layout was stopped after the first."""

    def __init__(self, root: Path, plan: Plan) -> None:
        self.store = Store.open(root)
        (last,) = (variant for variant in plan.variants if variant.label == STOPPED_VARIANT)
        self.stopped = [present(last.uptrain).id, last.evaluate["bits_per_byte"].id]
        self.plan = replace(plan, stopped=dict.fromkeys(self.stopped, REASON))
        self.saved: SavedSweep = freeze(self.plan, self.store, CHAIN)

    def finish(self, id: str) -> None:
        step = self.store.step(id)
        claim = present(step.claim())
        metrics = [{"metric": "bits_per_byte", "value": 2.0, "stderr": 0.1, "n": 9}] if step.kind == "evaluate" else []
        assert step.publish(claim, record_of(claim, {**MEASURED, "metrics": metrics}))
        claim.attempt.finish("done", "", 0)
        claim.release()

    def states(self) -> dict[str, StepState]:
        return {id: state.name for id, state in read_states(self.plan.steps, self.store, self.plan.stopped).items()}


@pytest.fixture
def halved(tmp_path: Path, planner: Callable[[Sequence[str]], Plan], tiny: list[str]) -> Halved:
    made = Halved(tmp_path / "store", planner([*tiny, *CHAIN]))
    for id in made.plan.steps:
        if id not in made.stopped:
            made.finish(id)
    return made


def printed(capsys: pytest.CaptureFixture[str], store: Store, *words: str, status: int = 0) -> str:
    capsys.readouterr()
    assert exit_status(*words, "--store", str(store.root)) == status
    return capsys.readouterr().out


def test_it_is_less_severe_than_what_is_to_run_and_more_than_done() -> None:
    assert SEVERITY.index(StepState.PENDING) < SEVERITY.index(StepState.STOPPED) < SEVERITY.index(StepState.DONE)
    assert worst([StepState.DONE, StepState.STOPPED]) is StepState.STOPPED
    for state in StepState:
        shown = state if state in (StepState.DONE, StepState.RUNNING) else StepState.STOPPED
        assert where_stopped(state) is shown


def test_what_any_sweep_has_finished_is_done_whatever_a_plan_says(halved: Halved) -> None:
    uptrain, evaluate = halved.stopped
    assert [halved.states()[id] for id in halved.stopped] == [StepState.STOPPED] * 2
    claim = present(halved.store.step(uptrain).claim())
    assert halved.states()[uptrain] is StepState.RUNNING, "another sweep runs it"
    claim.attempt.finish("interrupted", "a disk is full", 4)
    claim.release()
    assert halved.states()[uptrain] is StepState.STOPPED
    halved.finish(uptrain)
    assert halved.states() == {id: StepState.DONE for id in halved.plan.steps if id != evaluate} | {
        evaluate: StepState.STOPPED
    }


def test_no_command_of_the_sweep_runs_it(halved: Halved) -> None:
    graph, states = halved.plan.steps, read_states(halved.plan.steps, halved.store, halved.plan.stopped)
    assert to_run(graph, states) == to_run(graph, states, retry=True) == []
    assert len(to_run(graph, read_states(graph, halved.store))) == 2, "a plan without a rule runs it"
    claim = present(halved.store.step(halved.stopped[0]).claim())
    claim.attempt.finish("failed", "no memory", 1)
    claim.release()
    states = read_states(graph, halved.store, halved.plan.stopped)
    assert (to_run(graph, states, retry=True), blockers(graph, states)) == ([], {})


def test_a_job_that_it_once_had_makes_it_neither_lost_nor_cancelled(halved: Halved) -> None:
    halved.store.note_jobs([JobRow(name="uptrain-12345678.abcdef", steps=halved.stopped, sweep="halved")])
    states = read_states(halved.plan.steps, halved.store, halved.plan.stopped)
    assert with_queue(states, halved.store) == (states, {})


def test_status_and_why_show_it_with_its_reason_and_as_no_failure(
    halved: Halved, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = printed(capsys, halved.store, "status", "halved")
    assert f"{len(halved.plan.steps) - 2} done, 2 stopped\n" in out
    assert out.count(REASON) == 2
    assert "waits for" not in out
    assert f"{len(halved.plan.steps) - 2} done, 2 stopped" in printed(capsys, halved.store, "status")
    assert f"{len(halved.plan.steps) - 2} done, 2 stopped" in printed(capsys, halved.store, "ls")
    status: Any = json.loads(printed(capsys, halved.store, "status", "halved", "--json"))
    assert status["counts"]["STOPPED"] == 2
    why = printed(capsys, halved.store, "why", "halved", STOPPED_VARIANT)
    assert why.count(f"STOPPED {REASON}\n") == 2
    assert "all done" not in why
    shown = json.loads(printed(capsys, halved.store, "show", "halved", STOPPED_VARIANT, "--json"))
    stopped = {each["id"]: each["reason"] for each in shown["steps"] if each["state"] == "STOPPED"}
    assert stopped == dict.fromkeys(halved.stopped, REASON)
    assert "nothing to cancel" in printed(capsys, halved.store, "cancel", "halved")
    assert printed(capsys, halved.store, "retry", "halved").splitlines()[-1].endswith("done, 2 stopped")
    assert exit_status("logs", "halved", "driver", "--store", str(halved.store.root)) == 2
    assert capsys.readouterr().err.startswith("mlkv: halved: no job drives it; ")


def test_tables_have_no_score_of_that_length_and_say_why(halved: Halved) -> None:
    cells = gather(halved.store, "halved")
    own = cells[cells["step"].isin(halved.stopped)]
    assert set(zip(own["state"], own["reason"], strict=True)) == {("STOPPED", REASON)}
    assert own["value"].isna().all()
    (table,) = make_tables(load(halved.store, "halved"), ["benchmarks"]).values()
    rows = {row[0].text: row for row in table.rows}
    score = next(cell for cell in rows[STOPPED_VARIANT] if cell.missing)
    assert (score.text, score.missing) == ("stopped", f"STOPPED: {REASON}")
    assert not [cell for cell in rows["MLKV-1 uptrain.steps=2"] if cell.missing], "its shorter training has one"


def test_wandb_shows_the_variant_as_stopped_and_the_end_of_the_sweep_as_good(halved: Halved) -> None:
    runs = {run.name: run for run in SweepRuns(halved.store, halved.saved).variants()}
    assert (runs[STOPPED_VARIANT].state, runs[STOPPED_VARIANT].finished) == (StepState.STOPPED, True)
    planned = json.loads(runs[STOPPED_VARIANT].config["mlkv"])
    assert planned["stopped"] == dict.fromkeys(halved.stopped, REASON)
    assert "stopped" not in json.loads(runs["MLKV-1 uptrain.steps=2"].config["mlkv"])
    alert = present(sweep_alert(halved.store, halved.saved))
    assert not alert.bad
    assert "2 STOPPED" in alert.text


def test_a_pack_tells_what_was_stopped(halved: Halved, tmp_path: Path) -> None:
    pack(halved.store, halved.saved, tmp_path / "p.mlkv", by="Ada", weights="none")
    other = Store.open(tmp_path / "other")
    unpack(other, tmp_path / "p.mlkv")
    again = other.sweep("halved")
    assert again.plan.stopped == dict.fromkeys(halved.stopped, REASON)
    states = read_states(halved.plan.steps, other, again.plan.stopped)
    assert [states[id].name for id in halved.stopped] == [StepState.STOPPED] * 2
    assert not to_run(halved.plan.steps, states)
