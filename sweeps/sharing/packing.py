"""Packs the results of a sweep into one file: its latest plan, what its steps are, and what its finished steps left.

What goes in is what tables, figures and the page read: records, scores of single samples, rows that were logged.
Outputs that only other steps read (weights, tokens) go in by choice. What is about this machine stays out: paths,
cluster, W&B project, logs, and code (extensions, task files, the decoder's own in a checkpoint).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from mlkv.files import Json
from sweeps.sharing.container import Member, PackError, check_name, write
from sweeps.sharing.manifest import FORMAT, VERSION, Manifest, Weights
from sweeps.sharing.paths import without_paths
from sweeps.steps.registry import BUILT_IN
from sweeps.steps.verify import edited
from sweeps.store.errors import StoreError
from sweeps.store.others import CODE
from sweeps.store.schema import FileHash, Origin, PlanFile, Record, VariantRow
from sweeps.store.stepdir import StepDir
from sweeps.store.store import SavedSweep, Store
from sweeps.store.typed_json import as_json

SWEEP, STEPS = "sweep", "steps"
PLAN, VARIANTS, NOTE = f"{SWEEP}/plan.json", f"{SWEEP}/variants.jsonl", f"{SWEEP}/note.txt"
SPEC, HOW, RECORD, ROWS = "spec.json", "how.json", "done.json", "metrics.jsonl"
_READ_BY_STEPS = frozenset(BUILT_IN) - {"evaluate", "measure", "similarity"}
"""Kinds whose outputs are for other steps."""
_SMALL = 2**20
"""Bytes up to which a JSON file of theirs goes in: a checkpoint's configuration, a corpus's manifest."""
_OF_THIS_PLACE = ("cluster", "tracking", "resources", "reports")


def pack(store: Store, saved: SavedSweep, path: Path, *, by: str | None, weights: Weights) -> Manifest:
    """Write a pack of a sweep's latest plan. Raises PackError for outputs that are not as they were recorded,
    StoreError where no step is done, and OSError."""
    members = dict(_of_sweep(store, saved))
    records = {id: record for id in saved.plan.steps if (record := store.step(id).record())}
    if not records:
        raise StoreError(f"{saved.name}: no step of it is done, so there is nothing to pack")
    last = _last_checkpoints(saved.variants)
    for id in saved.plan.steps:
        whole = weights == "all" or (weights == "last" and id in last)
        members |= {f"{STEPS}/{id}/{name}": each for name, each in _of_step(store.step(id), records.get(id), whole)}
    manifest = Manifest(
        format=FORMAT,
        version=VERSION,
        sweep=saved.name,
        by=by,
        packed=max([saved.plan.created, *(record.finished for record in records.values())]),
        made_by=version("mlkv"),
        weights=weights,
        files={name: members[name].hash for name in sorted(members)},
        origins=_origins(store, records),
    )
    write(path, manifest.content(), members)
    return manifest


def _of_sweep(store: Store, saved: SavedSweep) -> Iterator[tuple[str, Member]]:
    yield PLAN, _json(as_json(_plan(saved.plan)))
    lines = [json.dumps(as_json(_variant(row)), allow_nan=False) for row in saved.variants]
    yield VARIANTS, Member.of("".join(f"{line}\n" for line in lines).encode())
    if note := store.note(saved.name):
        yield NOTE, Member.of(f"{note}\n".encode())


def _json(value: Json) -> Member:
    return Member.of((json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _plan(plan: PlanFile) -> PlanFile:
    """Without what only this place knows; it gets another number where it is unpacked."""
    command = without_paths(plan.command) if plan.command else None
    return replace(plan, number=0, cluster={}, tracking=None, command=command)


def _variant(row: VariantRow) -> VariantRow:
    config = {key: value for key, value in row.config.items() if key not in _OF_THIS_PLACE}
    return replace(row, config=without_paths(config), overrides=without_paths(row.overrides))


def _last_checkpoints(rows: Sequence[VariantRow]) -> set[str]:
    """Of each variant, the checkpoint that it is scored by."""
    return {id for row in rows if (id := row.steps.checkpoint)}


def _of_step(step: StepDir, record: Record | None, whole: bool) -> Iterator[tuple[str, Member]]:
    """What a step is and, where it is done, what it left; `whole`: with outputs that only other steps read."""
    spec = step.spec()
    if spec is None:
        raise StoreError(f"step {step.id}: its spec.json is gone; run the sweep's line again, which writes it anew")
    yield SPEC, Member.of((step.path / SPEC).read_bytes())
    yield HOW, _json(without_paths(as_json(step.how())))
    if record is None:
        return
    if wrong := edited(step):
        raise PackError(f"{step.id}: {wrong}; `mlkv status --verify` sets such steps aside")
    yield RECORD, Member.of((step.path / RECORD).read_bytes())
    for attempt in step.attempts():
        if attempt.metrics_file.is_file():
            yield f"attempts/{attempt.number}/{ROWS}", Member.of(attempt.metrics_file.read_bytes())
    for name, expected in record.outputs.items():
        if _goes_in(step.kind, name, expected, whole) and (step.out / name).is_file():
            _check_output(step, name)
            yield f"out/{name}", Member(expected, step.out / name)


def _check_output(step: StepDir, name: str) -> None:
    try:
        check_name(name)
    except ValueError as error:
        raise PackError(f"{step.id}: an output cannot be packed: {error}") from None


def _goes_in(kind: str, name: str, output: FileHash, whole: bool) -> bool:
    if name.endswith(CODE):
        return False
    return whole or kind not in _READ_BY_STEPS or (name.endswith(".json") and output.bytes <= _SMALL)


def _origins(store: Store, records: dict[str, Record]) -> dict[str, Origin]:
    """Whose each result is that is not the packer's own."""
    found = {id: origin for id in records if (origin := store.step(id).origin())}
    return {id: Origin(by=origin.by, packed=origin.packed) for id, origin in found.items()}
