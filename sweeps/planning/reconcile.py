"""What a graph of steps still needs: the state of each step in the store, what to run, and how long that will take."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from statistics import median
from typing import NamedTuple

from sweeps.steps.registry import kind_of, outdated
from sweeps.steps.step import Step, canonical, described_by
from sweeps.store.errors import DamagedFileError, UserError
from sweeps.store.result_code import DEFINITION
from sweeps.store.schema import Runtime
from sweeps.store.states import NOTHING_LEFT, StepState, where_stopped
from sweeps.store.stepdir import State, StepDir
from sweeps.store.store import SavedSweep, Store, StoreError

AGAIN = "run the sweep's line again, which writes it anew"
Graph = Mapping[str, Step]
"""Steps by id, parents before children."""
States = dict[str, State]
"""By step id."""
Stopped = Mapping[str, str]
"""Steps that a plan says are not to be run: id → the reason."""


def saved_graph(store: Store, saved: SavedSweep) -> Graph:
    """The steps of a frozen plan as the store has them. Raises StoreError where a spec no longer hashes to its id."""
    graph = {}
    for id, planned in saved.plan.steps.items():
        directory = store.step(id)
        spec = directory.spec()
        if spec is None:
            raise StoreError(f"step {id}: its spec.json is gone from {store.root}; {AGAIN}")
        if (described := described_by(spec)) != id:
            raise StoreError(f"step {id}: spec.json was edited (it now describes {described}); delete it and {AGAIN}")
        graph[id] = Step.of_spec(spec, directory.how(), planned.label)
    return graph


def read_states(graph: Graph, store: Store, stopped: Stopped | None = None) -> States:
    """The state of each step. stopped: those of the plan. Raises DamagedFileError."""
    states = {id: state_of(store.step(id), stopped) for id in graph}
    return _with_inputs(graph, store, states)


def state_of(step: StepDir, stopped: Stopped | None) -> State:
    """The state of a step in a plan that has stopped some. Raises DamagedFileError."""
    return _unless_stopped(step.id, step.state(), stopped)


def _unless_stopped(id: str, state: State, stopped: Stopped | None) -> State:
    if not stopped or id not in stopped or where_stopped(state.name) is state.name:
        return state
    return replace(state, name=where_stopped(state.name), reason=stopped[id])


def read_states_while_running(graph: Graph, store: Store, stopped: Stopped | None = None) -> States:
    """The same for a sweep that runs. A step whose files were damaged meanwhile has failed, with what to do as the
    reason, and the others go on."""
    states = {id: _unless_stopped(id, _state_or_damage(store.step(id)), stopped) for id in graph}
    return _with_inputs(graph, store, states)


def _with_inputs(graph: Graph, store: Store, states: States) -> States:
    """The states of steps where one that was unpacked without its outputs is not done if a step is to be made from
    them."""
    found = dict(states)
    for id in _left_out(graph, store, states):
        found[id] = State(StepState.PENDING, f"{states[id].reason}, without the outputs that are needed: runs here")
    return found


def _left_out(graph: Graph, store: Store, states: States) -> list[str]:
    """Finished steps whose outputs were not unpacked, and are the input of a step that is to run; parents first."""
    again: set[str] = set()
    for id, step in reversed(list(graph.items())):
        if states[id].name not in NOTHING_LEFT or id in again:
            done = {parent for parent in step.parents.values() if states[parent].name is StepState.DONE}
            again |= {parent for parent in done - again if store.step(parent).left_out()}
    return [id for id in graph if id in again]


def withdraw_left_out(graph: Graph, store: Store, stopped: Stopped | None = None) -> None:
    """Put the results of steps beside that `read_states` shows as to be run though they have a record. Raises OSError
    and DamagedFileError."""
    states = {id: _unless_stopped(id, _state_or_damage(store.step(id)), stopped) for id in graph}
    for id in _left_out(graph, store, states):
        store.step(id).put_beside()


def _state_or_damage(step: StepDir) -> State:
    try:
        return step.state()
    except DamagedFileError as error:
        return State(StepState.FAILED, str(error))


def blockers(graph: Graph, states: Mapping[str, State]) -> dict[str, str]:
    """Steps that cannot run, each with the failed step above it."""
    failed: dict[str, str] = {}
    for id, step in graph.items():
        if states[id].name in NOTHING_LEFT:
            continue
        for parent in step.parents.values():
            if states[parent].name is StepState.FAILED:
                failed[id] = parent
            elif parent in failed:
                failed[id] = failed[parent]
    return failed


def to_run(graph: Graph, states: Mapping[str, State], *, retry: bool = False) -> list[Step]:
    """Steps that are not done, parents first; with `retry` also failed ones and what descends from them.

    A step is deterministic: what failed fails again, and the same line is run often. So only a person's `mlkv retry`
    spends the time on it once more. What was interrupted or lost met a fault of its machine and runs again. What was
    stopped is run by no command of its sweep: a line without the rule that stopped it is the way to have it.
    """
    if retry:
        return [step for id, step in graph.items() if states[id].name not in NOTHING_LEFT]
    blocked = blockers(graph, states)
    finished = (*NOTHING_LEFT, StepState.FAILED)
    return [step for id, step in graph.items() if states[id].name not in finished and id not in blocked]


def undecided(graph: Graph, states: Mapping[str, State]) -> dict[str, str]:
    """Of a plan with a driver: the trainings that it has not begun, and what is made of them, with the reason not to
    run them without it."""
    found: dict[str, str] = {}
    for id, step in graph.items():
        fresh = states[id].name is StepState.PENDING and not states[id].attempt
        if (fresh and step.kind == "uptrain") or not found.keys().isdisjoint(step.parents.values()):
            found[id] = "not begun: the same line goes on with it"
    return found


def refuse_outdated(graph: Graph, store: Store) -> None:
    """Raises UserError where steps of a frozen plan that are not done mean something else today: their jobs would fail
    one by one."""
    reasons = outdated(graph)
    if missing := [id for id in reasons if not store.step(id).record()]:
        listed = "; ".join(dict.fromkeys(reasons[id] for id in missing))
        raise UserError(
            f"{len(missing)} steps that are not done were planned under an earlier schema ({listed}); "
            "run the sweep's line again, which plans them anew"
        )


@dataclass(frozen=True)
class Costs:
    """Seconds per unit of work that steps of each kind took in this store, and seconds before their work began.

    The medians over records: a first run that downloads or compiles, and a busy machine, are outliers. A start takes as
    long for a tiny step as for a large one, so it is no part of the pace where the rows that a step logged show both.
    """

    seconds_per_work: dict[str, float]
    start_seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_store(cls, store: Store) -> Costs:
        rates: dict[str, list[float]] = defaultdict(list)
        starts: dict[str, list[float]] = defaultdict(list)
        for step in store.steps():
            with suppress(DamagedFileError, OSError):  # the command that needs this very step names the file
                # How long it took on a machine that it was packed on says nothing of this one.
                if (record := step.record()) and record.work and not step.origin():
                    attempt = next((a for a in step.attempts() if a.number == record.attempt), None)
                    known = attempt.computing_seconds() if attempt else None
                    computing = min(known or record.wall_seconds, record.wall_seconds)
                    rates[step.kind].append(computing / record.work)
                    starts[step.kind].append(record.wall_seconds - computing)
        medians = ({kind: median(values) for kind, values in each.items()} for each in (rates, starts))
        return cls(*medians)

    def seconds(self, step: Step) -> float | None:
        """Expected wall seconds of a step; None where no step like it has ever finished here."""
        kind, work = self._known_kind(step.kind), step.how.get("work")  # which a how.json of earlier code lacks
        if kind is None or work is None:
            return None
        return self.start_seconds.get(kind, 0.0) + self.seconds_per_work[kind] * work

    def _known_kind(self, kind: str) -> str | None:
        """The kind itself, or else another one whose steps take the same time per unit of work."""
        cost = kind_of(kind).cost
        if kind in self.seconds_per_work or not cost:
            return kind if kind in self.seconds_per_work else None
        return next((other for other in self.seconds_per_work if kind_of(other).cost == cost), None)

    def total(self, steps: Iterable[Step]) -> float | None:
        """Their sum in seconds; None if any is unknown."""
        each = [self.seconds(step) for step in steps]
        return None if any(seconds is None for seconds in each) else sum(s for s in each if s is not None)


class OtherCode(NamedTuple):
    """Finished steps by what their record says of the code: it might give another result than the code here; or it is
    of before such hashes were taken as they are now, so that nobody can tell."""

    differs: list[str]
    unknown: list[str]


def other_code(graph: Graph, store: Store) -> OtherCode:
    """Finished steps that were not, or perhaps not, made by code that gives the same results as the code here.

    They are not run again: an id stays the same as long as the schema version of its kind does. The code changes more
    often, with every corrected fault, and a reader of a table should know that its numbers come from several versions.
    The oldest records have only the hash of the whole code, which differs everywhere, and are not named.
    """
    codes = {id: code for id in graph if (record := store.step(id).record()) and (code := record.result_code)}
    known = {id: code for id, code in codes.items() if code.startswith(DEFINITION)}
    differs = [id for id, code in known.items() if code != store.result_code(graph[id].kind)]
    return OtherCode(differs, [id for id in codes if id not in known])


def replaced(graph: Graph, store: Store) -> dict[str, str]:
    """Finished steps that this plan runs anew under another id, each with the reason: the schema version of a kind rose
    since they were planned. Apart from schema versions they are what the plan says."""
    finished = _finished(store, _risen_kinds(graph))
    reasons = outdated(_parents_first(finished))
    meanings = _meanings(_parents_first(finished))
    wanted = set(_meanings(graph).values())
    return {id: reason for id, reason in reasons.items() if meanings[id] in wanted}


def _risen_kinds(graph: Graph) -> set[str]:
    """The kinds of steps that some other id had under the first schema versions; of all others the store need not be
    read."""
    risen: set[str] = set()
    for id, step in graph.items():
        if kind_of(step.kind).schema > 1 or not risen.isdisjoint(step.parents.values()):
            risen.add(id)
    return {graph[id].kind for id in risen}


def _finished(store: Store, kinds: Collection[str]) -> dict[str, Step]:
    """Finished steps of some kinds, and the finished ones that they are made from."""
    found: dict[str, Step] = {}

    def add(directory: StepDir) -> None:
        if directory.id not in found and directory.record() and (spec := directory.spec()):
            found[directory.id] = Step.of_spec(spec, Runtime())
            for parent in spec.parents.values():
                add(store.step(parent))

    for directory in store.steps() if kinds else ():
        if directory.kind in kinds:
            add(directory)
    return found


def _parents_first(steps: Mapping[str, Step]) -> dict[str, Step]:
    ordered: dict[str, Step] = {}

    def add(step: Step) -> None:
        for parent in step.parents.values():
            if parent in steps and parent not in ordered:
                add(steps[parent])
        ordered[step.id] = step

    for step in steps.values():
        add(step)
    return ordered


def _meanings(steps: Mapping[str, Step]) -> dict[str, str]:
    """What each step is, apart from schema versions: equal for a step and for the one that replaces it."""
    meanings: dict[str, str] = {}
    for id, step in steps.items():
        parents = {role: meanings.get(parent, parent) for role, parent in step.parents.items()}
        identity = canonical([step.kind, step.slice, step.pinned, parents])
        meanings[id] = hashlib.sha256(identity.encode()).hexdigest()
    return meanings
