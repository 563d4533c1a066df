"""What a graph of steps still needs: the state of each step in the store, what to run, and how long that will take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from sweeps.steps.registry import similar_kinds
from sweeps.steps.step import Step, described_by
from sweeps.store.errors import DamagedFileError
from sweeps.store.states import StepState
from sweeps.store.stepdir import State
from sweeps.store.store import SavedSweep, Store, StoreError

AGAIN = "run the sweep's line again, which writes it anew"
Graph = Mapping[str, Step]
"""Steps by id, parents before children."""
States = dict[str, State]
"""By step id."""


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


def read_states(graph: Graph, store: Store) -> States:
    return {id: store.step(id).state() for id in graph}


def blockers(graph: Graph, states: Mapping[str, State]) -> dict[str, str]:
    """Steps that cannot run, each with the failed step above it."""
    failed: dict[str, str] = {}
    for id, step in graph.items():
        if states[id].name is StepState.DONE:
            continue
        for parent in step.parents.values():
            if states[parent].name is StepState.FAILED:
                failed[id] = parent
            elif parent in failed:
                failed[id] = failed[parent]
    return failed


def to_run(graph: Graph, states: Mapping[str, State], *, retry: bool = False) -> list[Step]:
    """Steps that are not done, parents first. Failed ones and what descends from them wait for `retry`."""
    if retry:
        return [step for id, step in graph.items() if states[id].name is not StepState.DONE]
    blocked = blockers(graph, states)
    finished = (StepState.DONE, StepState.FAILED)
    return [step for id, step in graph.items() if states[id].name not in finished and id not in blocked]


@dataclass(frozen=True)
class Costs:
    """Seconds per unit of work that steps of each kind took in this store (median over records)."""

    seconds_per_work: dict[str, float]

    @classmethod
    def of_store(cls, store: Store) -> Costs:
        rates: dict[str, list[float]] = defaultdict(list)
        for step in store.steps():
            with suppress(DamagedFileError):  # the command that needs this very step names the file
                if (record := step.record()) and record.work:
                    rates[step.kind].append(record.wall_seconds / record.work)
        return cls({kind: median(values) for kind, values in rates.items()})

    def seconds(self, step: Step) -> float | None:
        """Expected wall seconds of a step; None where no step like it has ever finished here."""
        rates = [rate for kind in similar_kinds(step.kind) if (rate := self.seconds_per_work.get(kind))]
        rate = rates[0] if rates else None
        return None if rate is None else rate * step.how["work"]

    def total(self, steps: Iterable[Step]) -> float | None:
        """Their sum in seconds; None if any is unknown."""
        each = [self.seconds(step) for step in steps]
        return None if any(seconds is None for seconds in each) else sum(s for s in each if s is not None)


def other_code(graph: Graph, store: Store) -> list[str]:
    """Finished steps that other code than this made.

    They are not run again: an id stays the same as long as the schema version of its kind does. The code hash changes
    more often, with every mended fault, and who reads a table should know that its numbers come from several versions.
    """
    ours = store.code_hash
    return [id for id in graph if (record := store.step(id).record()) and record.code != ours]
