"""Which trials go on from a rung: the rule by itself, for scores that arrive in any order; and what a plan refuses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.planning.plan import Plan
from sweeps.search.stopping import Decision, RungScore, Verdict, decide, ranked
from sweeps.store.errors import UserError

LENGTHS = (20, 60, 180)
values = st.integers(0, 5).map(float) | st.sampled_from([math.nan, math.inf])
"""Few values, so that many are equal."""


@st.composite
def tables(draw: st.DrawFn) -> list[list[tuple[float, ...]]]:
    """What each trial would score at each rung, by one to three objectives."""
    objectives = draw(st.integers(1, 3))
    score = st.tuples(*[values] * objectives)
    return draw(st.lists(st.lists(score, min_size=3, max_size=3), min_size=1, max_size=12))


class Search:
    """A search of which steps end in an order drawn at random; it begins what the rule says."""

    def __init__(self, table: Sequence[Sequence[tuple[float, ...]]], eta: int, seed: int) -> None:
        self.table, self.eta, self.random = table, eta, random.Random(seed)
        self.coming = list(range(len(table)))
        self.begun: list[tuple[int, int]] = []
        self.scores: list[RungScore] = []
        self.stopped: dict[int, Decision] = {}

    def run(self) -> Search:
        while self.step():
            pass
        return self

    def step(self) -> bool:
        """One trial more, or one score more; then the rule. False where nothing is left."""
        running = [place for place in self.begun if place not in {(s.trial, s.rung) for s in self.scores}]
        if self.coming and (not running or self.random.random() < 0.5):
            self.begun.append((self.coming.pop(0), 0))
        elif running:
            trial, rung = self.random.choice(running)
            self.scores.append(RungScore(trial, rung, self.table[trial][rung]))
        else:
            return False
        for trial, decision in self.decisions().items():
            if decision.verdict is Verdict.GO_ON:
                assert trial not in self.stopped, "what was stopped stays so"
                self.begun.append((trial, 1 + max(rung for other, rung in self.begun if other == trial)))
            elif decision.verdict is Verdict.STOP:
                self.stopped[trial] = decision
        return True

    def decisions(self) -> dict[int, Decision]:
        return decide(self.scores, self.begun, LENGTHS, self.eta, more=bool(self.coming))


@given(tables(), st.integers(2, 4), st.integers(0, 99))
def test_a_search_begins_nothing_twice_and_ends_every_trial(
    table: list[list[tuple[float, ...]]], eta: int, seed: int
) -> None:
    search = Search(table, eta, seed).run()
    assert len(set(search.begun)) == len(search.begun)
    for trial in range(len(table)):
        rungs = [rung for other, rung in search.begun if other == trial]
        assert rungs == list(range(len(rungs))), "a rung continues the one before it"
        assert (len(rungs) == len(LENGTHS)) != (trial in search.stopped), "it is trained to the end, or stopped"


@given(tables(), st.integers(2, 4), st.integers(0, 99))
def test_the_best_of_a_rung_have_gone_on_in_whatever_order_they_came(
    table: list[list[tuple[float, ...]]], eta: int, seed: int
) -> None:
    search = Search(table, eta, seed).run()
    for rung in range(len(LENGTHS) - 1):
        here = [score for score in search.scores if score.rung == rung]
        usable = {score.trial for score in here if score.usable}
        best = [trial for trial in ranked(here) if trial in usable][: max(1, len(here) // eta)]
        assert {(trial, rung + 1) for trial in best} <= set(search.begun)
        assert not {trial for trial, at in search.begun if at == rung + 1} - usable, "what diverged does not go on"


@given(tables(), st.integers(2, 4))
def test_of_scores_that_come_together_one_in_eta_goes_on(table: list[list[tuple[float, ...]]], eta: int) -> None:
    scores = [RungScore(trial, 0, row[0]) for trial, row in enumerate(table)]
    begun = [(score.trial, 0) for score in scores]
    decisions = decide(scores, begun, LENGTHS, eta, more=False)
    on = [trial for trial, each in decisions.items() if each.verdict is Verdict.GO_ON]
    assert len(on) == min(max(1, len(scores) // eta), sum(score.usable for score in scores))
    assert decisions.keys() == set(range(len(table)))
    assert Verdict.WAIT not in {each.verdict for each in decisions.values()}


@given(tables(), st.integers(2, 4), st.integers(0, 99), st.integers(1, 30))
def test_a_decision_knows_no_order_of_arrival(
    table: list[list[tuple[float, ...]]], eta: int, seed: int, steps: int
) -> None:
    search = Search(table, eta, seed)
    while steps and search.step():
        steps -= 1
    before = search.decisions()
    search.random.shuffle(search.scores)
    search.random.shuffle(search.begun)
    assert search.decisions() == before


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_both_ends_of_a_front_come_first_and_what_is_dominated_comes_behind_what_dominates_it(
    points: list[tuple[int, int]],
) -> None:
    scores = [RungScore(trial, 0, tuple(map(float, point))) for trial, point in enumerate(points)]
    order = [points[trial] for trial in ranked(scores)]
    assert order[0][1] == min(y for _, y in points)
    for i, later in enumerate(order):
        assert not any(later != first and later[0] <= first[0] and later[1] <= first[1] for first in order[:i])


def test_a_reason_says_where_a_trial_came_and_how_many_go_on() -> None:
    scores = [RungScore(trial, 0, (float(trial),)) for trial in range(9)]
    decisions = decide(scores, [(trial, 0) for trial in range(9)], LENGTHS, 3, more=False)
    assert decisions[4] == Decision(Verdict.STOP, "5th of 9 after 20 steps: 3 go on")
    waits = decide(scores[:2], [(0, 0), (1, 0)], LENGTHS, 3, more=True)
    assert waits[0] == Decision(Verdict.WAIT, "1st of 2 after 20 steps: 0 go on")
    broken = decide([RungScore(0, 1, (math.nan,))], [(0, 0), (0, 1)], LENGTHS, 3, more=True)
    assert broken == {0: Decision(Verdict.STOP, "no finite score after 60 steps")}
    untrained = decide(scores, [(trial, 0) for trial in range(9)], (0, *LENGTHS), 3, more=False)
    assert untrained[4].reason == "5th of 9 before any training: 3 go on"


CHAIN = ["uptrain.schedule=wsd", "uptrain.decay=0.5", "uptrain.rungs=[2,4]", "stopping=halving"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (["stopping=halving"], "uptrain.rungs = []"),
        ([*CHAIN, "uptrain.rungs=[2]"], "uptrain.rungs = [2]; set two or more"),
        ([*CHAIN, "evaluate.accuracy=[]", "evaluate.axis=null"], "set evaluate.axis"),
        ([*CHAIN, "stopping.eta=1"], "stopping.eta = 1: must be greater than or equal to 2"),
        (["stopping.trials=0"], "stopping.trials = 0"),
        (["stopping.tokens=-1"], "stopping.tokens = -1"),
        (["stopping.gpu_hours=0"], "stopping.gpu_hours = 0"),
        (["stopping.gpu_hours=nan"], "stopping.gpu_hours"),
        (["stopping.tokens=1000", "uptrain.steps=null", "uptrain.epochs=1"], "stopping.tokens = 1000: a training by"),
        (["stopping=none,halving"], "stopping: cannot be swept"),
        (["stopping.rule=asha"], "stopping.rule = asha: must be"),
        (["stopping.budget=3"], "stopping.budget: unknown key"),
    ],
)
def test_what_cannot_be_stopped_is_refused_in_a_line(
    planner: Callable[[Sequence[str]], Plan], tiny: list[str], line: list[str], named: str
) -> None:
    with pytest.raises(UserError) as refused:
        planner([*tiny, *line])
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_rule_and_budgets_are_no_part_of_a_step(planner: Callable[[Sequence[str]], Plan], tiny: list[str]) -> None:
    plain = planner([*tiny, *CHAIN[:-1]])
    stopped = planner([*tiny, *CHAIN, "stopping.tokens=1e6", "stopping.trials=3", "stopping.gpu_hours=0.5"])
    assert plain.steps.keys() == stopped.steps.keys()
    assert [each.row() for each in plain.variants] == [each.row() for each in stopped.variants]
