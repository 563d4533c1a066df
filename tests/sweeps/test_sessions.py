"""Steps that are run in turns: each is claimed, logged and recorded as if it had run by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mlkv.context import Interrupted, MetricRow, Outcome, StepFailed
from mlkv.layout import mha
from mlkv.measure import processor
from mlkv.patterns import make
from mlkv.recipes import MeasureRecipe
from sweeps.planning.reconcile import Costs
from sweeps.steps.kind import Execution, Ran, Session, StepKind
from sweeps.steps.measure import measure_step, session_key
from sweeps.steps.registry import KINDS
from sweeps.steps.step import Step
from sweeps.store.store import Store
from sweeps.worker import child_main
from sweeps.worker.sessions import Sessions
from sweeps.worker.supervisor import DONE, FAILED, INTERRUPTED, Worker
from tests.support.rows import replace_row
from tests.support.tiny import SHAPE
from tests.support.workers_here import know_code, planned, workers_here

STEPS = [Step("corpus", {"n": n, "session": "a"}, label=f"step {n}") for n in range(4)]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(child_main, "_sessions", Sessions())
    with workers_here():
        yield


class Recorded:
    """A kind of step that can run in sessions, and the sessions that there were; a step in `broken` fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sessions: list[list[int]] = []
        self.alone: list[int] = []
        self.broken: set[int] = set()
        session = Session(self.together, lambda step: str(step.slice["session"]))
        replace_row(monkeypatch, KINDS, "corpus", StepKind(self.run, job="together", session=session))

    def run(self, execution: Execution) -> Outcome:
        self.alone.append(execution.step.slice["n"])
        return self.result(execution.step)

    def together(self, execution: Execution, others: Sequence[Step]) -> list[Ran]:
        steps = [execution.step, *others]
        self.sessions.append([step.slice["n"] for step in steps])
        rows = [{"step": 1, "steps": 1, "n": step.slice["n"]} for step in steps]
        failed = [StepFailed("broken") if step.slice["n"] in self.broken else self.result(step) for step in steps]
        return [Ran(result, [row]) for result, row in zip(failed, rows, strict=True)]

    def result(self, step: Step) -> Outcome:
        return Outcome([MetricRow("n", float(step.slice["n"]))], {}, 0.0)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch)


def store_with(root: Path, steps: Sequence[Step]) -> Store:
    for step in steps:
        planned(root, step)
    store = Store(root)
    know_code(store)
    return store


def numbers(store: Store, steps: Sequence[Step]) -> list[float | None]:
    records = [store.step(step.id).record() for step in steps]
    return [record.metrics[0].value if record else None for record in records]


def test_one_session_runs_them_all_and_each_has_its_own_record(tmp_path: Path, recorded: Recorded) -> None:
    store = store_with(tmp_path, STEPS)
    assert Worker(store).run([step.id for step in STEPS]) == DONE
    assert (recorded.sessions, recorded.alone) == ([[0, 1, 2, 3]], [])
    assert numbers(store, STEPS) == [0.0, 1.0, 2.0, 3.0]
    for step in STEPS:
        [attempt] = store.step(step.id).attempts()
        assert [row.fields["n"] for row in store.step(step.id).metrics()] == [step.slice["n"]]
        assert attempt.exit() is not None


def test_steps_of_another_key_and_those_that_are_done_are_left_out(tmp_path: Path, recorded: Recorded) -> None:
    other = Step("corpus", {"n": 9, "session": "b"})
    store = store_with(tmp_path, [*STEPS, other])
    Worker(store).run([STEPS[2].id])
    assert recorded.alone == [2], "a session of one is none"
    order = [STEPS[0], STEPS[1], other, STEPS[2], STEPS[3]]
    assert Worker(store).run([step.id for step in order]) == DONE
    assert recorded.sessions == [[0, 1, 3]]
    assert recorded.alone == [2, 9]


