"""lm-evaluation-harness: finding and loading tasks, running them on a model, and reading the results as rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from transformers import set_seed

from ..context import MetricRow, StepFailed
from ..recipes import EvaluateRecipe
from .task_names import ITEM_TASKS, TASKS_FOLDER

BOOTSTRAP = 1000
"""Resamples for the standard error of what is no plain mean (perplexity); lm-eval's own 100,000 take minutes."""

logging.getLogger("lm_eval").setLevel(logging.ERROR)


def score(lm: LM, recipe: EvaluateRecipe, folder: Path, corpus: Path | None, cache: Path) -> dict[str, Any]:
    """lm-eval's results of `recipe.task` for `lm`.

    `folder` holds our task definitions; a task made from held-out text reads its items from `corpus`. Datasets are
    cached under `cache`, answers nowhere. Raises StepFailed for a task whose data cannot be had.
    """
    loaded = _load(recipe, folder, corpus, cache)
    for name, task in loaded["tasks"].items():
        own = task.get_config("num_fewshot")
        count = _examples(recipe, name, own)
        if count and own == 0:
            raise StepFailed(f"few_shot = {count}: task {name} takes none")
        task.set_config(key="num_fewshot", value=count)
        task.set_fewshot_seed(seed=recipe.seed)
    set_seed(recipe.seed)
    results = evaluator.evaluate(lm, loaded, limit=recipe.limit, bootstrap_iters=BOOTSTRAP)
    assert results is not None, "this is the only process"
    return results


def _examples(recipe: EvaluateRecipe, task: str, own: int | None) -> int:
    given = recipe.few_shot.get(task) if isinstance(recipe.few_shot, dict) else recipe.few_shot
    return own or 0 if given is None else given


def _load(recipe: EvaluateRecipe, folder: Path, corpus: Path | None, cache: Path) -> Any:
    task = recipe.task
    try:
        if task in ITEM_TASKS:
            return TaskManager(include_defaults=False).load([_with_items(task, folder, corpus, cache)])
        return _manager(folder).load([task])
    except (OSError, ConnectionError) as error:
        raise StepFailed(f"task = {task}: its data cannot be had: {str(error).splitlines()[0]}") from error


def fetch(task: str) -> None:
    """Have the data of a task downloaded, to be used later without the internet. Raises StepFailed where it cannot."""
    _load(EvaluateRecipe(task), TASKS_FOLDER, None, Path())


@lru_cache(maxsize=2)
def _manager(folder: Path) -> TaskManager:
    return TaskManager(include_path=str(folder))


def _with_items(task: str, folder: Path, corpus: Path | None, cache: Path) -> dict[str, Any]:
    if corpus is None:
        raise StepFailed(f"task = {task}: its items come from a corpus, and this checkpoint has none")
    items = corpus / "tasks" / f"{task}.jsonl"
    if not items.is_file() or not items.stat().st_size:
        raise StepFailed(f"task = {task}: corpus {corpus} was made without its items (task_items = 0)")
    config: dict[str, Any] = yaml.safe_load((folder / f"{task}.yaml").read_text("utf-8"))
    return config | {"dataset_kwargs": {"data_files": {"test": str(items)}, "cache_dir": str(cache)}}


def rows(results: dict[str, Any], task: str) -> list[MetricRow]:
    """Every number that lm-eval reports; the rows of a group's members have the member's name as `subtask`."""
    return [
        row
        for name, values in results["results"].items()
        for row in _rows_of(values, _count(results, name), None if name == task else name)
    ]


def _rows_of(values: dict[str, Any], n: int | None, subtask: str | None) -> Iterator[MetricRow]:
    for key, value in values.items():
        metric, _, filtered = key.partition(",")
        if isinstance(value, int | float) and filtered and not metric.endswith("_stderr"):
            stderr = values.get(f"{metric}_stderr,{filtered}")
            name = metric if filtered == "none" else key
            yield MetricRow(name, _finite(value), _finite(stderr), n, subtask)


def _count(results: dict[str, Any], name: str) -> int | None:
    count = results["n-samples"].get(name)
    return int(count["effective"]) if count else None


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def samples(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Per-sample answers and scores, without the prompts."""
    for task, found in results["samples"].items():
        for sample in found:
            scores = {metric: sample[metric] for metric in sample["metrics"]}
            kept = {key: sample[key] for key in ("doc_id", "target", "filter", "filtered_resps")}
            yield {"task": task, **kept, **scores}
