"""Imports what steps need."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterable
from contextlib import suppress


def import_modules(names: Iterable[str]) -> None:
    """Import without collecting garbage, which takes a quarter of the time: it looks again and again at all that
    modules define, and these stay. A module that cannot be imported is left to the step that needs it, which says
    why."""
    missing, collects = [name for name in names if name not in sys.modules], gc.isenabled()
    gc.disable()
    try:
        for name in missing:
            with suppress(Exception):
                importlib.import_module(name)
    finally:
        if collects:
            gc.enable()
