"""From a name to results: a sweep in the store, a published set (`published/mlkv`), or what was imported.

All three give the same long table, so every table and figure takes any of them; and several of them put together
(statistics/combine.py), and a selection of their rows (statistics/selection.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from analysis.data import frame, replicates
from analysis.data.gather import Steps, of_sweep
from analysis.data.published import SETS, published
from analysis.data.samples import Samples, StoredSamples
from analysis.statistics.results import Results, by_layout
from sweeps.store.axis import Rows
from sweeps.store.errors import DamagedFileError
from sweeps.store.schema import VariantRow
from sweeps.store.store import SavedSweep, Store, StoreError

PUBLISHED = "published/"
SWEEP, IMPORT = "sweep/", "import/"
"""Before a name that would mean something else without it."""


class Planned(NamedTuple):
    """A variant of a sweep's plan, with the name of its row in the results, and the sweep."""

    row: str
    variant: VariantRow
    sweep: str


@dataclass(frozen=True)
class Part:
    """One of several sources that were put together. `names` has the new names of rows that were given one."""

    source: Source
    names: Mapping[str, str]

    def name(self, row: str) -> str:
        return self.names.get(row, row)


@dataclass(frozen=True)
class Source:
    """Results by name. `table` is the long table. `sweep` and `steps`, which a page needs, exist only for a sweep of
    the store; `note` is what people wrote about it. `parts` are what it was put together from. `whole` is what it is a
    selection of. `remarks` are further lines that a reader should know."""

    name: str
    table: pd.DataFrame
    sweep: SavedSweep | None = None
    steps: Steps | None = None
    samples: Samples | None = None
    note: str = ""
    parts: tuple[Part, ...] = ()
    whole: Source | None = None
    remarks: tuple[str, ...] = ()

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
        own = [*self._own_origins, *filter(None, [outdated, self.note and f"note: {self.note}"])]
        of_parts = [f"{part.source.name}: {note}" for part in self.parts for note in part.source.notes]
        return [*own, *of_parts, *self.remarks]

    @cached_property
    def whose(self) -> list[str]:
        """Whose results these are, as far as they were unpacked; a line each, which figures show too."""
        of_parts = [f"{part.source.name}: {line}" for part in self.parts for line in part.source.whose]
        return [*self._own_origins, *of_parts]

    @cached_property
    def _own_origins(self) -> list[str]:
        return self.steps.whose() if self.steps else []

    @cached_property
    def results(self) -> Results:
        """A row per layout, seeds in one (statistics.results.by_layout), compared by samples where there are any. A
        selection is compared anew, with its baselines even where these were not selected."""
        if self.whole is None:
            return by_layout(self.table, self.samples)
        return self.whole.results.select(row_names(self.table), references=True)

    @cached_property
    def planned(self) -> list[Planned]:
        """The variants of the plan, or of the plans of all parts; empty where there is no plan."""
        variants = self.sweep.variants if self.sweep else []
        names = replicates.groups(variants)
        own = [Planned(names.get(each.variant, each.variant), each, self.name) for each in variants]
        of_parts = [each._replace(row=part.name(each.row)) for part in self.parts for each in part.source.planned]
        return [*own, *of_parts]

    def history(self, step: str) -> Rows:
        """What a step of a sweep has logged; nothing of other results."""
        of_parts = (history for part in self.parts if (history := part.source.history(step)))
        return self.steps.history(step) if self.steps else next(of_parts, [])


def row_names(table: pd.DataFrame) -> list[str]:
    """The rows that a long table has in its results, each once."""
    return list(dict.fromkeys(table["replicate_of"].fillna(table["variant"]).tolist()))


def load(store: Store, name: str, number: int | None = None) -> Source:
    """The results called `name`; `number` is a plan of a sweep (default: its latest). A published set needs no store.
    `sweep/NAME` and `import/NAME` are the same as NAME.

    Raises StoreError for an unknown name, listing the known ones, for a name that a sweep and an import share, and for
    a damaged import.
    """
    if name.startswith(PUBLISHED):
        return published_source(name)
    kind = next((kind for kind in (SWEEP, IMPORT) if name.startswith(kind)), "")
    name = name.removeprefix(kind)
    if name in store.import_names() and kind != SWEEP:
        if name in store.sweep_names() and not kind:
            raise StoreError(f"{name}: is a sweep and an import; name {SWEEP}{name} or {IMPORT}{name}")
        return Source(name, _read_import(store.imported(name)))
    if name not in store.sweep_names() or kind == IMPORT:
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
