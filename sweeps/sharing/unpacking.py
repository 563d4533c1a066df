"""Puts a pack into a store. All of it is checked, and written beside the steps, before the first step is put in place;
each step then appears whole, its record last, and the sweep after all of them.

A result of a step that the store has none of counts from then on as done. Where it has one, that one counts and keeps
counting: the same outputs fill in what was left out of an earlier pack, other outputs are kept beside it.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import mlkv.layout
from mlkv.files import discard
from sweeps.sharing.container import Pack, opened
from sweeps.sharing.contents import Contents, PackedStep, read
from sweeps.sharing.packing import HOW, RECORD, SPEC, STEPS
from sweeps.store import others
from sweeps.store.errors import StoreError
from sweeps.store.files import rename_once, sha256, write_once
from sweeps.store.schema import Origin, Record
from sweeps.store.states import StepState
from sweeps.store.stepdir import StepDir
from sweeps.store.store import Store

_STAGED = ".unpack-"
_ABANDONED_SECONDS = 86400.0


@dataclass
class Unpacked:
    """What became of a pack: the ids of steps that count as done now, that were there with the same outputs, that got
    outputs which an earlier pack had left out, and whose other result is kept beside."""

    sweep: str
    by: str | None
    new: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    """Steps that another process ran at the time: the same command puts these in place later."""


def unpack(store: Store, path: Path, name: str | None = None) -> Unpacked:
    """Raises PackError for a file that is no pack, or is damaged, and StoreError for a name that another sweep has, and
    has then changed nothing; and OSError."""
    with opened(path) as pack, _staging(store) as staging:
        contents = read(pack)
        sweep = name or contents.plan.name
        _check_sweep(store, sweep, contents)
        for step in contents.steps:
            _stage(pack, step, staging / step.id)
        done = Unpacked(sweep, pack.manifest.by)
        for step in contents.steps:
            _place(store.step(step.id), staging / step.id, step, done)
        _place_sweep(store, sweep, contents, Origin(by=pack.manifest.by, packed=pack.manifest.packed))
    return done


@contextmanager
def _staging(store: Store) -> Iterator[Path]:
    """A folder on the store's disk for as long as it takes; a process that was killed left one, which goes later."""
    now = time.time()
    for path in store.root.glob(f"{_STAGED}*"):
        with suppress(OSError):
            if now - path.stat().st_mtime > _ABANDONED_SECONDS:
                discard(path)
    folder = store.root / f"{_STAGED}{secrets.token_hex(6)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        discard(folder)


def _check_sweep(store: Store, name: str, contents: Contents) -> None:
    """Raises StoreError for a name that cannot be, or is that of a sweep with another plan."""
    store.check_sweep_name(name)
    if name not in store.sweep_names():
        if store.sweep_path(name).exists() and (problem := store.sweep_problem(name)):
            raise StoreError(problem)
        return
    plan = store.sweep(name)
    there = set(plan.plan.steps), {row.variant for row in plan.variants}
    if there != (set(contents.plan.steps), {row.variant for row in contents.variants}):
        raise StoreError(f"name = {name}: is that of a sweep here with another plan; --name gives this one another")


def _stage(pack: Pack, step: PackedStep, folder: Path) -> None:
    """Write a step's files as they will lie in the store."""
    folder.mkdir()
    place = f"{STEPS}/{step.id}"
    for name in (SPEC, HOW, *([RECORD] if step.record else []), *step.members):
        pack.extract(f"{place}/{name}", folder / name)
    if step.record:
        (folder / "out").mkdir(exist_ok=True)
        attempt = folder / "attempts" / str(step.record.attempt)
        attempt.mkdir(parents=True, exist_ok=True)
        others.write_origin(folder, step.origin)
        _add_own_code(step.record, folder / "out")


def _add_own_code(record: Record, out: Path) -> None:
    """The decoder's code, which a checkpoint carries for transformers and no pack has, where it is that of this mlkv:
    byte for byte the files that run here anyway."""
    for name, expected in record.outputs.items():
        own = Path(mlkv.layout.__file__).parent / name
        if name.endswith(others.CODE) and "/" not in name and own.is_file() and sha256(own) == expected.sha256:
            shutil.copyfile(own, out / name)


def _place(step: StepDir, staged: Path, packed: PackedStep, done: Unpacked) -> None:
    step.path.parent.mkdir(parents=True, exist_ok=True)
    if packed.record is None:
        if step.spec() is None:
            step.write_spec(packed.spec, packed.how)
        return
    if not step.path.exists() and rename_once(staged, step.path):
        done.new.append(step.id)
        return
    if not step.record() and not _take(step, staged, packed):
        done.running.append(step.id)
        return
    record = step.record()
    if not staged.joinpath(RECORD).exists():
        done.new.append(step.id)
    elif record and others.same_result(record, packed.record):
        (done.filled if _fill(step, staged) else done.same).append(step.id)
    elif others.put_beside(step.path, staged):
        done.beside.append(step.id)
    else:
        done.same.append(step.id)


def _take(step: StepDir, staged: Path, packed: PackedStep) -> bool:
    """Give a step that has no record this one; false while another process runs it. Where that process has finished it
    meanwhile, the result stays where it was staged."""
    if held := step.claims.read():
        if step.state().name is StepState.RUNNING:
            return False
        step.claims.drop(held)
    if not (mine := step.claims.take()):
        return False
    try:
        if step.record():
            return True
        step.write_spec(packed.spec, packed.how)
        discard(step.out)
        discard(step.work)
        _keep_attempts(step)
        for name in others.PARTS[:-1]:
            (staged / name).rename(step.path / name)
        write_once(step.path / RECORD, (staged / RECORD).read_text(encoding="utf-8"))
        (staged / RECORD).unlink()
    finally:
        step.claims.release(mine)
    return True


def _keep_attempts(step: StepDir) -> None:
    """Attempts that did not end well have numbers that those of the pack have too: their logs stay under another
    name."""
    if (step.path / "attempts").exists():
        (step.path / "attempts").rename(step.path / f"attempts-before-{secrets.token_hex(6)}")


def _fill(step: StepDir, staged: Path) -> bool:
    """Move outputs in that an earlier pack left out, and this one has."""
    origin, before = step.origin(), step.left_out()
    for name in before:
        if (found := staged / "out" / name).is_file():
            (step.out / name).parent.mkdir(parents=True, exist_ok=True)
            found.rename(step.out / name)
    after = step.left_out()
    return origin is not None and after != before


def _place_sweep(store: Store, name: str, contents: Contents, origin: Origin) -> None:
    if name in store.sweep_names():
        return
    store.save_unpacked(name, replace(contents.plan, name=name), contents.variants, origin)
    if contents.note and not store.note(name):
        store.write_note(name, contents.note)
