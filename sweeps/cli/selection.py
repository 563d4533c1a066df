"""What a subcommand's arguments name: a store, steps of a sweep, a queue that answers."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.store.errors import UserError, choices

if TYPE_CHECKING:
    from sweeps.store.schema import VariantRow
    from sweeps.store.store import SavedSweep, Store


@contextmanager
def queue_answers() -> Iterator[None]:
    """A queue that does not answer is an error of one line."""
    from sweeps.dispatch.queue_status import QueueError

    try:
        yield
    except QueueError as error:
        raise UserError(f"cluster: {error}") from None


def selected(plans: Sequence[SavedSweep], wanted: Sequence[str], *, alone: bool = False) -> list[str]:
    """Steps of the variants (labels or globs of them), or with the ids or labels, that are wanted; all where none is
    named.

    plans: of one sweep, the latest first; it decides which variants need a step. alone: without the steps that other
    variants need too. Raises UserError for a word that names nothing.
    """
    labels = list(dict.fromkeys(row.variant for plan in plans for row in plan.variants))
    users = {id: step.variants for plan in reversed(plans) for id, step in plan.plan.steps.items()}
    variants, steps = set(labels if not wanted else ()), set()
    for word in wanted:
        named = set(fnmatch.filter(labels, word)) | ({word} & set(labels))
        ids = {id for id in users if id.startswith(word)}
        ids |= {id for plan in plans for id, step in plan.plan.steps.items() if step.label == word}
        if not named | ids:
            raise UserError(f"{word}: no variant or step of sweep {plans[0].name} (variants: {', '.join(labels)})")
        variants |= named
        steps |= ids
    for id, needing in users.items():
        if variants.issuperset(needing) if alone else variants.intersection(needing):
            steps.add(id)
    return [id for id in users if id in steps]


def variant_of(sweep: SavedSweep, word: str) -> VariantRow:
    """The variant with this label; else the one whose label matches the glob, or has the word in it, or has a step of
    that id. Raises UserError where none has, or several."""
    ways: list[Callable[[VariantRow], bool]] = [
        lambda row: row.variant == word,
        lambda row: fnmatch.fnmatchcase(row.variant, word),
        lambda row: word.lower() in row.variant.lower(),
        lambda row: any(id.startswith(word) for id in row.steps.ids),
    ]
    for way in ways:
        found = [row for row in sweep.variants if way(row)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{word}: is in several variants ({', '.join(row.variant for row in found)}); name one")
    labels = [row.variant for row in sweep.variants]
    raise UserError(f"{word}: no variant of sweep {sweep.name}; {choices(word, labels)}")


def existing(root: Path) -> Store:
    from sweeps.store.store import Store, StoreError

    store = Store(root)
    if not (root / "steps").is_dir() and not store.import_names():
        raise StoreError(f"store = {root}: no store there; set --store or MLKV_STORE")
    return store


def check_config_dir(options: object) -> None:
    """Raises UserError for one that does not exist: Hydra would go on without it."""
    config_dir: Path | None = getattr(options, "config_dir", None)
    if config_dir and not config_dir.is_dir():
        raise UserError(f"--config-dir = {config_dir}: no such directory")


def extension_files(options: object) -> list[Path]:
    """The extension files that a subcommand works with: those of `--config-dir`, or else the copies of those that the
    sweep was planned with."""
    from mlkv.registry import files_of
    from sweeps.store.store import Store

    if config_dir := getattr(options, "config_dir", None):
        return files_of(config_dir)
    root: Path | None = getattr(options, "store", None)
    named = [getattr(options, "name", None), *getattr(options, "others", ())]
    names = {str(name).removeprefix("sweep/"): None for name in named if name}
    paths = [path for name in names for path in planned_extensions(Store(root), name)] if root else []
    return list(dict.fromkeys(paths))


def planned_extensions(store: Store, name: str | None) -> list[Path]:
    """The copies of the extension files that a sweep was planned with; none where there is no such sweep."""
    if name is None or name not in store.sweep_names():
        return []
    planned = store.sweep(name).plan.extensions or {}
    return [path for digest in planned.values() if (path := store.extension(digest))]
