"""Scores of many layouts as a small file that a repository can keep: a line for each layout and seed.

`analysis/reference/layout_scores.csv` is such a file; `mlkv gather NAME --layouts FILE` adds what a sweep has so far.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from math import lcm
from pathlib import Path

import pandas as pd

from analysis.data import frame
from analysis.data.frame import Row
from mlkv.layout import KVLayout
from mlkv.patterns import EXPLICIT, family_of, name_of
from sweeps.store.schema import CONVERTED

COLUMNS = (
    "set",
    "model",
    "baseline",
    "sources",
    "kv_heads",
    "kv_bytes_per_token",
    "parameters",
    "seed",
    "tokens",
    "bits_per_byte",
    "stderr",
    "converted",
    "converted_stderr",
    "source",
)
"""set: the sweep. sources, kv_heads: the layer that each layer reads, and the heads of each owner. seed, tokens: of
uptraining; empty for the untouched base. bits_per_byte, converted: after and before uptraining, with their standard
errors over the text. source: the line that makes it."""
SCORE = "bits_per_byte"
_KEY = ("set", "model", "baseline", "sources", "kv_heads", "seed", "tokens")
"""What tells lines apart."""
Line = dict[str, str]


def lines_of(table: pd.DataFrame, name: str, source: str) -> list[Line]:
    """A line for each scored variant of a long table, but those whose keys and values are apart or that cache anything
    else. Raises ValueError where there is none, and where two variants would have one line."""
    variants: dict[str, list[Row]] = {}
    for row in frame.records(table):
        variants.setdefault(row["variant"], []).append(row)
    found: dict[tuple[str, ...], tuple[str, Line]] = {}
    for variant, rows in variants.items():
        line = _line(rows, name, source) if _is_plain(rows[0]) else None
        if line and line[SCORE]:
            other, _ = found.setdefault(_key(line), (variant, line))
            if other != variant:
                raise ValueError(f"{name}: {other} and {variant} have one layout, seed and number of tokens")
    if not found:
        raise ValueError(f"{name}: no variant is scored by {SCORE} yet")
    return [line for _, line in found.values()]


def _is_plain(row: Row) -> bool:
    return bool(row["sources"]) and "+" not in f"{row['sources']} {row['kv_heads']}" and not row["latent"]


def _line(rows: Sequence[Row], name: str, source: str) -> Line:
    own = rows[0]
    sources, heads = own["sources"].split(), own["kv_heads"].split()
    owners = sum(int(each) == layer for layer, each in enumerate(sources))
    values = {
        **{column: own[column] for column in ("model", "baseline", "kv_bytes_per_token", "parameters", "seed")},
        "set": name,
        "sources": own["sources"],
        "kv_heads": " ".join(heads * owners if len(heads) == 1 else heads),
        "tokens": _cell(rows, "uptrain", None, "tokens")[0],
        "source": source,
    }
    for column, kind in (("", "evaluate"), (CONVERTED, CONVERTED)):
        value, stderr = _cell(rows, kind, SCORE, SCORE)
        values |= {column or SCORE: value, "_".join(filter(None, [column, "stderr"])): stderr}
    return {column: _text(values[column]) for column in COLUMNS}


def _cell(rows: Iterable[Row], kind: str, task: str | None, metric: str) -> tuple[float | None, float | None]:
    key = (kind, task, metric)
    found = [row for row in rows if (row["kind"], row["task"], row["metric"]) == key and row["value"] is not None]
    return (found[0]["value"], found[0]["stderr"]) if found else (None, None)


def _text(value: float | str | None) -> str:
    """Eight digits: more than the noise of any seed has."""
    if isinstance(value, float):
        return f"{value:.8g}"
    return "" if value is None else str(value)


def merged(old: Iterable[Line], new: Iterable[Line]) -> list[Line]:
    """Both, a new line in the place of an old one of the same layout, seed and training; by set, model, owners and
    layout, so that a part that is added later stands where it would have stood."""
    lines = {_key(line): line for line in (*old, *new)}
    return sorted(lines.values(), key=_order)


def _key(line: Line) -> tuple[str, ...]:
    return tuple(line[column] for column in _KEY)


def _order(line: Line) -> tuple[object, ...]:
    heads, sources = _numbers(line["kv_heads"]), _numbers(line["sources"])
    roles = ("untouched", "mha", "")
    return (
        line["set"],
        line["model"],
        roles.index(line["baseline"]),
        -len(heads),
        sources,
        heads,
        int(line["seed"] or 0),
        float(line["tokens"] or 0),
    )


def read(path: Path) -> list[Line]:
    """The lines of a file; none where there is no file. Raises ValueError for one with other columns."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file)
        if tuple(lines.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: has other columns than {', '.join(COLUMNS)}")
        return list(lines)


def text_of(lines: Iterable[Line]) -> str:
    """The file's content."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def long_table(lines: Sequence[Line]) -> pd.DataFrame:
    """The lines of one set as a long table of published results. A variant is called by its layout's name and drawing:
    `MLKV-6 [2 ─ 2 ─ 2 ─]`; by its model and its tokens too, where the set has several.

    Standard errors are left out: they are of the choice of text, which all lines share, and would hide every
    difference. What is left is the spread of the seeds.
    """
    rows = []
    for line, own in zip(lines, _identities(lines), strict=True):
        score = {**own, "kind": "evaluate", "task": SCORE, "metric": SCORE}
        rows.append({**score, "in_axis": True, "value": float(line[SCORE])})
        if line[CONVERTED]:
            rows.append({**score, "kind": CONVERTED, "value": float(line[CONVERTED])})
        if line["tokens"]:
            rows.append({**own, "kind": "uptrain", "metric": "tokens", "value": float(line["tokens"])})
    return frame.make(rows)


def _identities(lines: Sequence[Line]) -> list[Row]:
    """What each line's variant is."""
    layouts = _layouts(lines)
    names = [_name(line, layout, lines) for line, layout in zip(lines, layouts, strict=True)]
    seeds = Counter(names)
    labels = [
        f"{name} uptrain.seed={line['seed']}" if seeds[name] > 1 else name
        for name, line in zip(names, lines, strict=True)
    ]
    roles = {_role(line, line["baseline"]): label for line, label in zip(lines, labels, strict=True)}
    return [
        _identity(line, layout)
        | {"variant": label, "replicate_of": name if seeds[name] > 1 else None}
        | {role: roles.get(_role(line, role)) for role in ("untouched", "mha")}
        for line, layout, name, label in zip(lines, layouts, names, labels, strict=True)
    ]


def _role(line: Line, role: str) -> tuple[str, ...]:
    """Which lines have one baseline in this role: all of a model the untouched base, those trained alike the other."""
    return (line["model"], role, *([line["seed"], line["tokens"]] if role == "mha" else []))


def _layouts(lines: Sequence[Line]) -> list[KVLayout]:
    """Raises ValueError for a line that is no layout."""
    numbers = [(_numbers(line["sources"]), _numbers(line["kv_heads"])) for line in lines]
    heads = {line["model"]: 1 for line in lines}
    for line, (_, own) in zip(lines, numbers, strict=True):  # the base's own layout has most
        heads[line["model"]] = lcm(heads[line["model"]], *own)
    return [KVLayout(*own, heads=heads[line["model"]]) for line, own in zip(lines, numbers, strict=True)]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


def _name(line: Line, layout: KVLayout, lines: Sequence[Line]) -> str:
    name = "untouched" if line["baseline"] == "untouched" else f"{name_of(layout)} [{layout.draw()}]"
    trained = [each for each in lines if each["tokens"]]
    several = [
        f"{word}={line[word]}"
        for word in ("model", "tokens")
        if len({each[word] for each in trained}) > 1 and line[word]
    ]
    return " ".join([name, *several])


def _identity(line: Line, layout: KVLayout) -> Row:
    return {
        "sweep": line["set"],
        "baseline": line["baseline"] or None,
        "family": family_of(layout),
        "pattern": EXPLICIT,
        "kv_layers": layout.kv_layers,
        "kv_heads": frame.heads_text(layout.kv_heads),
        "budget": layout.budget,
        "kv_bytes_per_token": int(line["kv_bytes_per_token"]),
        "parameters": int(line["parameters"]),
        "model": line["model"],
        "sources": line["sources"],
        "seed": int(line["seed"]) if line["seed"] else None,
        "overrides": f"uptrain.seed={line['seed']} uptrain.tokens={line['tokens']}" if line["tokens"] else None,
        "in_axis": False,
        "in_accuracy": False,
        "state": "PUBLISHED",
        "reason": line["source"],
    }
