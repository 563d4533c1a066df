"""The extension files that a step is pinned to, found in the store."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mlkv.evaluate.task_files import TaskCopy
from mlkv.registry import PIN, ExtensionError, load
from sweeps.steps.evaluate import TASK_FILES
from sweeps.steps.registry import trains
from sweeps.store.schema import Spec
from sweeps.store.store import Store

AGAIN = "run the sweep's line again, with its --config-dir"


def load_pinned(store: Store, pinned: Mapping[str, str]) -> None:
    """Add the rows that a step with these pins needs. Raises ExtensionError where a file is not in the store, or is not
    what was planned."""
    for name, digest in pinned.items():
        if name.startswith(PIN):
            path = store.extension(digest)
            if path is None:
                row = name.removeprefix(PIN)
                raise ExtensionError(f"extension with the step's {row} is not in {store.root} ({digest[:16]}); {AGAIN}")
            try:
                load(path, digest)
            except ExtensionError as error:
                raise ExtensionError(f"{error}; delete that file and {AGAIN}") from None


def pinned_task(store: Store, pinned: Mapping[str, str]) -> Path | None:
    """The copy of the task definition that a step is pinned to; None where it is pinned to none. Raises ExtensionError
    where the copy is not in the store, or is not what was planned."""
    digest = pinned.get(TASK_FILES)
    if digest is None:
        return None
    folder = store.task_files(digest)
    if not folder.is_dir():
        raise ExtensionError(f"the step's task definition is not in {store.root} ({digest[:16]}); {AGAIN}")
    try:
        TaskCopy.read(folder).check(digest)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ExtensionError(f"{folder}: was edited; delete that folder and {AGAIN} ({error})") from None
    return folder


def know_kind(store: Store, spec: Spec) -> None:
    """Add the row of the step's kind where an extension has it, in a process that does not run the step."""
    with suppress(ExtensionError):  # the process that computes names the fault, in the step's own log
        load_pinned(store, spec.pinned)


def is_training(store: Store, spec: Spec) -> bool:
    """Whether several processes can share the step, also where an extension adds its kind."""
    know_kind(store, spec)
    return trains(spec)
