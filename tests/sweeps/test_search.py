"""What a search tries next, and that a driver that is killed anywhere loses no trial and repeats none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.dispatch.search_loop import Driver
from sweeps.planning.compose import Composer
from sweeps.planning.freeze import freeze
from sweeps.planning.grammar import Grid, Interval
from sweeps.planning.plan import Plan
from sweeps.planning.resolve import Resolver
from sweeps.planning.search_config import Sampler
from sweeps.planning.stopping_config import StoppingConfig
from sweeps.search.objectives import Objectives, front
from sweeps.search.space import Point, Space
from sweeps.search.study import Observation, Study
from sweeps.search.trials import Search
from sweeps.steps.step import Step
from sweeps.store.schema import TrialRow
from sweeps.store.store import SavedSweep, Store
from tests.support.packs import finish
from tests.support.shell import TEST_CONF, exit_status

FINITE = Space.of(Grid([], [[(f"a={i}",) for i in range(4)], [("b=x",), ("b=y",)]], []))
ENDLESS = Space.of(Grid([], [[("a=x",), ("a=y",)]], [Interval("lr", 1e-4, 1e-1, log=True)]))
FAST: tuple[Sampler, ...] = ("tpe", "nsga2", "random", "grid")
"""Samplers that answer within milliseconds."""
SCORED = ["evaluate.tasks=[bits_per_byte]", "evaluate.axis=[bits_per_byte,bits_per_byte]", "evaluate.accuracy=[]"]
SPACE = ["layout=kv_budget", "layout.budget=1,2,3,4", "uptrain.lr=1e-3,2e-3"]


def observation(point: Point) -> Observation:
    """Made-up values; some points are impossible."""
    if point[0] == 3:
        return Observation(point, impossible=True)
    return Observation(point, (point[0] + 1, 2 - point[0] + point[-1]))


def ask_each(study: Study, count: int, history: Sequence[Observation] = ()) -> list[Observation]:
    found = list(history)
    while len(found) < count and (point := study.ask(found)) is not None:
        found.append(observation(point))
    return found


@pytest.mark.parametrize("sampler", FAST)
def test_a_finite_space_is_tried_to_its_end_and_nothing_twice(sampler: Sampler) -> None:
    found = ask_each(Study(FINITE, sampler, 0, 2), 99)
    assert sorted(each.point for each in found) == sorted(FINITE.points())


@pytest.mark.parametrize("sampler", FAST[:3])
@given(seed=st.integers(0, 99), cut=st.integers(0, 11), open_ones=st.sets(st.integers(0, 11), max_size=3))
@settings(max_examples=3)
def test_the_same_history_leads_to_the_same_point(sampler: Sampler, seed: int, cut: int, open_ones: set[int]) -> None:
    whole = ask_each(Study(ENDLESS, sampler, seed, 2), 12)
    assert ask_each(Study(ENDLESS, sampler, seed, 2), 12, whole[:cut]) == whole
    running = [Observation(each.point) if i in open_ones else each for i, each in enumerate(whole)]
    study = Study(ENDLESS, sampler, seed, 2)
    assert study.ask(running) == study.ask(running) is not None


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_sampler_learns_from_what_it_is_told(sampler: Sampler) -> None:
    """Where the first dimension is all that counts, a sampler asks for its best end more often than chance does: that
    would be 19.5 on the mean."""
    space = Space.of(Grid([], [[(f"a={i}",) for i in range(40)], [(f"b={i}",) for i in range(40)]], []))
    late: list[float] = []
    for seed in range(3):
        found: list[Observation] = []
        while len(found) < 30:
            point = Study(space, sampler, seed, 1).ask(found)
            assert point is not None
            found.append(Observation(point, (point[0],)))
        late += [each.point[0] for each in found[-10:]]
    assert sum(late) / len(late) < 16


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=9))
def test_what_is_not_on_the_front_is_dominated_by_what_is(points: list[tuple[int, int]]) -> None:
    numbered = {i: (float(a), float(b)) for i, (a, b) in enumerate(points)}
    best = front(numbered)
    for i, own in numbered.items():
        over = [j for j in best if all(a <= b for a, b in zip(numbered[j], own, strict=True))]
        assert over == [i] if i in best else over
    assert len({numbered[i] for i in best}) == len(best)


class Killed(Exception):
    """A driver's process has ended."""


