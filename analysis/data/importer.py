"""Results that other people's runs left behind: lm-eval result files and measurement tables, in our schema.

A directory may hold `layouts.csv` (columns of reference/layouts.csv, and `model` where results name a variant
otherwise), which says what the variants are; the MLKV authors' own files are known by their names.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.data import frame
from analysis.data.frame import Row
from analysis.data.published import identity, layout_rows

ACCURACY = (("arc_easy", "acc"), ("lambada_openai", "acc"), ("piqa", "acc"), ("sciq", "acc"))
"""What the MLKV paper averages."""
LAYOUTS = "layouts.csv"
_THEIRS = re.compile(r"(base|random|(gqa|mqa|mlkv)_\d+)_results\.json")
_AUTHORS = {"model_name", "batch_size", "kv_cache_mem", "memory_usage", "inference_speed", "inference_time"}
_OURS = {"variant", "batch", "metric", "value"}

Pair = tuple[str, str]
Cells = list[tuple[str, Row]]
"""A model's name and what was found of it."""


def import_results(directory: Path, name: str = "mlkv", accuracy: Sequence[Pair] | None = None) -> pd.DataFrame:
    """The results below `directory` as a long table named `name`: lm-eval's JSON files and CSV files of measurements.

    `accuracy` are the (task, metric) that it averages; by default the MLKV paper's where all are there, else every
    task's `acc`. The last of several results of one score counts. Raises ValueError naming the file and what is wrong.
    """
    evaluations = _evaluations(directory)
    theirs = bool(evaluations) and all(_THEIRS.fullmatch(path.name) for path, _ in evaluations)
    cells = [(_model(path, found, theirs), row) for path, found in evaluations for row in evaluation_cells(path, found)]
    for path in sorted(directory.rglob("*.csv")):
        if path.name != LAYOUTS:
            cells += measurement_cells(path, theirs)
    if not cells:
        raise ValueError(f"directory = {directory}: has neither lm-eval's JSON results nor measurements in CSV")
    known = layout_rows("mlkv") if theirs else _layouts(directory / LAYOUTS)
    return frame.make(_rows(name, cells, known, accuracy))


def _rows(name: str, cells: Cells, known: dict[str, Row], accuracy: Sequence[Pair] | None) -> Iterator[Row]:
    """Variants in the order of `known`, then as found; within one, each score once."""
    found: dict[str, dict[tuple[Any, ...], Row]] = {variant: {} for variant in known}
    for model, row in cells:
        key = tuple(row.get(part) for part in ("kind", "task", "metric", "batch", "context"))
        found.setdefault(model, {})[key] = row
    wanted = set(accuracy if accuracy is not None else _averaged(list(found.values())))
    for variant, rows in found.items():
        for row in rows.values():
            scored = (row.get("task"), row["metric"]) in wanted
            told = {"variant": variant, **known.get(variant, {}), "sweep": name, "state": "IMPORTED"}
            yield {**told, **row, "in_axis": False, "in_accuracy": scored}


def _averaged(variants: list[dict[tuple[Any, ...], Row]]) -> list[Pair]:
    there = [{(row["task"], row["metric"]) for row in rows.values() if row["kind"] == "evaluate"} for rows in variants]
    scored = [pairs for pairs in there if pairs]
    if scored and all(pairs.issuperset(ACCURACY) for pairs in scored):
        return list(ACCURACY)
    return [(task, metric) for task, metric in sorted(set().union(*scored)) if metric == "acc"]


def _evaluations(directory: Path) -> list[tuple[Path, dict[str, Any]]]:
    """lm-eval's result files, oldest first."""
    if not directory.is_dir():
        raise ValueError(f"directory = {directory}: is no directory")
    read = [(path, _json(path)) for path in sorted(directory.rglob("*.json"))]
    results = [(path, found) for path, found in read if isinstance(found, dict) and "results" in found]
    return sorted(results, key=lambda result: result[1].get("date") or 0)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from None


def _model(path: Path, found: Mapping[str, Any], theirs: bool) -> str:
    """Which model a result file is about: by its own word, else by the file's name."""
    if theirs:
        return variant_name(path.name)
    named = found.get("model_name") or (found.get("config") or {}).get("model_args")
    told = named.get("pretrained") if isinstance(named, dict) else named
    if isinstance(told, str) and (given := re.search(r"(?:^|,)pretrained=([^,]+)", told)):
        told = given[1]
    return Path(str(told)).name if told else path.stem.removesuffix("_results")


