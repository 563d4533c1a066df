"""lm-eval's tasks with their questions, for the next checkpoint that a process scores: they are made once.

Questions do not depend on the model, nor on its tokenizer: they are texts. Their number, the worked examples before
them and the seed that draws these stand in the recipe.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask

from ..recipes import EvaluateRecipe
from .task_files import TaskCopy

MOST_REQUESTS = 100_000
"""Of all tasks in the cache: with a few worked examples some hundred megabytes."""

_cache: OrderedDict[Hashable, Any] = OrderedDict()


@contextmanager
def cached_task(
    recipe: EvaluateRecipe, folder: Path, corpus: Path | None, own: TaskCopy | None, load: Callable[[], Any]
) -> Iterator[Any]:
    """What lm-eval's `evaluate` takes: as it is loaded, or with the questions that it had before."""
    key = _key(recipe, folder, corpus, own)
    loaded = _cache.pop(key, None)
    if loaded is None:
        loaded = load()
    else:
        for task in loaded["tasks"].values():
            _reset(task)
    yield loaded  # what fails is not cached
    # Questions of a given length are made for one tokenizer.
    if not recipe.lengths and all(type(task) is ConfigurableTask for task in loaded["tasks"].values()):
        _cache[key] = loaded
    while sum(map(_requests, _cache.values())) > MOST_REQUESTS:
        _cache.popitem(last=False)


def forget() -> None:
    """Empty the cache, as in a process that begins."""
    _cache.clear()


def _key(recipe: EvaluateRecipe, folder: Path, corpus: Path | None, own: TaskCopy | None) -> Hashable:
    """What decides the questions. A corpus or a copy that is made anew has another time of change."""
    counts = recipe.few_shot
    few_shot = tuple(sorted(counts.items())) if isinstance(counts, dict) else counts
    definition = own.folder.resolve() if own else folder.resolve()
    items = corpus and (corpus.resolve(), (corpus / "manifest.json").stat().st_mtime_ns)
    return recipe.task, few_shot, recipe.limit, recipe.seed, definition, definition.stat().st_mtime_ns, items


def _reset(task: Any) -> None:
    """Take the answers of the last checkpoint from a task. lm-eval would make its questions again for each."""
    for instance in task.instances:
        instance.resps, instance.filtered_resps = [], {}
    task.build_all_requests = lambda **settings: None


def _requests(loaded: Any) -> int:
    return sum(len(task.instances) for task in loaded["tasks"].values())
