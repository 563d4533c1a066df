"""The driver of a search: asks for trials while there is room and budget, runs their steps, and tells what came out.

It is the same on this machine and on SLURM, and no barrier is in it: a trial is asked for as soon as another one has
left room, by what is known then. All that it decides is in files before anything is dispatched (the journal, then the
frozen plan), so a driver that is killed anywhere goes on from them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from sweeps.dispatch.local_loop import MAX_ROUNDS
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan
from sweeps.planning.reconcile import Graph, States, blockers, read_states_while_running
from sweeps.planning.stopping_config import StoppingConfig
from sweeps.planning.variant import Variant
from sweeps.search.course import Course, Look, course
from sweeps.search.objectives import Objectives, front, has_failed
from sweeps.search.spent import spent_by
from sweeps.search.trials import Trial, Values
from sweeps.steps.registry import kind_of
from sweeps.steps.step import Step
from sweeps.store.errors import StoreError
from sweeps.store.states import NOTHING_LEFT, StepState
from sweeps.store.store import SavedSweep, Store

LOOK_SECONDS, LOOK_SHARE = 0.5, 0.2
"""Between two looks at the store, at least; and the share of the driver's time that looks may take."""
ENDED = (*NOTHING_LEFT, StepState.FAILED)


class Source(Protocol):
    """Where trials come from: a sampler, or the list of a sweep's points."""

    trials: list[Trial]
    impossible: str
    """Why the last point that was refused is none; empty where none was."""

    @property
    def exhausted(self) -> bool:
        """Whether it has no more than `trials`, as far as it knows."""

    def ask(self, values: Values) -> Trial | None: ...

    def plan(self) -> Plan: ...


class Jobs(Protocol):
    """Where the steps are run."""

    def begin(self, steps: Sequence[Step], saved: SavedSweep) -> set[str]:
        """Queue steps, parents before children, beside those that run; the ids of those that were taken, which a full
        queue does not do of all. Raises UserError."""

    def live(self) -> set[str]:
        """Ids of the steps that queued or running jobs are to run."""

    def ended_by_hand(self) -> set[str]:
        """Ids of the steps whose jobs a person has ended since the driver began: they are not queued again."""

    def poll(self) -> None:
        """Let it do its work; called a few times per second."""


Freeze = Callable[[Plan], SavedSweep]


@dataclass(frozen=True)
class Front:
    """A trial of the front so far, or one that left it."""

    trial: int
    label: str
    values: list[float]


