"""What a subcommand's arguments name: a store, steps of a sweep, a queue that answers."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.store.errors import UserError

if TYPE_CHECKING:
    from sweeps.store.store import SavedSweep, Store


@contextmanager
def queue_answers() -> Iterator[None]:
    """A queue that does not answer is told in one line."""
    from sweeps.dispatch.queue_status import QueueError

    try:
        yield
    except QueueError as error:
        raise UserError(f"cluster: {error}") from None


def selected(saved: SavedSweep, wanted: Sequence[str], *, alone: bool = False) -> list[str]:
    """Steps of the variants (labels or globs of them), or with the ids, that are wanted; all where none is named.
    `alone`: not those that other variants need too. Raises UserError for what names nothing."""
    labels = [row.variant for row in saved.variants]
    variants, steps = set(labels if not wanted else ()), set()
    for word in wanted:
        named = set(fnmatch.filter(labels, word)) | ({word} & set(labels))
        ids = {id for id in saved.plan.steps if id.startswith(word)}
        if not named | ids:
            raise UserError(f"{word}: no variant or step of sweep {saved.name} (variants: {', '.join(labels)})")
        variants |= named
        steps |= ids
    for id, step in saved.plan.steps.items():
        if variants.issuperset(step.variants) if alone else variants.intersection(step.variants):
            steps.add(id)
    return [id for id in saved.plan.steps if id in steps]


def existing(root: Path) -> Store:
    from sweeps.store.store import Store, StoreError

    store = Store(root)
    if not (root / "steps").is_dir() and not store.import_names():
        raise StoreError(f"store = {root}: no store there; set --store or MLKV_STORE")
    return store
