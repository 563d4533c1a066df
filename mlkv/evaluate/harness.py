"""lm-evaluation-harness: load a task, run it on a model, and turn lm-eval's own dictionaries into rows and samples."""

from __future__ import annotations

import io
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import set_seed

from ..context import MetricRow, StepFailed
from ..corpus import tokenizer
from ..corpus.manifest import read_manifest
from ..recipes import EvaluateRecipe
from ..signature import Chance
from . import ruler
from .chance import of_questions
from .outcomes import Sample
from .task_cache import cached_task
from .task_files import TaskCopy, members, with_places
from .task_names import ITEM_TASKS, RECALL_TASKS, TASKS_FOLDER

BOOTSTRAP = 1000
"""Resamples for the standard error of a metric that is no plain mean (perplexity); lm-eval's own 100,000 take minutes.
"""

logging.getLogger("lm_eval").setLevel(logging.ERROR)
# lm-eval forks a pool of processes for its resamples, which may wait for ever for a lock that another thread held; so
# few are as fast without.
os.environ["DISABLE_MULTIPROC"] = "1"


@dataclass(frozen=True)
class Scores:
    """Every number that lm-eval reports of a task, or of a group and its members, the samples behind them, and what
    their accuracies are by chance."""

    rows: list[MetricRow]
    samples: list[Sample]
    chance: dict[str, Chance]


def score(
    lm: LM,
    recipe: EvaluateRecipe,
    folder: Path,
    corpus: Path | None,
    cache: Path,
    own: TaskCopy | None = None,
    checkpoint: Path | None = None,
) -> Scores:
    """lm-eval's scores of `recipe.task` for `lm`.

    `folder` has our task definitions; a task made from held-out text reads its items from `corpus`; `own` has a
    definition of the user's; questions of a given length are made with the tokenizer of `checkpoint`. Datasets are
    cached under `cache`, answers nowhere: lm-eval's cache of answers does not know which model gave them. Raises
    StepFailed for a task whose data cannot be loaded.
    """

    def load() -> Any:
        if recipe.lengths and checkpoint:
            return _as_group(recipe.task, ruler.configs(recipe.task, recipe.lengths, checkpoint, recipe.seed))
        return _load_own(own, cache) if own else _load(recipe, folder, corpus, cache)

    with cached_task(recipe, folder, corpus, own, load) as loaded:
        _set_examples(loaded, recipe)
        set_seed(recipe.seed)
        results = evaluator.evaluate(lm, loaded, limit=recipe.limit, bootstrap_iters=BOOTSTRAP)
        assert results is not None, "this is the only process"
        rows, questions = list(_rows(results, recipe.task)), _questions(results)
        chance = of_questions(loaded["tasks"], questions, rows, of_words=recipe.task in RECALL_TASKS)
        return Scores(rows, list(_samples(results)), chance)


def _set_examples(loaded: Any, recipe: EvaluateRecipe) -> None:
    for name, task in loaded["tasks"].items():
        own = task.get_config("num_fewshot")
        count = _few_shot(recipe, name, own)
        if count and own == 0:
            raise StepFailed(f"few_shot = {count}: task {name} takes none")
        task.set_config(key="num_fewshot", value=count)
        # Each task draws its examples from a generator of this seed, one draw for each question in their order: every
        # checkpoint that is scored with this recipe sees the same examples before the same question.
        task.set_fewshot_seed(seed=recipe.seed)
        if count and count > (found := len(list(task.fewshot_docs()))):
            raise StepFailed(f"few_shot = {count}: task {name} has only {found} examples")


def try_task(own: TaskCopy, recipe: EvaluateRecipe, cache: Path) -> None:
    """Load a task's data and write its first question. Raises StepFailed, naming the definition, where lm-eval cannot
    do that."""
    where = ", ".join(map(str, own.definitions))
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # progress bars of what takes no time
            loaded = _load_own(own, cache)
            _set_examples(loaded, recipe)
            for task in loaded["tasks"].values():
                task.build_all_requests(limit=1, rank=0, world_size=1)
    except StepFailed as error:
        raise StepFailed(f"{where}: {error}") from error
    except Exception as error:  # lm-eval's, the datasets library's, Jinja's, and of the definition's own functions
        reason = " ".join(str(error).split())
        raise StepFailed(f"{where}: {type(error).__name__}{f': {reason}' if reason else ''}") from error


def _load_own(own: TaskCopy, cache: Path) -> Any:
    """A task or group from its files, and those of lm-eval's that a group names."""
    configs = {path: _with_data(load_yaml(path), own, cache) for path in own.definitions}
    names = {
        name
        for config in configs.values()
        for name in (config.get("task"), config.get("group"))
        if isinstance(name, str)
    }
    whole = all(member in names for config in configs.values() for member in members(config))
    manager = TaskManager(include_defaults=not whole)
    for path, config in configs.items():
        name = str(config.get("group") if "group" in config and "class" not in config else config.get("task"))
        manager.task_index.pop(name, None)
        TaskIndex.process_cfg(config, path, manager.task_index)
        manager.task_index[name].yaml_path = None  # else lm-eval would read the file again, without the data's places
    return manager.load([own.name])