class FakeJobs:
    """Runs a step with made-up results when it is polled; what was queued ends with the driver."""

    def __init__(self, store: Store, runs: Counter[str], calls: Callable[[], None]) -> None:
        self._store, self._runs, self._calls = store, runs, calls
        self._queued: list[Step] = []

    def begin(self, steps: Sequence[Step], saved: SavedSweep) -> set[str]:
        self._calls()
        assert {step.id for step in steps} <= saved.plan.steps.keys()  # what is dispatched is frozen
        self._queued += steps
        self._calls()
        return {step.id for step in steps}

    def ended_by_hand(self) -> set[str]:
        return set()

    def live(self) -> set[str]:
        self._calls()
        return {step.id for step in self._queued}

    def poll(self) -> None:
        while self._queued:
            self._calls()
            step = self._queued[0]
            self._runs[step.id] += 1
            finish(self._store, step)
            self._queued.pop(0)


@pytest.fixture(scope="module")
def line(text_files: Path) -> list[str]:
    return ["experiment=tiny", f"corpus.files=[{text_files}/*.txt]", *SCORED, *SPACE]


def drive(store: Store, line: list[str], calls: Callable[[], None], runs: Counter[str], trials: int = 5) -> Driver:
    """Search on fake jobs until nothing is left to do."""
    composer, resolver = Composer(TEST_CONF), Resolver(store)
    with store.journal("tiny") as journal:
        append = journal.append

        def noted(rows: Sequence[TrialRow]) -> None:
            calls()
            append(rows)
            calls()

        def frozen(plan: Plan) -> SavedSweep:
            calls()
            saved = freeze(plan, store, line)
            calls()
            return saved

        journal.append = noted  # type: ignore[method-assign,assignment]
        search = Search(composer, resolver, line, journal)
        jobs = FakeJobs(store, runs, calls)
        objectives = Objectives.of(search.config, higher_is_better=False)
        driver = Driver(search, objectives, store, jobs, frozen, concurrent=1, stopping=StoppingConfig(trials=trials))
        while driver.look():
            jobs.poll()
    return driver


def bomb(at: int) -> tuple[Callable[[], None], list[int]]:
    calls = [0]

    def call() -> None:
        calls[0] += 1
        if calls[0] == at:
            raise Killed

    return call, calls


def trials_of(driver: Driver) -> list[tuple[int, Any]]:
    return [(trial.number, trial.ids) for trial in driver.source.trials]


@pytest.mark.parametrize("every", [40, pytest.param(1, marks=pytest.mark.long(minutes=2))])
def test_a_driver_killed_at_any_call_loses_no_trial_and_repeats_none(
    tmp_path: Path, line: list[str], every: int
) -> None:
    line = [*line, "measure.batch_sizes=[]", "sweep.baselines=[]"]
    call, calls = bomb(0)
    whole = drive(Store.open(tmp_path / "whole"), line, call, Counter(), trials=3)
    assert len(whole.source.trials) == 3
    assert set(whole.values) == {1, 2, 3}
    for at in range(3 % every + 1, calls[0] + 1, every):
        store, runs = Store.open(tmp_path / str(at)), Counter[str]()
        with pytest.raises(Killed):
            drive(store, line, bomb(at)[0], runs, trials=3)
        again = drive(store, line, bomb(0)[0], runs, trials=3)
        assert trials_of(again) == trials_of(whole)
        assert again.values == whole.values
        assert set(runs.values()) == {1}


