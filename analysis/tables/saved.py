"""A report's table in a file beside it, to be printed once more without being computed once more."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from analysis.tables.table import Table
from sweeps.store import typed_json
from sweeps.store.errors import DamagedFileError

TABLE = "results.json"
"""Its name in the folder of a report."""


@dataclass(frozen=True)
class SavedTable:
    """The results table of a sweep as a terminal shows it, and the lines below it that say whose the results are."""

    table: Table
    whose: list[str]

    def as_text(self) -> str:
        return json.dumps(typed_json.as_json(self), ensure_ascii=False) + "\n"


def read_saved(path: Path) -> SavedTable | None:
    """None where there is none that can be read: it can be made again."""
    try:
        return typed_json.load(SavedTable, path)
    except (DamagedFileError, OSError):
        return None
