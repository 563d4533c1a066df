"""The columns of a results table, in their order, with their dtypes.

Each score `x` has four columns: `x` (the value as recorded), `x_stderr`, `x_missing`: why there is no value, and
`x_seeds`: the number of seeds that the value is the mean of (for the main axis: `seeds`).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from analysis.data import frame
from analysis.data.metrics import CONVERTED_PREFIX

GAP = "_gap"
"""Ends the column of how far a converted checkpoint's score is from the base's; `_low` and `_high` behind it end the
95 % interval."""

LATER = ("approximate", "passes", "signatures")
"""Columns that a results.csv written by earlier code does not have."""

BASELINES = ("untouched", "mha")
COMPARED = ("quality", "accuracy")
"""The scores that are compared with the baselines."""
SOURCE = "source"
"""What a row is of (a sweep, an import, a published set): a column where there are several."""
N_SHOT = ".n_shot"
"""Ends the name of a column that holds a task's number of examples."""
_ENDS = {"_stderr": "Float64", "_missing": "string", "_seeds": "Int64"}
"""What follows the name of a score's column, with dtypes."""
_LEADING = {
    **{name: frame.COLUMNS[name] for name in frame.IDENTITY},
    "approximate": "string",
    "passes": "string",
    "signatures": "string",
    "quality_score": "string",
    "quality": "Float64",
    "quality_stderr": "Float64",
    "quality_missing": "string",
    "quality_vs_untouched": "Float64",
    "quality_vs_mha": "Float64",
    "accuracy_parts": "string",
    "accuracy": "Float64",
    "accuracy_stderr": "Float64",
    "accuracy_missing": "string",
    "accuracy_seeds": "Int64",
    "accuracy_vs_untouched": "Float64",
    "accuracy_vs_mha": "Float64",
}
_TRAILING = {
    "seeds": "Int64",
    "seeds_planned": "Int64",
    "measured_bytes_per_token": "Float64",
    "measured_bytes_per_token_missing": "string",
    "tokens_per_second": "Float64",
    "tokens_per_second_stderr": "Float64",
    "tokens_per_second_n": "Int64",
    "machine": "string",
    "state": "string",
    "reason": "string",
    "wall_seconds": "Float64",
    "device_seconds": "Float64",
    "peak_memory_bytes": "Int64",
}


def join_parts(parts: Iterable[str]) -> str | None:
    """The names of scores as one text: a task's name may have a space in it, and stands in quotes then."""
    return shlex.join(parts) or None


def split_parts(joined: str | None) -> list[str]:
    return shlex.split(joined or "")


def columns(scores: Iterable[str], parts: Sequence[str], shots: Iterable[str], *, several: bool = False) -> list[str]:
    """All columns of a table with these scores, these `parts` of the accuracy, and these columns of N_SHOT; `several`:
    of more than one source."""
    recorded = [f"{name}{end}" for name in scores for end in ("", *_ENDS)]
    return [
        *([SOURCE] if several else []),
        *_LEADING,
        *recorded,
        *gap_columns(list(scores)),
        *shots,
        *_TRAILING,
        *comparison_columns([*COMPARED, *parts]),
    ]


def is_converted(column: str) -> bool:
    """Whether a column is of scores of conversions before uptraining."""
    return column.startswith(CONVERTED_PREFIX)


def gap_columns(scores: Iterable[str]) -> list[str]:
    return [f"{name}{GAP}{end}" for name in scores if is_converted(name) for end in ("", "_low", "_high")]


def dtype(column: str) -> str:
    known = {**_LEADING, **_TRAILING, **comparison_columns([*COMPARED, column.removesuffix("_tied")])}
    if column.endswith(N_SHOT):
        return "Int64"
    if column == SOURCE:
        return "string"
    return known.get(column) or next((dtype for end, dtype in _ENDS.items() if column.endswith(end)), "Float64")


def comparison_columns(scores: Sequence[str]) -> dict[str, str]:
    """Names and dtypes of what statistics/compare.py adds for these scores. `_low` and `_high` end the 95 % interval;
    `_tied` says whether the row is the best contender or within noise of it; `_vs_BASELINE_p` is corrected for the
    number of rows (Holm)."""
    added = {f"{name}{end}": "Float64" for name in scores for end in ("_low", "_high")}
    added |= {f"{name}_tied": "boolean" for name in scores}
    added |= {
        f"{name}_vs_{baseline}_{end}": "Float64"
        for name in COMPARED
        for baseline in BASELINES
        for end in ("low", "high", "p")
    }
    return {**added, "front_probability": "Float64"}