def test_a_search_shares_steps_with_a_sweep_and_ends_where_all_was_tried(
    tmp_path: Path, line: list[str], planner: Callable[[Sequence[str]], Plan]
) -> None:
    store, runs = Store.open(tmp_path), Counter[str]()
    driver = drive(store, line, lambda: None, runs, trials=99)
    assert driver.no_more == "every point was tried"
    possible = [argument.replace("1,2,3,4", "1,2,4") for argument in line]
    swept = planner(possible)
    own = {step.id for variant in swept.variants if variant.baseline is None for step in variant.steps}
    assert own <= runs.keys()
    assert set(runs.values()) == {1}
    rows = store.journal("tiny").rows()
    impossible = {str(row.point["layout.budget"]) for row in rows if row.impossible}
    assert impossible == {"3"}  # on two layers of two heads
    saved = store.sweep("tiny")
    assert saved.plan.command is not None
    assert saved.plan.command[:2] == ["mlkv", "search"]
    labels = {row.variant for row in saved.variants}
    assert {row.label for row in driver.front()} <= labels


def test_a_trial_that_fails_is_told_so_and_the_search_goes_on(tmp_path: Path, line: list[str]) -> None:
    store = Store.open(tmp_path)

    class Failing(FakeJobs):
        def poll(self) -> None:
            for step in list(self._queued):
                if step.kind == "uptrain" and not failed:
                    store.step(step.id).note_not_begun("failed", "a loss that is not finite", "")
                    failed.append(step.id)
                    self._queued.remove(step)
                elif all(store.step(parent).record() for parent in step.parents.values()):
                    self._queued.remove(step)
                    finish(store, step)
                else:
                    self._queued.remove(step)

    failed: list[str] = []
    with store.journal("tiny") as journal:
        search = Search(Composer(TEST_CONF), Resolver(store), [*line, "sweep.baselines=[]"], journal)
        jobs = Failing(store, Counter(), lambda: None)
        objectives = Objectives.of(search.config, higher_is_better=False)
        driver = Driver(
            search,
            objectives,
            store,
            jobs,
            lambda plan: freeze(plan, store, line),
            concurrent=1,
            stopping=StoppingConfig(trials=3),
        )
        while driver.look():
            jobs.poll()
    assert [driver.values[number] is None for number in (1, 2, 3)] == [True, False, False]
    assert 1 not in {row.trial for row in driver.front()}


def test_a_longer_line_goes_on_with_the_trials_of_a_shorter_one(tmp_path: Path, line: list[str]) -> None:
    store, runs = Store.open(tmp_path), Counter[str]()
    first = drive(store, line, lambda: None, runs, trials=2)
    wider = [argument.replace("1e-3,2e-3", "5e-4,1e-3,2e-3") for argument in line]
    second = drive(store, wider, lambda: None, runs, trials=4)
    assert trials_of(second)[:2] == trials_of(first)
    assert set(runs.values()) == {1}
    narrower = [argument.replace("1e-3,2e-3", "7e-4") for argument in line]
    third = drive(store, narrower, lambda: None, runs, trials=1)
    assert min(trial.number for trial in third.source.trials) == 5  # numbers are not given twice


def test_a_space_without_any_layout_says_why(
    line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", str(tmp_path / "store"), "--config-dir", str(TEST_CONF)]
    assert exit_status("search", *store, *line, "layout.kv_heads=5") == 2
    [printed] = capsys.readouterr().err.splitlines()
    assert "search: no point is possible: model pocket: layout.budget = " in printed


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["uptrain.lr=interval(1e-4,1e-3)"], "nothing ends it; set stopping.trials=N"),
        (["search.sampler=grid", "uptrain.lr=interval(1e-4,1e-3)"], "sampler = grid: uptrain.lr is an interval"),
        (["search.objectives=[]"], "name at least one of"),
        (["search.objectives=[decode_ms]", "measure.batch_sizes=[]"], "decode_ms needs measurements"),
        (["evaluate.axis=null"], "score needs a main score"),
        (["search.sampler=cma"], "search.sampler = cma: must be "),
        (["uptrain.lr=interval(-1,1)"], "uptrain.lr = -1"),
        (["uptrain.nothing=1,2"], "uptrain.nothing: unknown key"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(
    words: list[str], fault: str, line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", str(tmp_path / "store"), "--config-dir", str(TEST_CONF)]
    assert exit_status("search", *store, *line, *words) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert fault in printed[0]
    assert not list((tmp_path / "store").glob("sweeps/*"))
