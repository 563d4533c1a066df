"""Published rows laid beside ours: which belong to which, and what of them answers our columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from analysis import frame
from analysis.frame import Row

PUBLISHED = "is_published"
ROW = "row"
"""What a row is called in its own pivot."""
NOT_PUBLISHED = "not published"
_SCORED = ("", "_stderr", "_low", "_high", "_tied")


def lines(pivot: pd.DataFrame, theirs: pd.DataFrame | None = None) -> list[Row]:
    """The rows of a table: ours, each followed by the published one of the same layout, then the published ones that
    are left. `is_published` tells them apart; a published row has our columns as far as it has the same scores."""
    ours = [{**row, PUBLISHED: False, ROW: row["variant"]} for row in frame.records(pivot)]
    if theirs is None:
        return ours
    left = [_translated(row, ours) for row in frame.records(theirs)]
    found: list[Row] = []
    for row in ours:
        found.append(row)
        if match := _match(row, left):
            left.remove(match)
            called = "" if match["variant"] == row["variant"] else f" {match['variant']}"
            found.append({**match, "variant": f"  published{called}"})
    return [*found, *({**row, "variant": f"{row['variant']} (published)"} for row in left)]


def _match(ours: Row, theirs: Sequence[Row]) -> Row | None:
    """By role, by name, else by shape where only one has it."""
    if ours["baseline"] == "untouched":
        return _only(theirs, lambda row: row["baseline"] == "untouched")
    named = _only(theirs, lambda row: row["variant"] == ours["variant"] and row["baseline"] != "untouched")
    shape = [ours[key] for key in ("kv_layers", "kv_heads", "kv_bytes_per_token")]
    alike = _only(
        theirs,
        lambda row: (
            [row[key] for key in ("kv_layers", "kv_heads", "kv_bytes_per_token")] == shape
            and row["pattern"] == ours["pattern"]
            and row["baseline"] != "untouched"
        ),
    )
    return named or alike


def _only(rows: Sequence[Row], wanted: Callable[[Row], bool]) -> Row | None:
    found = [row for row in rows if wanted(row)]
    return found[0] if len(found) == 1 else None


def _translated(row: Row, ours: Sequence[Row]) -> Row:
    """A published row under our columns: `quality` and `accuracy` are there if they are the same scores as ours."""
    told: Row = {**row, PUBLISHED: True, ROW: row["variant"], "seeds": None}
    if ours and row["quality_score"] != (axis := ours[0]["quality_score"]):
        told |= {f"quality{end}": row.get(f"{axis}{end}") for end in _SCORED}
        told |= _without_drops("quality")
    if ours and row["accuracy_parts"] != ours[0]["accuracy_parts"]:
        told |= {f"accuracy{end}": None for end in _SCORED} | _without_drops("accuracy")
    return told


def _without_drops(name: str) -> dict[str, Any]:
    return {f"{name}_vs_{baseline}{end}": None for baseline in ("untouched", "mha") for end in ("", "_p")}
