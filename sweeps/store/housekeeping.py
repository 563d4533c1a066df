"""What names hold in a store: how much room each sweep's steps take, and another name or the end of a sweep or an
import. Steps belong to no sweep and stay; sweeps/store/prune.py deletes the outputs that no sweep needs any more."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlkv.files import discard
from sweeps.store.errors import StoreError, choices
from sweeps.store.files import tree
from sweeps.store.store import Store


@dataclass(frozen=True)
class Usage:
    """Bytes on disk. `own`: of steps that no other sweep needs, and of the sweep's own files; `shared`: of steps that
    others need too. By each sweep's latest plan."""

    name: str
    own: int
    shared: int


@dataclass(frozen=True)
class StoreUsage:
    """Bytes on disk of a whole store. `unneeded`: of steps that are in no sweep's latest plan. `other`: of imports,
    code and notes on jobs."""

    sweeps: tuple[Usage, ...]
    steps: int
    unneeded: int
    other: int


def usage(store: Store) -> StoreUsage:
    """Reads the size of every file. Raises StoreError for a plan that cannot be read: it might need any step."""
    plans = [folder.read() for folder in store.sweep_folders() if folder.numbers()]
    users = Counter(id for saved in plans for id in saved.plan.steps)
    sizes = {step.id: bytes_in(step.path) for step in store.steps()}
    sweeps = tuple(
        Usage(
            saved.name,
            bytes_in(saved.path.parent) + sum(sizes.get(id, 0) for id in saved.plan.steps if users[id] == 1),
            sum(sizes.get(id, 0) for id in saved.plan.steps if users[id] > 1),
        )
        for saved in plans
    )
    everything, steps = bytes_in(store.root), sum(sizes.values())
    unneeded = sum(size for id, size in sizes.items() if id not in users)
    return StoreUsage(sweeps, steps, unneeded, everything - steps - sum(bytes_in(saved.path.parent) for saved in plans))


def bytes_in(folder: Path) -> int:
    """Of all files below; those that are gone by the time they are looked at have none."""
    total = 0
    for _, path in tree(folder):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def check_known(store: Store, names: Iterable[str]) -> None:
    """Raises StoreError for a name that neither a sweep nor an import has."""
    known = [*store.sweep_names(), *store.import_names()]
    for name in names:
        if name not in known:
            raise StoreError(f"{name}: no sweep and no import of {store.root}; {choices(name, known)}")


def remove(store: Store, name: str) -> bool:
    """Delete an import, or a sweep's plans, notes and logs of jobs; false where a part of it could not be deleted."""
    return discard(_place(store, name))


def rename(store: Store, old: str, new: str) -> None:
    """Raises StoreError for a name that is taken or not allowed, OSError where the store cannot be written."""
    if old in store.import_names():
        store.check_import_name(new)
        target = store.imported(new)
    else:
        store.check_sweep_name(new)
        target = store.sweep_path(new)
    if target.exists():
        raise StoreError(f"name = {new}: is taken by {target}; choose another, or `mlkv rm {new}` first")
    os.rename(_place(store, old), target)


def _place(store: Store, name: str) -> Path:
    return store.imported(name) if name in store.import_names() else store.sweep_path(name)
