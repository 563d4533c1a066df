"""What of a search, or of a sweep with a rule or a budget, is run now: `stopping` applied to what the store has.

Pure but for what it is given. It is asked anew at each look of the driver, and has no memory of its own: what was begun
is seen in the states of steps, so a driver that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sweeps.planning.reconcile import States, blockers
from sweeps.planning.stopping_config import StoppingConfig
from sweeps.planning.variant import Variant
from sweeps.search.stopping import Decision, Place, RungScore, Verdict, decide
from sweeps.steps.step import Step
from sweeps.store.states import StepState

Objectives = tuple[float, ...]
"""Each the smaller the better."""
INFINITE = float("inf")


class Chain(Protocol):
    """A trial: the variants of its rungs, the shortest first; one where there are no rungs."""

    @property
    def number(self) -> int: ...

    @property
    def variants(self) -> Sequence[Variant]: ...


@dataclass(frozen=True)
class Spent:
    """What the sweep has used of its budgets. tokens_left: of a step, those that it will train on if it is begun."""

    tokens: int
    gpu_hours: float
    tokens_left: Callable[[Step], int]


@dataclass
class Course:
    """run: the variants whose steps are to be run now, with those that are done. stopped: steps that are not to be run
    → the reason. active: the trials of which something is to be run now. waiting: trials that may go on later → why
    they wait. ended: why nothing new is begun."""

    run: list[Variant] = field(default_factory=list)
    stopped: dict[str, str] = field(default_factory=dict)
    active: list[int] = field(default_factory=list)
    waiting: dict[int, str] = field(default_factory=dict)
    ended: str | None = None
    _halted: dict[int, tuple[Variant, str]] = field(default_factory=dict)
    """The variants that are not to be run, by identity."""

    def stop(self, variants: Iterable[Variant], reason: str) -> None:
        self._halted |= {id(variant): (variant, reason) for variant in variants}

    def settle(self, variants: Iterable[Variant]) -> None:
        """Find the steps that are stopped, of all variants."""
        self.stopped = _stopped_steps(self._halted, variants)


@dataclass(frozen=True)
class Look:
    """What the store and the queue say. dispatched: steps of jobs that wait or run. objectives: of a variant; None as
    long as a number is missing."""

    states: States
    dispatched: Collection[str]
    objectives: Callable[[Variant], Objectives | None]
    blocked: Mapping[str, str]
    late: Callable[[Step], bool] = lambda step: False
    """Whether a step waits for the end, and so keeps no trial active."""
    gave_up: Callable[[Variant], bool] = lambda variant: False
    """Whether what a variant needs was lost so often that a person has to look at it."""

    @classmethod
    def at(
        cls,
        variants: Iterable[Variant],
        states: States,
        dispatched: Collection[str],
        objectives: Callable[[Variant], Objectives | None],
        late: Callable[[Step], bool] = lambda step: False,
        gave_up: Callable[[Variant], bool] = lambda variant: False,
    ) -> Look:
        graph = {step.id: step for variant in variants for step in variant.steps}
        return cls(states, dispatched, objectives, blockers(graph, states), late, gave_up)

    def begun(self, variant: Variant) -> bool:
        """Whether what this variant alone has was ever begun: its training, or else its scores."""
        own = [variant.uptrain] if variant.uptrain else [*variant.evaluate.values(), variant.measure]
        return any(
            self.states[step.id].name is not StepState.PENDING
            or self.states[step.id].attempt > 0
            or step.id in self.dispatched
            for step in own
            if step
        )

    def failed(self, variant: Variant) -> bool:
        stuck = any(self.states[step.id].name is StepState.FAILED or step.id in self.blocked for step in variant.steps)
        return stuck or self.gave_up(variant)

    def score(self, variant: Variant) -> Objectives | None:
        """Infinite where it has failed; None as long as it is not known."""
        return (INFINITE,) if self.failed(variant) else self.objectives(variant)

    def unfinished(self, variant: Variant) -> bool:
        return not self.failed(variant) and any(
            self.states[step.id].name is not StepState.DONE and not self.late(step) for step in variant.steps
        )


def course(
    trials: Sequence[Chain],
    others: Sequence[Variant],
    stopping: StoppingConfig,
    look: Look,
    spent: Spent,
    room: int,
    *,
    more: bool,
) -> Course:
    """What is run now.

    trials: in their order; those behind the first `stopping.trials` are not run. others: variants that no rule stops
    (baselines). room: how many trials are active at a time; those that go on come before those that begin. more:
    whether trials may come that are not among these.
    """
    found, given, most = Course(run=list(others)), trials, stopping.trials
    trials = given[:most]
    for place, trial in enumerate(given[len(trials) :], len(trials) + 1):
        found.stop(trial.variants, f"stopping.trials = {most}: this is point {place} of {len(given)}")
    reached = _reached(trials, look)
    budget = _Budget(stopping, spent, sum(rungs > 0 for rungs in reached.values()))
    coming = [trial for trial in trials if not reached[trial.number]]
    refusals = [budget.refuses_trial(trial) for trial in coming]
    may_begin = (more and not budget.no_more_trials() and not any(refusals)) or None in refusals
    decisions = _decisions(trials, reached, stopping, look, more=may_begin)
    for trial in trials:
        begun = trial.variants[: reached[trial.number]]
        found.run += begun
        if any(map(look.unfinished, begun)):
            found.active.append(trial.number)
    for trial in sorted(trials, key=lambda each: -reached[each.number]):
        if 0 < reached[trial.number] < len(trial.variants):
            _continue(trial, reached[trial.number], decisions.get(trial.number), look, budget, room, found)
    refused: str | None = None
    for trial in coming:
        if reason := budget.refuses_trial(trial):
            found.stop(trial.variants, reason)
            refused = reason
        elif len(found.active) < room:
            budget.take_trial(trial)
            found.run += trial.variants if stopping.rule == "none" else trial.variants[:1]
            found.active.append(trial.number)
    found.ended = budget.no_more_trials() or refused
    found.settle([*others, *(variant for trial in given for variant in trial.variants)])
    return found


def _reached(trials: Sequence[Chain], look: Look) -> dict[int, int]:
    """How many rungs of each trial were begun: those below one that was begun are, too. A model before any training may
    be the first rung of several trials; as long as it is not scored, it is that of one of them alone."""
    found = {
        trial.number: max((i + 1 for i, variant in enumerate(trial.variants) if look.begun(variant)), default=0)
        for trial in trials
    }
    scoring: set[tuple[str, ...]] = set()
    for trial in sorted(trials, key=lambda each: -found[each.number]):
        first = trial.variants[0]
        if found[trial.number] and first.uptrain is None and look.unfinished(first):
            ids = tuple(step.id for step in first.steps)
            if found[trial.number] == 1 and ids in scoring:
                found[trial.number] = 0
            scoring.add(ids)
    return found


def _decisions(
    trials: Sequence[Chain], reached: Mapping[int, int], stopping: StoppingConfig, look: Look, *, more: bool
) -> dict[int, Decision]:
    if stopping.rule == "none":
        return {}
    begun: list[Place] = []
    scores: list[RungScore] = []
    for trial in trials:
        for rung, variant in enumerate(trial.variants[: reached[trial.number]]):
            begun.append((trial.number, rung))
            if (score := look.score(variant)) is not None:
                scores.append(RungScore(trial.number, rung, score))
    longest = max((trial.variants for trial in trials), key=len, default=[])
    lengths = [variant.config.uptrain.last_step or 0 for variant in longest]
    return decide(scores, begun, lengths, stopping.eta, more=more)


def _continue(
    trial: Chain, reached: int, decision: Decision | None, look: Look, budget: _Budget, room: int, found: Course
) -> None:
    """Run the next rung of a trial, or all that are left where there is no rule; stop them; or wait."""
    rest = trial.variants[reached:]
    if budget.stopping.rule == "none":
        decision = Decision(Verdict.GO_ON, "")
    elif any(look.failed(variant) for variant in trial.variants[:reached]):
        decision = Decision(Verdict.STOP, "a step of its shorter training failed")
    if decision is None:  # the rung that was begun last has no score yet
        if spent := budget.hours_spent():
            found.stop(rest, spent)
        return
    following = rest if budget.stopping.rule == "none" else rest[:1]
    if decision.verdict is Verdict.STOP:
        found.stop(rest, decision.reason)
    elif refusal := budget.hours_spent() or (
        budget.refuses_tokens(following) if decision.verdict is Verdict.GO_ON else None
    ):
        found.stop(rest, refusal)
    elif decision.verdict is Verdict.GO_ON and (trial.number in found.active or len(found.active) < room):
        budget.take(following)
        found.run += following
        if trial.number not in found.active:
            found.active.append(trial.number)
    else:
        found.waiting[trial.number] = decision.reason


def _stopped_steps(halted: Mapping[int, tuple[Variant, str]], variants: Iterable[Variant]) -> dict[str, str]:
    """The steps of variants that were stopped, without those that another variant needs. halted: by identity."""
    needed = {step.id for variant in variants if id(variant) not in halted for step in variant.steps}
    found = {step.id: reason for variant, reason in halted.values() for step in variant.steps}
    return {id: reason for id, reason in found.items() if id not in needed}


class _Budget:
    """What is left of the budgets while a look is worked through."""

    def __init__(self, stopping: StoppingConfig, spent: Spent, trials: int) -> None:
        self.stopping, self._spent, self._trials, self._tokens = stopping, spent, trials, spent.tokens

    def no_more_trials(self) -> str | None:
        most = self.stopping.trials
        if most is not None and self._trials >= most:
            return f"stopping.trials = {most}: {self._trials} were begun"
        return self.hours_spent()

    def hours_spent(self) -> str | None:
        most = self.stopping.gpu_hours
        if most is not None and self._spent.gpu_hours >= most:
            return f"stopping.gpu_hours = {most:g}: {self._spent.gpu_hours:.3g} are spent"
        return None

    def refuses_tokens(self, variants: Iterable[Variant]) -> str | None:
        most, wanted = self.stopping.tokens, self._wanted(variants)
        if most is None or self._tokens + wanted <= most:
            return None
        return f"stopping.tokens = {most:,}: {self._tokens:,} are used, and this takes {wanted:,}"

    def refuses_trial(self, trial: Chain) -> str | None:
        return self.no_more_trials() or self.refuses_tokens(self._first(trial))

    def take_trial(self, trial: Chain) -> None:
        self._trials += 1
        self.take(self._first(trial))

    def take(self, variants: Iterable[Variant]) -> None:
        self._tokens += self._wanted(variants)

    def _first(self, trial: Chain) -> Sequence[Variant]:
        return trial.variants if self.stopping.rule == "none" else trial.variants[:1]

    def _wanted(self, variants: Iterable[Variant]) -> int:
        trainings = {step.id: step for variant in variants for step in trainings_of(variant)}
        return sum(map(self._spent.tokens_left, trainings.values()))


def trainings_of(variant: Variant) -> list[Step]:
    """Its uptraining, behind those that this continues."""
    return [*variant.earlier, *([variant.uptrain] if variant.uptrain else [])]
