"""The files of analysis/reference, as they are printed; without pandas, as `mlkv plan` reads one of them too."""

from __future__ import annotations

import csv
from importlib.resources import files


def read(name: str) -> list[dict[str, str]]:
    """The rows of a reference file as they are printed."""
    with (files("analysis") / "reference" / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
