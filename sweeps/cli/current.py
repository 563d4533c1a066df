"""Whether what was made of a sweep is newer than all that there is to tell of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeps.store.store import SavedSweep, Store


def is_current(made: Path, store: Store, saved: SavedSweep) -> bool:
    """Whether this file was written after the plan, after the last of its steps was done or unpacked, and after the
    note."""
    import time

    if not made.is_file() or made.stat().st_mtime < store.note_time(saved.name):
        return False
    if any(store.step(id).unpacked_at() >= made.stat().st_mtime for id in saved.plan.steps):
        return False
    written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made.stat().st_mtime))
    records = [store.step(id).record() for id in saved.plan.steps]
    return saved.plan.created < written and all(record and record.finished < written for record in records)
