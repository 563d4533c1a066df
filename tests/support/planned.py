"""What tables and figures read of a plan before anything runs."""

from __future__ import annotations

from pathlib import Path

from analysis.statistics.sources import Source, load
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan
from sweeps.store.store import Store


def frozen(plan: Plan, folder: Path) -> Source:
    """The results of a sweep that was just planned, from a store of its own in `folder`."""
    store = Store.open(folder / "store")
    freeze(plan, store, [])
    return load(store, plan.name)