def variant_name(text: str) -> str:
    """`mlkv_6_results.json`, `…/pythia-160m-mlkv-6-b12-g2-v1` → `MLKV-6`. Raises ValueError for an unknown model."""
    if found := re.search(r"(gqa|mqa|mlkv)[-_](\d+)", text):
        return f"{found[1].upper()}-{found[2]}"
    for part, name in (("random", "Random init"), ("base", "MHA-144"), ("pythia-160m-deduped", "MHA-144")):
        if part in text:
            return name
    raise ValueError(f"model = {text}: none of gqa, mqa, mlkv with its KV heads, base, random")


def _layouts(path: Path) -> dict[str, Row]:
    """Identity columns by the name that results use; none where the directory tells nothing."""
    if not path.exists():
        return {}
    rows = list(_read_csv(path, {"variant"}))
    baselines = {row["baseline"]: row["variant"] for _, row in rows if row.get("baseline")}
    return {row.get("model") or row["variant"]: {**_checked(identity, path, at, row), **baselines} for at, row in rows}


def evaluation_cells(path: Path, found: Mapping[str, Any]) -> Iterator[Row]:
    """A cell for every score of an lm-eval result file, old format and new."""
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
                "reason": path.name,
            }


def _scores(scores: Mapping[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    """(metric, value, stderr) of `acc,none` with `acc_stderr,none`; an N/A stderr is none. Older files: no comma."""
    for key, value in scores.items():
        metric, comma, variety = key.partition(",")
        if metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = scores.get(f"{metric}_stderr{comma}{variety}")
        name = metric if variety in ("", "none") else key
        yield name, float(value), float(stderr) if isinstance(stderr, int | float) else None


def measurement_cells(path: Path, authors: bool = False) -> Cells:
    """(model, cell) of a CSV file of measurements: the MLKV authors' columns, or ours (variant, batch, metric, value
    and, where it is known, context).

    Raises ValueError for other columns, and for a line with something that is no number.
    """
    found = []
    for at, row in _read_csv(path, None):
        theirs, ours = _AUTHORS.issubset(row), _OURS.issubset(row)
        if not theirs and not ours:
            wanted = f"{', '.join(sorted(_OURS))} or {', '.join(sorted(_AUTHORS))}"
            raise ValueError(f"{path}: columns {', '.join(row)}: wanted {wanted}")
        cells = _checked(_authors_cells if theirs else _own_cells, path, at, row)
        model = row["model_name"] if theirs else row["variant"]
        name = variant_name(model) if authors else Path(model).name
        found += [(name, {"kind": "measure", **cell, "reason": path.name}) for cell in cells]
    return found


def _authors_cells(row: dict[str, str]) -> list[Row]:
    """Steps done = speed · time / batch. A cache of 2,000 tokens was handed in, so the context is 2,000 + steps."""
    batch, speed, seconds = _whole(row, "batch_size"), _number(row, "inference_speed"), _number(row, "inference_time")
    common = {"batch": batch, "context": 2000 + round(speed * seconds / batch)}
    scores = {
        "cache_bytes": _number(row, "kv_cache_mem") * 2**20,
        "memory_bytes": _number(row, "memory_usage") * 2**20,
        "tokens_per_second": speed,
    }
    return [{**common, "metric": metric, "value": value} for metric, value in scores.items()]


def _own_cells(row: dict[str, str]) -> list[Row]:
    context = _whole(row, "context") if row.get("context") else None
    cell = {"batch": _whole(row, "batch"), "context": context, "metric": row["metric"], "value": _number(row, "value")}
    return [cell]


def _number(row: dict[str, str], name: str) -> float:
    try:
        return float(row[name])
    except ValueError:
        raise ValueError(f"{name} = {row[name]}: is no number") from None


def _whole(row: dict[str, str], name: str) -> int:
    if not (number := _number(row, name)).is_integer():
        raise ValueError(f"{name} = {row[name]}: is no whole number")
    return int(number)


def _read_csv(path: Path, wanted: set[str] | None) -> Iterable[tuple[int, dict[str, str]]]:
    """Lines by number. Raises ValueError where a wanted column is not there."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if lacking := sorted((wanted or set()) - set(reader.fieldnames or ())):
            raise ValueError(f"{path}: has no column {lacking[0]}")
        yield from ((reader.line_num, {key: value or "" for key, value in row.items()}) for row in reader)


def _checked(reader: Any, path: Path, line: int, row: dict[str, str]) -> Any:
    try:
        return reader(row)
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {error}") from None