class Driver:
    """One look after another: `look` decides and dispatches, and says whether there is more to come."""

    def __init__(
        self,
        source: Source,
        objectives: Objectives,
        store: Store,
        jobs: Jobs,
        freeze: Freeze,
        *,
        concurrent: int,
        stopping: StoppingConfig,
    ) -> None:
        """concurrent: trials at a time."""
        self.source, self.objectives = source, objectives
        self._store, self._jobs, self._freeze = store, jobs, freeze
        self._concurrent, self._stopping = concurrent, stopping
        self._since = ""
        """When the sweep was first planned."""
        self._course = Course()
        self._plan: Plan | None = None
        self._frozen: list[SavedSweep] = []
        self._states: States = {}
        self._tries: Counter[str] = Counter()
        self.values: dict[int, tuple[float, ...] | None] = {}
        self._settled: set[int] = set()
        """Trials whose values stay as they are."""
        self.no_more = ""
        """Why no more trials are asked for, in words; empty as long as some are."""

    @property
    def graph(self) -> Graph:
        return self._plan.steps if self._plan else {}

    @property
    def saved(self) -> SavedSweep | None:
        """The plan that was frozen last."""
        return self._frozen[-1] if self._frozen else None

    @property
    def running(self) -> list[Trial]:
        return [trial for trial in self.source.trials if self._is_open(trial)]

    def cancel_requested(self) -> bool:
        return any(saved.cancel_requested() for saved in self._frozen)

    def look(self) -> bool:
        """Read what has ended, ask for what there is room for, dispatch; false once nothing is left to do."""
        if self._plan is None and self.source.trials:  # of a driver before this one
            self._new_plan()
        knew = self.no_more
        self._read()
        self._steer()
        if self._ask():
            self._new_plan()
            self._read()
            self._steer()
        todo = self._todo()
        live = self._jobs.live()
        new = [step for step in todo if step.id not in live]
        if new:
            saved = self.saved
            assert saved is not None  # there are steps, so they were frozen
            self._tries.update(self._jobs.begin(new, saved))
        # Where it was found just now that no more trials come, what waits at a rung is still to be decided.
        return bool(new or live or self.running or not knew)

    def counts(self) -> dict[str, int]:
        """How many trials are done, running, waiting at a rung (or to be begun), stopped, or have failed."""
        running = {trial.number for trial in self.running}
        counted = dict.fromkeys(("done", "running", "waiting", "stopped", "failed"), 0)
        for trial in self.source.trials:
            failed = trial.number in self.values and self.values[trial.number] is None
            state = "failed" if failed else "running" if trial.number in running else self._rest(trial)
            counted[state] += 1
        return counted

    def _rest(self, trial: Trial) -> str:
        last = trial.variants[-1]
        if any(step.id in self._course.stopped for step in last.steps):
            return "stopped"
        return "done" if len(self._wanted(trial)) == len(trial.variants) else "waiting"

    def front(self) -> list[Front]:
        """The trials that no other is at least as good as in everything."""
        known = {trial: values for trial, values in self.values.items() if values is not None}
        labels = self._labels()
        return [Front(each, labels[each], self.objectives.shown(known[each])) for each in front(known)]

    def label(self, trial: int) -> str:
        """What a trial's variant is called in the plan as it is now."""
        return self._labels().get(trial, "")

    def _labels(self) -> dict[int, str]:
        """Trial → the label of its variant, of the longest rung that is done."""
        named = {tuple(step.id for step in v.steps): v.label for v in (self._plan.variants if self._plan else [])}
        return {
            trial.number: named.get(tuple(step.id for step in self._reached(trial).steps), "")
            for trial in self.source.trials
        }

    def _reached(self, trial: Trial) -> Variant:
        """The longest rung whose numbers are known; of none the first."""
        known = [v for v in trial.variants if self.objectives.read(self._store, v) is not None]
        return known[-1] if known else trial.variants[0]

    def _new_plan(self) -> None:
        plan = self.source.plan()
        self._freeze_with(plan, self._course.stopped if self._frozen else stopped_before(self._store, plan.name))

    def _freeze_with(self, plan: Plan, stopped: Mapping[str, str]) -> None:
        """Freeze a plan with the steps of it that are not to be run."""
        stopped = {id: reason for id, reason in stopped.items() if id in plan.steps}
        self._plan = replace(plan, stopped=stopped, driven=True)
        self._frozen.append(self._freeze(self._plan))
        if not self._since:
            self._since = self._store.plans(plan.name)[-1].plan.created

    def _steer(self) -> None:
        """Apply the stopping rule and the budgets to what there is now; the plan says what they stop before anything
        else is dispatched."""
        if self._plan is None:
            return
        own = {tuple(step.id for step in v.steps) for trial in self.source.trials for v in trial.variants}
        others = [v for v in self._plan.variants if tuple(step.id for step in v.steps) not in own]
        variants = [*others, *(v for trial in self.source.trials for v in trial.variants)]
        dispatched = self._jobs.live() | {id for id, tries in self._tries.items() if tries}
        look = Look.at(
            variants,
            self._states,
            dispatched,
            lambda variant: self.objectives.read(self._store, variant),
            self._is_late,
            self._gave_up,
        )
        spent = spent_by(variants, self._states, dispatched, self._store, self._since)
        most = self._stopping.trials
        full = most is not None and len(self.source.trials) >= most
        more = not (self.no_more or full or self.source.exhausted)
        self._course = course(self.source.trials, others, self._stopping, look, spent, self._concurrent, more=more)
        self.no_more = self.no_more or self._course.ended or ""
        if self._course.stopped != self._plan.stopped:
            self._freeze_with(self._plan, self._course.stopped)

    def _read(self) -> None:
        self._states = read_states_while_running(self.graph, self._store)
        blocked = blockers(self.graph, self._states)
        for trial in self.source.trials:
            if trial.number in self._settled:
                continue
            variant = (self._wanted(trial) or trial.variants)[-1]
            if all(step.id in self._states for step in variant.steps) and (
                has_failed(variant, self._states, blocked) or self._gave_up(variant)
            ):
                self.values[trial.number] = None
                self._settled.add(trial.number)
                continue
            if (found := self.objectives.read(self._store, self._reached(trial))) is not None:
                self.values[trial.number] = found
            if not self._is_open(trial) and len(self._wanted(trial)) == len(trial.variants):
                self._settled.add(trial.number)

    def _is_done(self, id: str) -> bool:
        return id in self._states and self._states[id].name is StepState.DONE

    def _gave_up(self, variant: Variant) -> bool:
        """Whether a step was lost or interrupted so often that a person has to look at it."""
        live, by_hand = self._jobs.live(), self._jobs.ended_by_hand()
        return any(
            (self._tries[step.id] >= MAX_ROUNDS or step.id in by_hand)
            and not self._is_done(step.id)
            and step.id not in live
            for step in variant.steps
        )

    def _wanted(self, trial: Trial) -> tuple[Variant, ...]:
        """The rungs of a trial that are to be run."""
        run = {id(variant) for variant in self._course.run}
        return tuple(variant for variant in trial.variants if id(variant) in run)

    def _is_open(self, trial: Trial) -> bool:
        """Whether steps of it are to be run before it leaves room for another."""
        if trial.number in self.values and self.values[trial.number] is None:
            return False
        return any(
            not self._is_done(step.id) for v in self._wanted(trial) for step in v.steps if not self._is_late(step)
        )

    def _is_late(self, step: Step) -> bool:
        """Whether it waits for the search's end: measurements run alone, so each would stop all other trials. They all
        run together at the end, in turns, unless they are what is searched for."""
        needed = "decode_ms" in self.objectives.names
        return kind_of(step.kind).job == "together" and not needed

    def _ask(self) -> list[Trial]:
        """As many new trials as there is room and budget for."""
        new: list[Trial] = []
        most = self._stopping.trials
        while not self.no_more and len(self.running) + len(new) < self._concurrent:
            if most is not None and len(self.source.trials) >= most:
                self.no_more = f"stopping.trials = {most}"
            elif (trial := self.source.ask(self.values)) is None:
                self.no_more = "every point was tried"
            else:
                new.append(trial)
        return new

    def _todo(self) -> list[Step]:
        """Steps to run now, parents first."""
        blocked = blockers(self.graph, self._states)
        wanted = self._wanted_ids()
        by_hand = self._jobs.ended_by_hand()
        late_too = bool(self.no_more) and not self.running
        return [
            step
            for id, step in self.graph.items()
            if id in wanted
            and self._states[id].name not in ENDED
            and id not in blocked
            and self._tries[id] < MAX_ROUNDS
            and id not in by_hand
            and (late_too or not self._is_late(step))
        ]

    def _wanted_ids(self) -> set[str]:
        return {step.id for variant in self._course.run for step in variant.steps} - self._course.stopped.keys()


def stopped_before(store: Store, name: str) -> Mapping[str, str]:
    """What an earlier driver has stopped: it stays so until the first look has found what stops now."""
    with suppress(StoreError):
        if name in store.sweep_names() and (last := store.sweep(name).plan).driven:
            return last.stopped or {}
    return {}


def freeze_as_driven(plan: Plan, store: Store, arguments: list[str]) -> SavedSweep:
    """Freeze a plan whose steps are for a driver to begin. Raises StoreError."""
    stopped = {id: reason for id, reason in stopped_before(store, plan.name).items() if id in plan.steps}
    return freeze(replace(plan, stopped=stopped, driven=True), store, arguments)


def drive(driver: Driver, jobs: Jobs, watch: Callable[[], None], look_seconds: float = LOOK_SECONDS) -> bool:
    """Look until nothing is left to do; false where somebody cancelled the search. `watch` is called a few times per
    second."""
    next_look = 0.0
    while True:
        if driver.cancel_requested():
            return False
        if (started := time.monotonic()) >= next_look:
            if not driver.look():
                return True
            ended = time.monotonic()
            next_look = ended + max(look_seconds, (ended - started) / LOOK_SHARE)
        jobs.poll()
        watch()
        time.sleep(min(0.1, look_seconds))
