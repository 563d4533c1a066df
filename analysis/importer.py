"""Results that other people's runs left behind: lm-eval result files and a measurement table, in our schema."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import frame
from analysis.frame import Row
from analysis.published import layout_rows

ACCURACY = (("arc_easy", "acc"), ("lambada_openai", "acc"), ("piqa", "acc"), ("sciq", "acc"))
"""What the MLKV paper averages."""


def import_results(directory: Path) -> pd.DataFrame:
    """The MLKV authors' raw files (`*_results.json` of lm-eval, `measurements.csv`) as a long table.

    Variants are named and described as in the published set `mlkv`. Raises ValueError for a directory without them.
    """
    evaluations = {variant_name(path.name): path for path in sorted(directory.glob("*_results.json"))}
    if not evaluations:
        raise ValueError(f"directory = {directory}: has no *_results.json of lm-eval")
    known = layout_rows("mlkv")
    cells = [(name, cell) for name, path in evaluations.items() for cell in evaluation_cells(path, ACCURACY)]
    if (measurements := directory / "measurements.csv").exists():
        cells += measurement_cells(measurements)
    order = list(known)
    cells.sort(key=lambda cell: order.index(cell[0]))
    return frame.make({**known[name], **cell, "state": "PUBLISHED"} for name, cell in cells)


def variant_name(text: str) -> str:
    """`mlkv_6_results.json`, `…/pythia-160m-mlkv-6-b12-g2-v1` → `MLKV-6`. Raises ValueError for an unknown model."""
    if found := re.search(r"(gqa|mqa|mlkv)[-_](\d+)", text):
        return f"{found[1].upper()}-{found[2]}"
    for part, name in (("random", "Random init"), ("base", "MHA-144"), ("pythia-160m-deduped", "MHA-144")):
        if part in text:
            return name
    raise ValueError(f"model = {text}: none of gqa, mqa, mlkv with its KV heads, base, random")


def evaluation_cells(path: Path, accuracy: tuple[tuple[str, str], ...] = ()) -> Iterator[Row]:
    """A cell for every score of an lm-eval result file, old format and new."""
    found = json.loads(path.read_text(encoding="utf-8"))
    counts = found.get("n-samples", {})
    for task, scores in found["results"].items():
        for metric, value, stderr in _scores(scores):
            yield {
                "kind": "evaluate",
                "task": task,
                "metric": metric,
                "value": value,
                "stderr": stderr,
                "n": counts.get(task, {}).get("effective"),
                "in_axis": False,
                "in_accuracy": (task, metric) in accuracy,
                "reason": path.name,
            }


def _scores(scores: Mapping[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    """(metric, value, stderr) of `acc,none` with `acc_stderr,none`; an N/A stderr is none."""
    for key, value in scores.items():
        metric, _, variety = key.partition(",")
        if variety and not metric.endswith("_stderr") and isinstance(value, int | float):
            stderr = scores.get(f"{metric}_stderr,{variety}")
            yield metric, float(value), float(stderr) if isinstance(stderr, int | float) else None


def measurement_cells(path: Path) -> Iterator[tuple[str, Row]]:
    """(variant, cell) of the authors' memory measurements.

    Steps done = speed · time / batch. A cache of 2,000 tokens was handed in, so the context is 2,000 + steps.
    """
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            batch, speed, seconds = int(row["batch_size"]), float(row["inference_speed"]), float(row["inference_time"])
            common = {"kind": "measure", "batch": batch, "context": 2000 + round(speed * seconds / batch)}
            scores = {
                "cache_bytes": float(row["kv_cache_mem"]) * 2**20,
                "memory_bytes": float(row["memory_usage"]) * 2**20,
                "tokens_per_second": speed,
            }
            for metric, value in scores.items():
                yield variant_name(row["model_name"]), {**common, "metric": metric, "value": value, "reason": path.name}