def _with_data(config: dict[str, Any], own: TaskCopy, cache: Path) -> dict[str, Any]:
    """The configuration with the places of its data; what the datasets library makes of local files lies in `cache`."""
    if not own.data:
        return config
    # In memory: the next checkpoint is asked the same when this step's files are gone.
    settings = {"cache_dir": str(cache), "keep_in_memory": True}
    settings |= with_places(config.get("dataset_kwargs") or {}, own.data)
    return config | {"dataset_kwargs": settings, "dataset_path": with_places(config.get("dataset_path"), own.data)}


def _few_shot(recipe: EvaluateRecipe, task: str, own: int | None) -> int:
    wanted = recipe.few_shot.get(task) if isinstance(recipe.few_shot, dict) else recipe.few_shot
    return own or 0 if wanted is None else wanted


def _load(recipe: EvaluateRecipe, folder: Path, corpus: Path | None, cache: Path) -> Any:
    task = recipe.task
    try:
        if task in ITEM_TASKS:
            return TaskManager(include_defaults=False).load([_with_items(task, folder, corpus, cache)])
        if task in RECALL_TASKS:
            return _load_recall(task, folder, corpus, cache)
        return _manager(folder).load([task])
    except (OSError, ConnectionError) as error:
        raise StepFailed(f"task = {task}: its data cannot be loaded: {str(error).splitlines()[0]}") from error


def fetch(task: str, own: TaskCopy | None = None) -> None:
    """Download the data of a task, to be used later without the internet. Raises StepFailed where that fails."""
    if own is None and ruler.definition_of(task):
        ruler.fetch()
    elif own is None:
        _load(EvaluateRecipe(task), TASKS_FOLDER, None, Path())
    elif not own.data:
        try_task(own, EvaluateRecipe(task), Path())


@lru_cache(maxsize=2)
def _manager(folder: Path) -> TaskManager:
    return TaskManager(include_path=str(folder))


def _with_items(
    task: str, folder: Path, corpus: Path | None, cache: Path, field: str = "task_items", definition: str | None = None
) -> dict[str, Any]:
    """Our definition of a task, with the corpus's items as its data. `field` of the corpus is how many it makes."""
    items = _corpus_of(task, corpus) / "tasks" / f"{task}.jsonl"
    if not items.is_file() or not items.stat().st_size:
        raise StepFailed(f"task = {task}: corpus {corpus} was made without its items ({field} = 0)")
    config: dict[str, Any] = yaml.safe_load((folder / f"{definition or task}.yaml").read_text("utf-8"))
    settings = {"data_files": {"test": str(items)}, "cache_dir": str(cache), "keep_in_memory": True}
    return config | {"task": task, "dataset_kwargs": settings}


def _corpus_of(task: str, corpus: Path | None) -> Path:
    if corpus is None:
        raise StepFailed(f"task = {task}: its items come from a corpus, and this checkpoint has none")
    return corpus


def _load_recall(group: str, folder: Path, corpus: Path | None, cache: Path) -> Any:
    """A group of our definition at every distance of which the corpus has items, nearest first. Each item begins with
    the end-of-text token, as each row that was trained on: a model that copies may need a token there to attend to
    where nothing is to be copied, and copies nothing without it."""
    made = read_manifest(_corpus_of(group, corpus))
    members = [name for name in made.tasks if name.rpartition("_")[0] == group] or [group]
    configs = [_with_items(name, folder, corpus, cache, "recall_items", group) for name in members]
    end = json.dumps(tokenizer.load(_corpus_of(group, corpus) / "tokenizer").eos_token)
    return _as_group(group, [config | {"doc_to_text": f"{{{{ {end} + context }}}}"} for config in configs])


def _as_group(group: str, configs: Sequence[dict[str, Any]]) -> Any:
    """Tasks of one kind; the group's score is the mean over them."""
    manager = TaskManager(include_defaults=False)
    for config in configs:
        manager.task_index[config["task"]] = Entry(config["task"], Kind.TASK, None, config)
    means = [{"metric": each["metric"], "weight_by_size": False} for each in configs[0]["metric_list"]]
    whole = {"group": group, "task": [config["task"] for config in configs], "aggregate_metric_list": means}
    manager.task_index[group] = Entry(group, Kind.GROUP, None, whole)
    return manager.load([group])


def _rows(results: dict[str, Any], task: str) -> Iterator[MetricRow]:
    """From lm-eval's keys `metric,filter` and `metric_stderr,filter`; `subtask` is the name of a group's member."""
    for name, values in results["results"].items():
        samples = results["n-samples"].get(name)
        n = int(samples["effective"]) if samples else None
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if isinstance(value, int | float) and filtered and not metric.endswith("_stderr"):
                stderr = _finite(values.get(f"{metric}_stderr,{filtered}"))
                label = metric if filtered == "none" else key
                yield MetricRow(label, _finite(value), stderr, n, None if name == task else name)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _samples(results: dict[str, Any]) -> Iterator[Sample]:
    for task, logged in results["samples"].items():
        for each in logged:
            scores = {metric: each[metric] for metric in each["metrics"]}
            yield Sample(
                task, each["doc_id"], each["doc_hash"], each["target"], each["filter"], each["filtered_resps"], scores
            )


def _questions(results: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each once, though it is logged for every filter."""
    for task, logged in results["samples"].items():
        yield from ((task, each["doc"]) for each in {each["doc_id"]: each for each in logged}.values())
