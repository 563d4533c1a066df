"""What a pack says, read and checked as a whole before anything of it is put into a store."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from sweeps.sharing.container import Pack, PackError
from sweeps.sharing.packing import HOW, NOTE, PLAN, RECORD, ROWS, SPEC, STEPS, VARIANTS
from sweeps.steps.step import described_by
from sweeps.store.names import check_name
from sweeps.store.others import CODE
from sweeps.store.schema import CONVERTED, Origin, PlanFile, Record, Runtime, Spec, VariantRow
from sweeps.store.seal import seal_holds
from sweeps.store.typed_json import parsed

T = TypeVar("T")
_ID = re.compile(r"[a-z][a-z0-9_]{0,63}-[0-9a-f]{16}")
_ATTEMPT = re.compile(r"attempts/[1-9][0-9]{0,5}/" + re.escape(ROWS))
_GROUPS = ("model", "corpus", "base", "convert", "elastic", "uptrain", "evaluate", "measure")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Not a tab or a line break, which a reason may have; a terminal would act upon others."""


@dataclass(frozen=True)
class PackedStep:
    """members: the names of its other files, below the step's own folder. record: None where it was not done."""

    id: str
    spec: Spec
    how: Runtime
    record: Record | None
    members: tuple[str, ...]
    origin: Origin
    """Whose it is, with the outputs that the pack does not have."""


@dataclass(frozen=True)
class Contents:
    plan: PlanFile
    variants: list[VariantRow]
    note: str
    steps: list[PackedStep]


def read(pack: Pack) -> Contents:
    """Raises PackError that names the member which is not as it should be."""
    names = _by_step(pack)
    plan = _parsed(pack, PlanFile, PLAN)
    lines = pack.read(VARIANTS).splitlines()
    variants = [_value(pack, VariantRow, VARIANTS, line) for line in lines]
    note = " ".join(pack.read(NOTE).decode(errors="replace").split()) if NOTE in pack.manifest.files else ""
    steps = [_step(pack, id, names[id]) for id in sorted(names)]
    _check_plan(pack, plan, variants, {step.id: step for step in steps})
    _refuse_control(pack, NOTE, note)
    return Contents(plan, variants, note, steps)


