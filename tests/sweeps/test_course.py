"""A rule and budgets applied to a real plan, whose steps end in an order drawn at random; nothing is computed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeps.planning.plan import Plan
from sweeps.planning.stopping_config import StoppingConfig
from sweeps.planning.variant import Variant
from sweeps.search.course import Course, Look, Spent, course
from sweeps.search.points import listed
from sweeps.search.spent import tokens_of
from sweeps.search.trials import Trial
from sweeps.steps.step import Step
from sweeps.store.states import StepState
from sweeps.store.stepdir import State

LINE = ["uptrain.schedule=wsd", "uptrain.decay=0.5", "evaluate.tasks=[bits_per_byte]"]
LINE += ["evaluate.accuracy=[]", "evaluate.axis=[bits_per_byte,bits_per_byte]", "measure=none"]
LINE += ["layout.kv_layers=1,2", "layout.kv_heads=1,2", "uptrain.lr=1e-3,2e-3", "sweep.zip=[]"]


@pytest.fixture(scope="module", params=["2,4,8", "0,4,8"])
def plan(planner: Callable[[Sequence[str]], Plan], text_files: object, request: pytest.FixtureRequest) -> Plan:
    rungs = f"uptrain.rungs=[{request.param}]"
    return planner(["experiment=tiny", f"corpus.files=[{text_files}/*.txt]", rungs, *LINE])


def first_step(trial: Trial) -> str:
    """What its first rung alone has: a training, or the score of a model that is not trained."""
    first = trial.variants[0]
    return (first.uptrain or first.evaluate["bits_per_byte"]).id


class Store:
    """What a driver would see, and what it begins."""

    def __init__(self, plan: Plan, stopping: StoppingConfig, seed: int, slots: int) -> None:
        self.plan, self.stopping, self.slots = plan, stopping, slots
        self.random = random.Random(seed)
        self.trials = listed(plan.variants)
        self.others = [variant for variant in plan.variants if variant.baseline]
        self.states = {id: State(StepState.PENDING) for id in plan.steps}
        self.begun: list[str] = []
        lengths = {step.id: v.config.corpus.sequence_length for v in plan.variants for step in v.steps}
        self.tokens = {
            id: tokens_of(step, lengths[id]) if step.kind == "uptrain" else 0 for id, step in plan.steps.items()
        }
        self.values = {id: (float(self.random.randrange(3)), self.random.random()) for id in plan.steps}

    def objectives(self, variant: Variant) -> tuple[float, ...] | None:
        id = variant.evaluate["bits_per_byte"].id
        return self.values[id] if self.states[id].name is StepState.DONE else None

    def left(self, step: Step) -> int:
        return 0 if step.id in self.begun else self.tokens[step.id]

    def course(self) -> Course:
        look = Look.at(self.plan.variants, self.states, set(self.begun), self.objectives)
        hours = sum(self.states[id].name is StepState.DONE for id in self.begun) / 10
        spent = Spent(sum(self.tokens[id] for id in self.begun), hours, self.left)
        return course(self.trials, self.others, self.stopping, look, spent, self.slots, more=False)

    def run(self, failing: float) -> Course:
        """Begin what is to be run, end some of it, look again; until nothing is left."""
        while True:
            now = self.course()
            wanted = {step.id for variant in now.run for step in variant.steps}
            assert not wanted & now.stopped.keys(), "nothing is both run and stopped"
            assert not set(self.begun) & now.stopped.keys(), "what was begun goes to its end"
            assert len(now.active) <= self.slots
            failed = {id for id, state in self.states.items() if state.name is StepState.FAILED}
            ready = [
                step
                for id, step in self.plan.steps.items()
                if id in wanted and self.states[id].name is StepState.PENDING and not self._below(step, failed)
            ]
            if not ready:
                return now
            self.begun += [step.id for step in ready if step.id not in self.begun]
            for step in ready[: self.random.randint(1, len(ready))]:
                bad = step.kind == "uptrain" and self.random.random() < failing
                self.states[step.id] = State(StepState.FAILED if bad else StepState.DONE, attempt=1)

    def _below(self, step: Step, failed: set[str]) -> bool:
        return any(id in failed or self._below(self.plan.steps[id], failed) for id in step.parents.values())


stoppings = st.builds(
    StoppingConfig,
    rule=st.sampled_from(["none", "halving"]),
    eta=st.integers(2, 4),
    trials=st.none() | st.integers(1, 9),
    tokens=st.none() | st.integers(1, 200_000),
    gpu_hours=st.none() | st.floats(0.1, 5),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(stopping=stoppings, seed=st.integers(0, 99), slots=st.integers(1, 4), failing=st.sampled_from([0, 0.2]))
def test_every_step_is_done_stopped_or_failed_and_no_budget_is_exceeded(
    plan: Plan, stopping: StoppingConfig, seed: int, slots: int, failing: float
) -> None:
    store = Store(plan, stopping, seed, slots)
    end = store.run(failing)
    failed = {id for id, state in store.states.items() if state.name is StepState.FAILED}
    for id, step in plan.steps.items():
        done = store.states[id].name is StepState.DONE
        assert done or id in end.stopped or id in failed or store._below(step, failed), (step.label, end.waiting)
        if id in end.stopped:
            children = [child.id for child in plan.steps.values() if id in child.parents.values()]
            assert set(children) <= end.stopped.keys(), "what is below a stopped step is stopped"
    firsts = [first_step(trial) for trial in store.trials]
    begun = {id for id in firsts if id in store.begun}
    assert stopping.trials is None or len(begun) <= stopping.trials
    own = {step.id for variant in store.others for step in variant.steps}
    spent = sum(store.tokens[id] for id in store.begun if id not in own)
    assert stopping.tokens is None or spent <= stopping.tokens
    if stopping == StoppingConfig(rule=stopping.rule, eta=stopping.eta):
        assert begun == set(firsts)
        assert stopping.rule == "halving" or not end.stopped


def test_an_ordinary_sweeps_points_are_its_layouts_and_rates_with_their_rungs(plan: Plan) -> None:
    trials = listed(plan.variants)
    assert len(trials) == 6, "two layers with two heads each are the base itself"
    assert {len(trial.variants) for trial in trials} == {3}
    assert [v.config.uptrain.last_step for v in trials[0].variants] in ([2, 4, 8], [0, 4, 8])
    untrained = [trial.variants[0] for trial in trials if trial.variants[0].uptrain is None]
    assert len({first.evaluate["bits_per_byte"].id for first in untrained}) == len(untrained) / 2, "of both rates"
    assert len(set(map(id, untrained))) == len(untrained), "one may be stopped without the other"
