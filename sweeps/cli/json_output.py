"""What `--json` prints of plans and steps. The keys are a promise (docs/automation.md); more may be added."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from mlkv.files import Json
from sweeps.planning.reconcile import Costs, Graph, States, blockers
from sweeps.steps.step import Step
from sweeps.store.states import NOTHING_LEFT, StepState
from sweeps.store.stepdir import State
from sweeps.store.typed_json import as_json

if TYPE_CHECKING:
    from sweeps.planning.plan import Plan
    from sweeps.planning.variant import Variant


def of_plan(plan: Plan, states: States, costs: Costs) -> Json:
    """A plan before it runs: variants, steps with what they are expected to take, and memory of trainings."""
    from sweeps.planning.memory import needed_memory

    missing = [step for step in plan.steps.values() if states[step.id].name not in NOTHING_LEFT]
    blocked = blockers(plan.steps, states)
    return {
        "name": plan.name,
        "variants": [_variant(variant) for variant in plan.variants],
        "steps": [
            {**_step(step, states, blocked), "expected_seconds": costs.seconds(step)} for step in plan.steps.values()
        ],
        "expected_seconds": costs.total(missing),
        "checkpoint_bytes": plan.checkpoint_bytes({step.id for step in missing}),
        "memory": [
            {
                "kind": each.kind,
                "variant": each.label,
                "processes": each.processes,
                "bytes": {**asdict(each.memory), "total": each.memory.total},
            }
            for each in needed_memory(plan.variants)
        ],
        "unresolved": list(plan.unresolved),
        "overruled": list(plan.overruled),
        "layouts_to_follow": plan.following,
    }


def of_states(name: str, graph: Graph, states: States) -> Json:
    """A sweep as it stands."""
    blocked = blockers(graph, states)
    return {
        "name": name,
        "counts": counts(graph, states),
        "steps": [_step(step, states, blocked) for step in graph.values()],
    }


def of_variant(
    name: str,
    graph: Graph,
    states: States,
    chosen: Sequence[str],
    log_of: Callable[[str], list[str]],
    remarks_of: Callable[[str], list[str]],
) -> Json:
    """The chosen steps of a sweep. log_of: the last lines that a step printed which did not end well. remarks_of: what
    there is to say of a finished step's numbers."""
    blocked = blockers(graph, states)
    steps = [_step(graph[id], states, blocked) for id in chosen]
    details = ({"log": log_of(step["id"]), "remarks": remarks_of(step["id"])} for step in steps)
    return {"name": name, "steps": [{**step, **more} for step, more in zip(steps, details, strict=True)]}


def counts(graph: Graph, states: States) -> dict[str, int]:
    """State → how many steps; every state is there."""
    blocked = blockers(graph, states)
    found = [StepState.BLOCKED if id in blocked else states[id].name for id in graph]
    return {state.value: found.count(state) for state in StepState}


def _variant(variant: Variant) -> Json:
    row = as_json(variant.row())
    shown = ("variant", "baseline", "overrides", "kv_heads", "budget", "layout", "kv_bytes_per_token", "parameters")
    return {**{key: row[key] for key in shown}, "steps": [step.id for step in variant.steps]}


def _step(step: Step, states: States, blocked: Mapping[str, str]) -> Json:
    state = states[step.id]
    name, reason = state.name, state.reason
    if step.id in blocked:
        name, reason = StepState.BLOCKED, f"waits for {blocked[step.id]}, which failed"
    return {
        "id": step.id,
        "kind": step.kind,
        "label": step.label,
        "parents": step.parents,
        "state": name.value,
        "reason": reason,
        "attempt": state.attempt,
        **_progress(state),
    }


def _progress(state: State) -> dict[str, int | None]:
    """How many steps of its optimizer a training has made, and of how many; None where that is not known."""
    row = state.progress if state.name is not StepState.DONE else None
    return {"at": row.step if row else None, "of": row.steps if row else None}
