"""Our rows and published ones in one table: which rows belong together, and which columns they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from analysis.data.frame import Row
from analysis.statistics.columns import split_parts
from analysis.statistics.results import Results

IS_PUBLISHED = "is_published"
ROW = "row"
"""The column with a row's name in its own results."""
_LAYOUT = ("pattern", "kv_layers", "kv_heads")
_SCORED = ("", "_stderr", "_low", "_high", "_tied")


def merge_published(results: Results, published: Results | None = None) -> list[Row]:
    """The rows of a table: ours, each followed by the published one of the same layout, then the remaining published
    ones. `is_published` tells them apart; a published row has our columns as far as it has the same scores."""
    ours = [{**row, IS_PUBLISHED: False, ROW: row["variant"]} for row in results.rows()]
    if published is None:
        return ours
    unmatched = [_translated(row, ours) for row in published.rows()]
    scale = _scale(ours, unmatched)
    merged: list[Row] = []
    for row in ours:
        merged.append(row)
        if match := _match(row, unmatched, scale):
            unmatched.remove(match)
            name = "" if match["variant"] == row["variant"] else f" {match['variant']}"
            merged.append({**match, "variant": f"  published{name}"})
    return [*merged, *({**row, "variant": f"{row['variant']} (published)"} for row in unmatched)]


def _match(ours: Row, theirs: Sequence[Row], scale: float) -> Row | None:
    """The published row of ours: by its role, by its name, else by layout and bytes; where exactly one row fits."""
    if ours["baseline"] == "untouched":
        return _only_one(theirs, lambda row: row["baseline"] == "untouched")
    contenders = [row for row in theirs if row["baseline"] != "untouched"]
    named = _only_one(contenders, lambda row: row["variant"] == ours["variant"])
    return named or _only_one(contenders, lambda row: _ratio(ours, row) == scale)


def _scale(ours: Sequence[Row], theirs: Sequence[Row]) -> float:
    """The ratio of published bytes to ours.

    It is 1 for the experiment itself. The small twin of an experiment has the same layouts in a narrower model, so that
    every published row has the same multiple of its bytes: the ratio that the most rows share. Of several, 1 comes
    first, then the smallest.
    """
    ratios = Counter(ratio for row in ours for ratio in {_ratio(row, other) for other in theirs} if ratio)
    return max(ratios, key=lambda ratio: (ratios[ratio], ratio == 1, -ratio), default=1.0)


def _ratio(ours: Row, theirs: Row) -> float | None:
    """The published bytes per our bytes, of two rows with one layout."""
    if any(ours[key] is None or ours[key] != theirs[key] for key in _LAYOUT):
        return None
    own, other = ours["kv_bytes_per_token"], theirs["kv_bytes_per_token"]
    return round(other / own, 6) if own and other else None


def _only_one(rows: Sequence[Row], wanted: Callable[[Row], bool]) -> Row | None:
    found = [row for row in rows if wanted(row)]
    return found[0] if len(found) == 1 else None


def _translated(row: Row, ours: Sequence[Row]) -> Row:
    """A published row under our columns: `quality` and `accuracy` are there if they are the same scores as ours."""
    translated: Row = {**row, IS_PUBLISHED: True, ROW: row["variant"], "seeds": None}
    if ours and row["quality_score"] != (axis := ours[0]["quality_score"]):
        translated |= {f"quality{end}": row.get(f"{axis}{end}") for end in _SCORED}
        translated |= {**_no_differences("quality"), "front_probability": None}
    if ours and _parts(row) != _parts(ours[0]):
        translated |= {f"accuracy{end}": None for end in _SCORED} | _no_differences("accuracy")
    return translated


def _parts(row: Row) -> set[str]:
    """The scores that a row's mean accuracy averages; their order does not matter."""
    return set(split_parts(row["accuracy_parts"]))


def _no_differences(name: str) -> Row:
    return {f"{name}_vs_{baseline}{end}": None for baseline in ("untouched", "mha") for end in ("", "_p")}
