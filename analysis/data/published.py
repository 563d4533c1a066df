"""Published figures (reference/*.csv) in the schema of our own results, so that one table or figure can show both.

A published number has the state PUBLISHED and its source as the reason; an unpublished cell is empty and says so.
The CSV files keep the printed digits in the printed unit; `layouts.csv` has (L, H, M, G, head width) of every variant.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

import pandas as pd

from analysis.data import frame, layout_scores
from analysis.data.frame import Row
from analysis.data.reference import read
from mlkv.layout import KVLayout
from mlkv.patterns import make

if TYPE_CHECKING:
    from mlkv.patterns import Position

SETS = {
    "mlkv": "MLKV (arXiv 2406.09297): Pythia-160M, benchmarks, uptraining loss, memory and throughput",
    "cla-1b": "CLA (arXiv 2405.12981) Table 1: 1B design space at a fixed learning rate",
    "cla-1b-tuned": "CLA Tables 3 and 4: 1B, learning rate tuned per model",
    "cla-3b-tuned": "CLA Tables 5 and 6: 3B, learning rate tuned per model",
    "cla-3b-second": "CLA Tables 7 and 8: 3B, second set (other stack and data order)",
    "study-1b": "Systematic study (arXiv 2410.14442) Table 4: 1.1B",
    "ground_truth": "our own: groupings of neighbouring layers on a small base, bits per byte of each seed",
    "ground_truth_recall": "our own: the same on a base that looks back",
    "drawn_layouts": "our own: layouts drawn at random on the small base, as far as they are trained",
    "drawn_layouts_recall": "our own: the same on the base that looks back",
    "spread_recall": "our own: heads spread by scores before training against equal ones, on the base that looks back",
    "spread_six_recall": "our own: the same with an owner in every layer",
    "spread_eight_recall": "our own: the same on eight layers, four owners by the untrained score and even",
    "searched_layouts_recall": "our own: layouts by rules on a base of eight layers that looks back",
}
_OF_EXPERIMENT = {
    "mlkv_table": "mlkv",
    "mlkv_memory": "mlkv",
    "m_spectrum": "mlkv",
    "uptrain_fraction": "mlkv",
    "from_scratch": "mlkv",
    "cla_1b": "cla-1b",
    "cla_patterns": "cla-1b",
    "cla_factors": "cla-1b",
    "cla_lr": "cla-1b-tuned",
    "cla_3b": "cla-3b-tuned",
    "systematic": "study-1b",
}
"""Experiment → the set that it is compared with; no figures are published for the others."""
_UNITS = {"": 1.0, "%": 100.0, "MiB": 2.0**-20}
"""Printed value per stored value."""


def published(name: str) -> pd.DataFrame:
    """One set of published figures as a long table. Raises ValueError that lists the sets."""
    if name not in SETS:
        raise ValueError(f"published set = {name}: choose from {', '.join(SETS)}")
    if own := [line for line in read("layout_scores") if line["set"] == name]:
        return layout_scores.long_table(own)
    layouts = layout_rows(name)
    rows = [row for row in read("figures") if row["set"] == name]
    return frame.make({**layouts[row["variant"]], **_cell(row)} for row in rows)


def set_for(experiment: str) -> str:
    """The set that an experiment is compared with. Raises ValueError for an experiment without one."""
    if experiment not in _OF_EXPERIMENT:
        raise ValueError(f"published: no set for {experiment}; name one: {', '.join(SETS)}")
    return _OF_EXPERIMENT[experiment]


def layout_rows(name: str) -> dict[str, Row]:
    """Identity columns of a set's variants, by variant; baselines named as gather names them."""
    rows = [row for row in read("layouts") if row["set"] == name]
    baselines = {row["baseline"]: row["variant"] for row in rows if row["baseline"]}
    return {row["variant"]: identity(row) | {"sweep": name} | baselines for row in rows}


def identity(row: dict[str, str]) -> Row:
    """Identity columns of a line of a layouts file; an empty value is unknown. Raises ValueError."""
    known = {key: value or None for key, value in row.items()}
    texts = {key: known.get(key) for key in ("variant", "baseline", "family", "pattern", "kv_heads")}
    numbers = {
        key: _count(key, known.get(key) or "0") or None for key in ("kv_layers", "kv_bytes_per_token", "parameters")
    }
    each = [_count("kv_heads", head) for head in (texts["kv_heads"] or "").split()]
    heads, shared = sum(each), len(each) == 1
    if len(each) > 1 and len(each) != (numbers["kv_layers"] or len(each)):
        raise ValueError(f"kv_heads = {texts['kv_heads']}: are {len(each)} KV layers, not {numbers['kv_layers']}")
    return {**texts, **numbers, "budget": (heads * (numbers["kv_layers"] or 0) if shared else heads) or None}


def _count(column: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ValueError(f"{column} = {text}: is no whole number")
    return int(text)


def _cell(row: dict[str, str]) -> Row:
    unit = _UNITS[row["unit"]]
    return {
        **{key: row[key] or None for key in ("kind", "task", "metric")},
        **{key: int(row[key]) if row[key] else None for key in ("batch", "context")},
        **{key: float(row[key]) / unit if row[key] else None for key in ("value", "stderr")},
        **{key: row[key] == "1" for key in ("in_axis", "in_accuracy")},
        "state": "PUBLISHED",
        "reason": row["source"],
    }


def layout_of(row: dict[str, str]) -> KVLayout:
    """Of a row of the layouts that has a pattern. Raises ValueError for one that the pattern does not make."""
    layers, heads, kv_layers, kv_heads = (int(row[key]) for key in ("layers", "heads", "kv_layers", "kv_heads"))
    position = cast("Position", row["position"] or "bottom")
    return make(row["pattern"], layers, heads, kv_layers, kv_heads, position=position)
