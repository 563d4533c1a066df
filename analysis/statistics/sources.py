"""From a name to results: a sweep in the store, a published set (`published/mlkv`), or what was imported.

All three give the same long table, so every table and figure takes any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from analysis.data import frame
from analysis.data.gather import Steps, of_sweep
from analysis.data.published import SETS, published
from analysis.data.samples import Samples, StoredSamples
from analysis.statistics.results import Results, by_layout
from sweeps.store.errors import DamagedFileError
from sweeps.store.store import SavedSweep, Store, StoreError

PUBLISHED = "published/"


@dataclass(frozen=True)
class Source:
    """Results by name. `table` is the long table. `sweep` and `steps`, which a page needs, exist only for a sweep of
    the store; `note` is what people wrote about it."""

    name: str
    table: pd.DataFrame
    sweep: SavedSweep | None = None
    steps: Steps | None = None
    samples: Samples | None = None
    note: str = ""

    @property
    def experiment(self) -> str:
        """The name in conf/experiment/ of the experiment that it is a run of; without one, its own name."""
        words = (self.sweep.plan.command or []) if self.sweep else []
        chosen = [word.removeprefix("experiment=") for word in words if word.startswith("experiment=")]
        return chosen[-1] if chosen else self.name

    @property
    def notes(self) -> list[str]:
        """What a reader of any table of these results should know, a line each."""
        outdated = self.steps.outdated() if self.steps else None
        whose = self.steps.whose() if self.steps else []
        return [*whose, *filter(None, [outdated, self.note and f"note: {self.note}"])]

    @cached_property
    def results(self) -> Results:
        """A row per layout, seeds in one (statistics.results.by_layout), compared by samples where there are any."""
        return by_layout(self.table, self.samples)


def load(store: Store, name: str, number: int | None = None) -> Source:
    """The results called `name`; `number` is a plan of a sweep (default: its latest). A published set needs no store.

    Raises StoreError for an unknown name, listing the known ones, for a name that a sweep and an import share, and for
    a damaged import.
    """
    if name.startswith(PUBLISHED):
        return published_source(name)
    if name in store.import_names():
        if name in store.sweep_names():
            raise StoreError(f"{name}: is a sweep and an import; give {store.imported(name)} another name")
        return Source(name, _read_import(store.imported(name)))
    if name not in store.sweep_names():
        raise StoreError(store.sweep_problem(name) or f"{name}: {_known(store)}")
    sweep = store.sweep(name, number)
    steps = Steps(store, sweep.plan)
    return Source(name, of_sweep(sweep, steps), sweep, steps, StoredSamples(store), store.note(name))


def _read_import(path: Path) -> pd.DataFrame:
    """Raises DamagedFileError."""
    try:
        return frame.read_csv(path)
    except ValueError as error:
        raise DamagedFileError(f"{path}: {error}; import the results again, or delete it") from None


def published_source(name: str) -> Source:
    """A published set, with or without `published/` before its name. Raises StoreError that lists the known ones."""
    if (wanted := name.removeprefix(PUBLISHED)) not in SETS:
        raise StoreError(f"{name}: no such published set (there are {', '.join(PUBLISHED + known for known in SETS)})")
    return Source(PUBLISHED + wanted, published(wanted))


def _known(store: Store) -> str:
    kinds: dict[str, Callable[[], list[str]]] = {"sweeps": store.sweep_names, "imports": store.import_names}
    known = [f"{kind}: {', '.join(names())}" for kind, names in kinds.items() if names()]
    return "; ".join([f"not in {store.root}", *known, f"published: {', '.join(PUBLISHED + name for name in SETS)}"])