def _by_step(pack: Pack) -> dict[str, list[str]]:
    """By id, the names of a step's members below its folder. Raises PackError for a member that belongs to none."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in pack.manifest.files:
        top, _, rest = name.partition("/")
        id, _, inner = rest.partition("/")
        if top == STEPS and _ID.fullmatch(id) and _is_of_step(inner):
            found[id].append(inner)
        elif name not in (PLAN, VARIANTS, NOTE):
            raise PackError(f"{pack.path}: {name}: is nothing that a pack has")
    if lacking := [name for name in (PLAN, VARIANTS) if name not in pack.manifest.files]:
        raise PackError(f"{pack.path}: has no {lacking[0]}")
    return dict(found)


def _is_of_step(name: str) -> bool:
    in_out = name.startswith("out/") and not name.endswith(CODE)
    return name in (SPEC, HOW, RECORD) or bool(_ATTEMPT.fullmatch(name)) or in_out


def _step(pack: Pack, id: str, members: list[str]) -> PackedStep:
    place = f"{STEPS}/{id}"
    for name in (SPEC, HOW):
        if name not in members:
            raise PackError(f"{pack.path}: {id} has no {name}")
    spec, how = (_parsed(pack, Spec, f"{place}/{SPEC}"), _parsed(pack, Runtime, f"{place}/{HOW}"))
    if described_by(spec) != id or spec.kind != id.rsplit("-", 1)[0]:
        raise PackError(f"{pack.path}: {place}/{SPEC}: is that of another step")
    record = _record(pack, id, members) if RECORD in members else None
    rest = tuple(name for name in members if name not in (SPEC, HOW, RECORD))
    if rest and record is None:
        raise PackError(f"{pack.path}: {id} has outputs and no {RECORD}")
    absent = [name for name in record.outputs if f"out/{name}" not in members] if record else []
    first = pack.manifest.origins.get(id)
    by, packed = (first.by, first.packed) if first else (pack.manifest.by, pack.manifest.packed)
    return PackedStep(id, spec, how, record, rest, Origin(by=by, packed=packed, absent=absent))


def _record(pack: Pack, id: str, members: list[str]) -> Record:
    """Raises PackError for one of another step, one that was edited, or one that does not name its outputs."""
    name = f"{STEPS}/{id}/{RECORD}"
    record = _parsed(pack, Record, name)
    if (record.id, record.kind) != (id, id.rsplit("-", 1)[0]):
        raise PackError(f"{pack.path}: {name}: is that of another step")
    if seal_holds(json.loads(pack.read(name))) is False:
        raise PackError(f"{pack.path}: {name}: was edited: its seal does not fit")
    for member in members:
        if member.startswith("out/"):
            output = member.removeprefix("out/")
            if record.outputs.get(output) != pack.manifest.files[f"{STEPS}/{id}/{member}"]:
                raise PackError(f"{pack.path}: {STEPS}/{id}/{member}: is not as the step's record says")
    for output in record.outputs:
        if PurePosixPath(output).is_absolute() or ".." in PurePosixPath(output).parts:
            raise PackError(f"{pack.path}: {name}: {output[:80]!a}: leads out of the step's folder")
    return record


def _check_plan(pack: Pack, plan: PlanFile, variants: list[VariantRow], steps: dict[str, PackedStep]) -> None:
    """Raises PackError where plan, variants and steps do not belong together."""
    try:
        check_name("name", plan.name)
    except ValueError as error:
        raise PackError(f"{pack.path}: {PLAN}: {error}") from None
    if plan.name != pack.manifest.sweep or set(plan.steps) != set(steps):
        raise PackError(f"{pack.path}: {PLAN}: has other steps, or another name, than the pack")
    for id, planned in plan.steps.items():
        if planned.parents != steps[id].spec.parents or planned.kind != steps[id].spec.kind:
            raise PackError(f"{pack.path}: {PLAN}: {id}: is not as its {SPEC} says")
        if unknown := set(planned.parents.values()) - set(steps):
            raise PackError(f"{pack.path}: {PLAN}: {id}: is made of {min(unknown)}, which the pack does not have")
    if unknown := set(plan.stopped or ()) - set(plan.steps):
        raise PackError(f"{pack.path}: {PLAN}: stopped: {min(unknown)[:80]!a} is no step of the plan")
    labels = [row.variant for row in variants]
    if len(set(labels)) < len(labels) or {each for step in plan.steps.values() for each in step.variants} - set(labels):
        raise PackError(f"{pack.path}: {VARIANTS}: has other variants than {PLAN}")
    for row in variants:
        _check_variant(pack, row, steps)


def _check_variant(pack: Pack, row: VariantRow, steps: dict[str, PackedStep]) -> None:
    """Raises PackError for a row that names other steps than its kinds say, or whose configuration has no groups."""
    for kind, _, id in row.steps.each():
        if id not in steps or steps[id].spec.kind != ("evaluate" if kind == CONVERTED else kind):
            raise PackError(f"{pack.path}: {VARIANTS}: {row.variant}: {id[:80]!a} is no {kind} step of the pack")
    for group in _GROUPS:
        if not isinstance(row.config.get(group) or {}, dict):
            raise PackError(f"{pack.path}: {VARIANTS}: {row.variant}: config.{group} is no group of settings")


def _parsed(pack: Pack, kind: type[T], name: str) -> T:
    return _value(pack, kind, name, pack.read(name))


def _value(pack: Pack, kind: type[T], name: str, content: bytes) -> T:
    try:
        _refuse_control(pack, name, json.loads(content))
        return parsed(kind, content)
    except PackError:
        raise
    except (ValueError, RecursionError) as error:
        raise PackError(f"{pack.path}: {name}: {error}") from None


def _refuse_control(pack: Pack, name: str, value: Any) -> None:
    """Raises PackError for a text that a terminal would act upon."""
    if isinstance(value, str):
        if _CONTROL.search(value):
            raise PackError(f"{pack.path}: {name}: {value[:40]!a}: has control characters")
    elif isinstance(value, dict):
        for each in (*value, *value.values()):
            _refuse_control(pack, name, each)
    elif isinstance(value, list):
        for each in value:
            _refuse_control(pack, name, each)
