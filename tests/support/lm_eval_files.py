"""Result files as lm-eval writes them, for the tests of the import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from hypothesis import HealthCheck, settings

from analysis.data.importer import Import, read_directory
from analysis.statistics.results import results
from mlkv.files import Json

MMLU = {"mmlu": 0.3, "mmlu_a": 0.2, "mmlu_b": 0.4, "arc": 0.8}
MEMBERS = {"mmlu": ["mmlu_a", "mmlu_b"], "arc": []}
GSM8K = {"exact_match,strict-match": 0.2, "exact_match_stderr,strict-match": 0.02, "exact_match,flexible-extract": 0.3}

few_examples = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""For properties of whole directories, of which each example writes the files."""


def content(
    scores: Mapping[str, float | Mapping[str, Any]],
    args: str | Mapping[str, Any] = "pretrained=me/llama",
    shots: int | Mapping[str, int] = 0,
    version: float = 1.0,
    config: Mapping[str, Any] | None = None,
    **more: Any,
) -> Json:
    """A result file as lm-eval 0.4 writes it; a number is a task's acc."""
    return {
        "results": {
            task: {"alias": task, "acc,none": found, "acc_stderr,none": 0.01} if isinstance(found, float) else found
            for task, found in scores.items()
        },
        "versions": dict.fromkeys(scores, version),
        "n-shot": dict.fromkeys(scores, shots) if isinstance(shots, int) else dict(shots),
        "config": {"model": "hf", "model_args": args, "limit": None, "batch_size": 8, **(config or {})},
        **more,
    }


def write(directory: Path, *contents: Json) -> Path:
    """Each in a file `I/results.json` of its own."""
    for i, found in enumerate(contents):
        path = directory / str(i) / "results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return directory


def scores_of(table: pd.DataFrame, score: str = "arc_easy.acc") -> dict[str, float]:
    task, _, metric = score.partition(".")
    cells = table[(table["task"] == task) & (table["metric"] == metric)]
    return dict(zip(cells["variant"], cells["value"], strict=True))


def means(found: Import) -> dict[str, float | None]:
    pivot = results(found.table)
    return {row["variant"]: row["accuracy"] for row in pivot.rows()}


def read_or_refusal(directory: Path) -> Import | str:
    """What the import reads in a directory, or the message with which it refuses it."""
    try:
        return read_directory(directory)
    except ValueError as refused:
        return str(refused)