def test_a_step_that_fails_does_not_take_the_others_with_it(
    tmp_path: Path, recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.broken = {0, 2}
    store = store_with(tmp_path, STEPS)
    assert Worker(store).run([step.id for step in STEPS]) == FAILED
    assert numbers(store, STEPS) == [None, 1.0, None, 3.0]
    assert len(recorded.sessions) == 1
    assert capsys.readouterr().err.count("broken") == 2


def test_what_another_worker_finished_meanwhile_is_not_asked_for(
    tmp_path: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with(tmp_path, STEPS)
    real = Recorded.together

    def meanwhile(self: Recorded, execution: Execution, others: Sequence[Step]) -> list[Ran]:
        ran = real(self, execution, others)
        with monkeypatch.context() as patched:
            patched.setattr(child_main, "_sessions", Sessions())
            Worker(store).run([STEPS[1].id])
        return ran

    replace_row(
        monkeypatch,
        KINDS,
        "corpus",
        replace(KINDS["corpus"], session=Session(lambda e, o: meanwhile(recorded, e, o), lambda step: "all")),
    )
    assert Worker(store).run([step.id for step in STEPS]) == DONE
    assert recorded.alone == [1]
    assert numbers(store, STEPS) == [0.0, 1.0, 2.0, 3.0]
    assert len(store.step(STEPS[1].id).attempts()) == 1


def test_an_interrupted_session_is_begun_again(
    tmp_path: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with(tmp_path, STEPS)

    def stopped(execution: Execution, others: Sequence[Step]) -> list[Ran]:
        raise Interrupted("stopped after 3 of 8 runs")

    with monkeypatch.context() as patched:
        session = Session(stopped, lambda step: "all")
        replace_row(patched, KINDS, "corpus", replace(KINDS["corpus"], session=session))
        patched.setattr("sweeps.worker.supervisor.MAX_ATTEMPTS", 1)
        assert Worker(store).run([STEPS[0].id, STEPS[1].id]) in (FAILED, INTERRUPTED)
    assert numbers(store, STEPS) == [None, 1.0, None, None]
    assert Worker(store).run([step.id for step in STEPS]) == DONE
    assert (recorded.sessions, recorded.alone) == ([[0, 2, 3]], [1])


def test_a_process_that_was_told_of_none_runs_a_step_by_itself(tmp_path: Path, recorded: Recorded) -> None:
    store = store_with(tmp_path, STEPS[:1])
    assert Worker(store).run([STEPS[0].id]) == DONE
    assert (recorded.sessions, recorded.alone) == ([], [0])


RECIPE = MeasureRecipe(batch_sizes=(2,), contexts=(8,), new_tokens=2, repeats=2)
LAYOUTS = (mha(2, 2), make("even", 2, 2, 2, 1), make("even", 2, 2, 1, 1))


def measure(layout_number: int, recipe: MeasureRecipe = RECIPE, mlp_width: int = 64) -> Step:
    shape = replace(SHAPE, mlp_width=mlp_width)
    return measure_step(recipe, LAYOUTS[layout_number], shape, "model", {}, f"layout {layout_number}")


def test_variants_of_a_plan_are_measured_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "copied_bytes", lambda device: 2**16)
    steps = [measure(number) for number in range(3)]
    other = measure(0, replace(RECIPE, new_tokens=1))
    store = store_with(tmp_path, [*steps, other])
    assert Worker(store).run([step.id for step in (*steps, other)]) == DONE
    records = [store.step(step.id).record() for step in (*steps, other)]
    found = [record.facts for record in records if record]
    assert [facts["session_variants"] for facts in found] == [3, 3, 3, 1]
    assert len({facts["session_seconds"] for facts in found}) == 2
    walls = [record.wall_seconds for record in records if record]
    assert all(wall > 0.005 for wall in walls), "each has the time that went to it"
    assert sum(walls[1:3]) < found[0]["session_seconds"]
    ratios = [row.value for record in records[:3] if record for row in record.metrics if row.metric == "step_over_mha"]
    assert len(ratios) == 3
    turns = [row.fields for row in store.step(steps[0].id).metrics() if "variant" in row.fields]
    assert {row["variant"] for row in turns} == {1, 2, 3}
    assert (Costs.of_store(store).seconds(steps[1]) or 1.0) > 0


def test_who_can_be_measured_in_one_session() -> None:
    assert session_key(measure(0)) == session_key(measure(1)) == session_key(measure(2, mlp_width=80))
    others = [replace(RECIPE, threads=2), replace(RECIPE, dtype="bf16"), replace(RECIPE, memory_gib=1.0)]
    assert len({session_key(measure(0, recipe)) for recipe in (RECIPE, *others)}) == 4
