"""Published rows laid beside ours: which belong to which, and what of them answers our columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from analysis.data.frame import Row
from analysis.statistics.results import Results

PUBLISHED = "is_published"
ROW = "row"
"""What a row is called in its own table."""
_LAYOUT = ("pattern", "kv_layers", "kv_heads")
_SCORED = ("", "_stderr", "_low", "_high", "_tied")


def lines(results: Results, theirs: Results | None = None) -> list[Row]:
    """The rows of a table: ours, each followed by the published one of the same layout, then the published ones that
    are left. `is_published` tells them apart; a published row has our columns as far as it has the same scores."""
    ours = [{**row, PUBLISHED: False, ROW: row["variant"]} for row in results.rows()]
    if theirs is None:
        return ours
    left = [_translated(row, ours) for row in theirs.rows()]
    scale = _scale(ours, left)
    found: list[Row] = []
    for row in ours:
        found.append(row)
        if match := _match(row, left, scale):
            left.remove(match)
            called = "" if match["variant"] == row["variant"] else f" {match['variant']}"
            found.append({**match, "variant": f"  published{called}"})
    return [*found, *({**row, "variant": f"{row['variant']} (published)"} for row in left)]


def _match(ours: Row, theirs: Sequence[Row], scale: float) -> Row | None:
    """By role, by name, else by layout and size; where only one has it."""
    if ours["baseline"] == "untouched":
        return _only(theirs, lambda row: row["baseline"] == "untouched")
    contenders = [row for row in theirs if row["baseline"] != "untouched"]
    named = _only(contenders, lambda row: row["variant"] == ours["variant"])
    return named or _only(contenders, lambda row: _ratio(ours, row) == scale)


def _scale(ours: Sequence[Row], theirs: Sequence[Row]) -> float:
    """How many times our bytes theirs are: 1, or for a small twin of an experiment what fits most of its rows."""
    ratios = Counter(ratio for row in ours for ratio in {_ratio(row, other) for other in theirs} if ratio)
    return max(ratios, key=lambda ratio: (ratios[ratio], ratio == 1, -ratio), default=1.0)


def _ratio(ours: Row, theirs: Row) -> float | None:
    """Of two rows of one layout."""
    if any(ours[key] is None or ours[key] != theirs[key] for key in _LAYOUT):
        return None
    own, other = ours["kv_bytes_per_token"], theirs["kv_bytes_per_token"]
    return round(other / own, 6) if own and other else None


def _only(rows: Sequence[Row], wanted: Callable[[Row], bool]) -> Row | None:
    found = [row for row in rows if wanted(row)]
    return found[0] if len(found) == 1 else None


def _translated(row: Row, ours: Sequence[Row]) -> Row:
    """A published row under our columns: `quality` and `accuracy` are there if they are the same scores as ours."""
    told: Row = {**row, PUBLISHED: True, ROW: row["variant"], "seeds": None}
    if ours and row["quality_score"] != (axis := ours[0]["quality_score"]):
        told |= {f"quality{end}": row.get(f"{axis}{end}") for end in _SCORED}
        told |= {**_without_drops("quality"), "front_probability": None}
    if ours and _members(row) != _members(ours[0]):
        told |= {f"accuracy{end}": None for end in _SCORED} | _without_drops("accuracy")
    return told


def _members(row: Row) -> set[str]:
    """What a row's mean is over, in whatever order."""
    return set((row["accuracy_parts"] or "").split())


def _without_drops(name: str) -> dict[str, Any]:
    return {f"{name}_vs_{baseline}{end}": None for baseline in ("untouched", "mha") for end in ("", "_p")}
