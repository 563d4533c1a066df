"""The kinds of steps. A new kind is a file beside this one, and a row here or in an extension file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from mlkv.context import Outcome, StepFailed
from mlkv.registry import ExtensionError, Registry
from sweeps.steps import base, calibrate, convert, corpus, elastic, evaluate, measure, similarity, teacher, uptrain
from sweeps.steps.kind import Execution, StepKind
from sweeps.store.axis import Axis, Rows
from sweeps.store.schema import Spec
from sweeps.store.store import Store

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = (
    "model",
    "layout",
    "cluster",
    "sweep",
    "search",
    "tracking",
    "stopping",
    "resources",
    "name",
    "reports",
    "experiment",
    "scale",
    "cache",
)


class _Kinds(Registry[StepKind]):
    """A kind's name is a conf group, a folder of the store, and what step ids begin with."""

    def __setitem__(self, name: str, row: StepKind) -> None:
        if not _NAME.fullmatch(name) or name in _TAKEN:
            raise ExtensionError(f"step kind {name}: take another name, of lower-case letters, digits and _")
        super().__setitem__(name, row)


KINDS = _Kinds(
    "step kind",
    {
        "corpus": corpus.KIND,
        "base": base.KIND,
        "calibrate": calibrate.KIND,
        "teacher": teacher.KIND,
        "elastic": elastic.KIND,
        "convert": convert.KIND,
        "uptrain": uptrain.KIND,
        "evaluate": evaluate.KIND,
        "measure": measure.KIND,
        "similarity": similarity.KIND,
    },
)
BUILT_IN = (
    "corpus",
    "base",
    "calibrate",
    "teacher",
    "elastic",
    "convert",
    "uptrain",
    "evaluate",
    "measure",
    "similarity",
)
"""Kinds whose steps have a place of their own in a variant."""


def _cannot_run(execution: Execution) -> Outcome:
    raise StepFailed(f"step kind = {execution.step.kind}: must be one of {', '.join(KINDS)}")


_UNKNOWN = StepKind(_cannot_run, fresh_process=True)


def kind_of(name: str) -> StepKind:
    """The row of a kind. A step whose extension file is not here can be listed and shown, but not run."""
    return KINDS.get(name, _UNKNOWN)


def trains(spec: Spec) -> bool:
    """Whether a step is training, which several processes can share. A base that is loaded is made of no other step."""
    return kind_of(spec.kind).trains and bool(spec.parents)


def axis_of(kind: str) -> Axis:
    """What the rows of a step of this kind are drawn against."""
    return Axis("train", counts_steps=True) if kind_of(kind).trains else Axis(kind)


def whole_history(store: Store, step_id: str) -> Rows:
    """What a step has logged, along its axis; of a training that continues a shorter one, behind what that one logged
    up to there."""
    step = store.step(step_id)
    spec, own = step.spec(), step.history(axis_of(step.kind))
    if spec is None or not (begun := uptrain.begins_after(spec)):
        return own
    return [row for row in whole_history(store, spec.parents[uptrain.SHORTER]) if row[0] <= begun] + own


def scored_kinds() -> list[str]:
    """Kinds whose metrics are scores of a variant: evaluations, those of extensions, then training, the last first."""
    kinds = [name for name, row in reversed(list(KINDS.items())) if row.scores]
    return sorted(kinds, key=lambda name: name != "evaluate")


class Described(Protocol):
    """A step, or the specification of one."""

    @property
    def kind(self) -> str: ...

    @property
    def schema(self) -> int: ...

    @property
    def parents(self) -> dict[str, str]: ...


def outdated(steps: Mapping[str, Described]) -> dict[str, str]:
    """The steps, parents before children, that mean something else today, each with the reason: the schema version of
    its own kind rose since it was planned, or that of one which it is made from."""
    reasons: dict[str, str] = {}
    for id, step in steps.items():
        kind = kind_of(step.kind)
        above = next((reasons[parent] for parent in step.parents.values() if parent in reasons), None)
        if step.schema < kind.schema:
            changes = "; ".join(kind.changes[step.schema - 1 :])
            reasons[id] = f"{step.kind} of schema {step.schema}, now {kind.schema}: {changes}"
        elif above:
            reasons[id] = above
    return reasons


def outdated_note(steps: Mapping[str, Described]) -> str | None:
    """One line on steps that were planned under an earlier schema; None where there are none."""
    reasons = outdated(steps)
    if not reasons:
        return None
    listed = "; ".join(dict.fromkeys(reasons.values()))
    return f"{len(reasons)} steps were planned under an earlier schema, and the same line plans them anew ({listed})"
