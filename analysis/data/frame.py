"""The one schema of results: a long table with a row per planned cell, finished or not.

Every reader (the store, published figures, imported files) makes this table, and every table and figure is a function
of it. A row has a value only where a step is DONE, a figure PUBLISHED or a result IMPORTED; elsewhere `state` and
`reason` say why there is none.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.data.numbers import LARGEST

COLUMNS = {
    "sweep": "string",
    "variant": "string",
    "replicate_of": "string",
    "baseline": "string",
    "untouched": "string",
    "mha": "string",
    "family": "string",
    "pattern": "string",
    "kv_layers": "Int64",
    "kv_heads": "string",
    "budget": "Int64",
    "kv_bytes_per_token": "Int64",
    "cache": "string",
    "parameters": "Int64",
    "model": "string",
    "sources": "string",
    "latent": "string",
    "approximate": "string",
    "passes": "string",
    "lr": "Float64",
    "seed": "Int64",
    "overrides": "string",
    "kind": "string",
    "task": "string",
    "metric": "string",
    "n_shot": "Int64",
    "batch": "Int64",
    "context": "Int64",
    "in_axis": "boolean",
    "in_accuracy": "boolean",
    "value": "Float64",
    "stderr": "Float64",
    "n": "Int64",
    "state": "string",
    "reason": "string",
    "step": "string",
    "code": "string",
    "wandb_run": "string",
    "wall_seconds": "Float64",
    "device_seconds": "Float64",
    "peak_memory_bytes": "Int64",
    "machine": "string",
    "origin": "string",
    "signature": "string",
}
"""Columns and dtypes, the same when the table is empty. `replicate_of` is the name that several seeds of one layout
share; `untouched` and `mha` name the variants that are this one's baselines. `kv_heads` has an entry per owner (`12
12 6`), one where all agree; `sources` has for each layer the one whose keys and values it reads (`0 0 2 2`). Where
those of values are others, both columns have the keys' and the values': `4 + 2`. `budget` is empty where half a KV
head is left. `cache` is `model`, or the format of the packed integers that it was scored and measured with.
`approximate` says why a conversion changes what its base computes before heads are averaged, where it does. `passes`
says what it costs that layers read from above, where they do. `lr` and
`seed` are those of uptraining, and `overrides` has the swept values (`uptrain.lr=0.001 layout.kv_heads=1`). `n_shot`
is the number of worked examples before each question (empty for a group's mean where its tasks differ in it). `n`
counts the samples behind a score, or the repeats behind a measurement, whose `machine` is that of data/machine.py.
`origin` says whose result it is where it was
unpacked (`mlkv unpack`), and is empty for one that was made in this store.
`signature` says what a value or a training shows by a fixed rule: `collapsed: ` or `unstable: ` and why.
`in_axis` and `in_accuracy` mark the cells of the sweep's main quality axis and of its accuracy."""

IDENTITY = (
    "variant",
    "replicate_of",
    "baseline",
    "untouched",
    "mha",
    "family",
    "pattern",
    "kv_layers",
    "kv_heads",
    "budget",
    "kv_bytes_per_token",
    "cache",
    "parameters",
)
"""Columns that say what a variant is, in every one of its rows and in the results."""

Row = dict[str, Any]


def make(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str] = COLUMNS) -> pd.DataFrame:
    """The table of `rows` with these columns and dtypes. NA are absent cells, numbers that are not finite or too large
    to be compared, and negative standard errors."""
    rows = list(rows)
    return pd.DataFrame(
        {
            name: _column([row.get(name) for row in rows], dtype, 0.0 if name.endswith("stderr") else -LARGEST)
            for name, dtype in columns.items()
        }
    )


def _column(values: list[Any], dtype: str, least: float) -> pd.Series:
    if dtype == "Float64":
        numbers = np.array([math.nan if value is None or value is pd.NA else value for value in values], float)
        numbers[~((least <= numbers) & (numbers <= LARGEST))] = math.nan
        return pd.Series(pd.arrays.FloatingArray(numbers, np.isnan(numbers)))
    cleaned = [None if isinstance(value, float) and not math.isfinite(value) else value for value in values]
    return pd.Series(cleaned, dtype=dtype)


def typed(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The table with these columns and dtypes, also of a frame that pandas read from CSV: there a column of texts that
    are whole numbers has become a column of numbers."""
    texts = {name for name, dtype in columns.items() if dtype == "string"}
    return make(({k: _as_text(v) if k in texts else v for k, v in row.items()} for row in records(table)), columns)


def _as_text(value: Any) -> Any:
    return str(int(value)) if isinstance(value, int | float) and value == value // 1 else value


_READ: dict[str, Callable[[str], Any]] = {"Float64": float, "Int64": int, "boolean": "True".__eq__, "string": str}


def read_csv(path: Path) -> pd.DataFrame:
    """A long table that `write_csv` wrote, every value as it was. Raises ValueError that names the line of what
    `write_csv` does not write."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file)
        try:
            if not lines.fieldnames or not COLUMNS.keys() >= set(lines.fieldnames):
                raise ValueError(f"has other columns than {', '.join(COLUMNS)}")
            return make([_parsed(line) for line in lines])
        except (ValueError, csv.Error) as error:
            raise ValueError(f"line {max(lines.line_num, 1)}: {error}") from None


def _parsed(line: Mapping[str | None, Any]) -> Row:
    if None in line or None in line.values():  # as csv marks what is too much and what is missing
        raise ValueError("has another number of cells than the first line")
    row = {name: _READ[COLUMNS[name]](text) for name, text in line.items() if name is not None and text}
    if too_large := [name for name, value in row.items() if isinstance(value, int) and abs(value) >= 2**63]:
        raise ValueError(f"{too_large[0]}: is too large")
    return row


def write_csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False, lineterminator="\n"))


def records(table: pd.DataFrame) -> list[Row]:
    """Rows as plain dicts with None for NA."""
    names = [str(name) for name in table]
    columns = [[None if cell is pd.NA else cell for cell in table[name].tolist()] for name in names]
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def heads_text(kv_heads: Iterable[int]) -> str:
    heads = list(kv_heads)
    return str(heads[0]) if len(set(heads)) == 1 else " ".join(map(str, heads))
