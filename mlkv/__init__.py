"""How few key-value heads can a transformer live with, and where should they sit?

`store = mlkv.load("store")` reads what sweeps left: results, curves, samples, checkpoints, figures (docs/python.md).

This file only forwards to sweeps/api.py, and only when a name is used: checkpoints, engines and every job import parts
of this package and need nothing else of it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # for type checkers it is true; typing itself takes longer to import than all of this
if TYPE_CHECKING:
    from sweeps.api import PlannedSweep, Store, SweepState, load

__all__ = ["PlannedSweep", "Store", "SweepState", "load"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlkv.own_packages import ROOT, overwritten

    if problem := overwritten(ROOT):
        raise ImportError(problem)
    from sweeps import api

    found = globals()[name] = getattr(api, name)  # the next time it is an attribute like any other
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
