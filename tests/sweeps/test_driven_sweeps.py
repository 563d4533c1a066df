"""An ordinary sweep with a stopping rule: every look by another driver, as if each had been killed after the last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sweeps.dispatch.search_loop import Driver
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan
from sweeps.planning.reconcile import read_states
from sweeps.search.objectives import Objectives
from sweeps.search.points import Points
from sweeps.search.spent import spent_by, tokens_of
from sweeps.steps.step import Step
from sweeps.store.states import NOTHING_LEFT, StepState
from sweeps.store.store import SavedSweep, Store
from tests.support.packs import finish
from tests.support.shell import exit_status

LINE = ["uptrain.schedule=wsd", "uptrain.decay=0.5", "evaluate.tasks=[bits_per_byte]"]
LINE += ["evaluate.accuracy=[]", "evaluate.axis=[bits_per_byte,bits_per_byte]", "measure.batch_sizes=[]"]
LINE += ["sweep.zip=[]", "layout.kv_layers=1,2", "layout.kv_heads=1", "uptrain.lr=1e-3,2e-3", "sweep.baselines=[mha]"]
LINE += ["stopping=halving", "stopping.eta=2"]


class DoneAtOnce:
    """A queue that takes one step at a time, and has done it when it is asked again."""

    def __init__(self, store: Store, runs: Counter[str]) -> None:
        self._store, self._runs = store, runs

    def begin(self, steps: Sequence[Step], saved: SavedSweep) -> set[str]:
        assert not {step.id for step in steps} & (saved.plan.stopped or {}).keys()
        self._runs[steps[0].id] += 1
        finish(self._store, steps[0])
        return {steps[0].id}

    def live(self) -> set[str]:
        return set()

    def ended_by_hand(self) -> set[str]:
        return set()

    def poll(self) -> None: ...


def driver(store: Store, plan: Plan, runs: Counter[str]) -> Driver:
    def frozen(plan: Plan) -> SavedSweep:
        return freeze(plan, store, LINE)

    objectives, config = Objectives.of(plan.config, higher_is_better=False), plan.config
    jobs = DoneAtOnce(store, runs)
    return Driver(Points(plan), objectives, store, jobs, frozen, concurrent=2, stopping=config.stopping)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("rungs", ["2,4", "0,4"])
def test_its_points_are_halved_whoever_drives_and_nothing_runs_twice(
    killed: bool,
    rungs: str,
    planner: Callable[[Sequence[str]], Plan],
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan, store = planner([*tiny, *LINE, f"uptrain.rungs=[{rungs}]"]), Store.open(tmp_path / "store")
    runs = Counter[str]()
    driving = driver(store, plan, runs)
    while driving.look() and driving.look():  # the first look finds out that there are no more points
        driving = driver(store, plan, runs) if killed else driving
    saved = store.sweep("tiny")
    states = read_states(plan.steps, store, saved.plan.stopped)
    assert {state.name for state in states.values()} == set(NOTHING_LEFT)
    assert set(runs.values()) == {1}
    assert runs.keys() == {id for id, state in states.items() if state.name is StepState.DONE}
    longest = [variant for variant in plan.variants if variant.config.uptrain.last_step == 4]
    scores = {variant.evaluate["bits_per_byte"].id: variant.baseline for variant in longest}
    done = [baseline for id, baseline in scores.items() if states[id].name is StepState.DONE]
    assert done.count(None) == 2, "of four points"
    assert done.count("mha") == 2, "the base with each rate is no point, and trained to its end"
    assert saved.plan.driven
    numbers = len(store.plans("tiny"))
    again = driver(store, plan, runs)
    assert [again.look(), again.look()] == [True, False]
    assert len(store.plans("tiny")) == numbers, "the same line again changes nothing"
    assert exit_status("retry", "tiny", "--store", str(store.root)) == 0
    assert "stopped" in capsys.readouterr().out


def test_what_was_done_before_costs_nothing(
    planner: Callable[[Sequence[str]], Plan], tiny: list[str], tmp_path: Path
) -> None:
    plan, store = planner([*tiny, *LINE, "uptrain.rungs=[2,4]"]), Store.open(tmp_path)
    freeze(plan, store, LINE)
    trainings = [step for step in plan.steps.values() if step.kind == "uptrain"]
    finish(store, trainings[0])
    length = plan.config.corpus.sequence_length

    def spent(since: str, dispatched: set[str]) -> tuple[int, int, int]:
        """Tokens, seconds, tokens left."""
        found = spent_by(plan.variants, read_states(plan.steps, store), dispatched, store, since)
        return found.tokens, round(found.gpu_hours * 3600), sum(map(found.tokens_left, trainings))

    each = {step.id: tokens_of(step, length) for step in trainings}
    assert tokens_of(trainings[0], length) == 2 * 4 * length
    assert tokens_of(trainings[1], length) == (4 - 1) * 4 * length, "from the trunk of the shorter one on"
    rest = sum(each.values()) - each[trainings[0].id]
    assert spent("2000-01-01T00:00:00Z", set()) == (each[trainings[0].id], 10, rest)
    assert spent("2100-01-01T00:00:00Z", set()) == (0, 0, rest)
    second = trainings[1].id
    assert spent("2100-01-01T00:00:00Z", {second}) == (each[second], 0, rest - each[second])
