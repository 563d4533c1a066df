"""RULER's tasks (arXiv 2404.06654) as lm-eval has them: their questions are made for a tokenizer and a length.

lm-eval makes all lengths into one list of questions, of which a limit would take the first length alone, and scores the
other lengths of a question as -1. Here each length is a task of its own, `niah_single_1_8192`, in a group by the task's
name. No torch and no lm-eval but where questions are made: plans read the lengths.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .definitions import read_definition
from .task_names import lm_eval_definitions

FOLDER = "ruler"
"""Of lm-eval's tasks."""
METRIC = "string_match"
"""The share of a question's answers that are in what the model says."""
PACKAGES = ("nltk", "wonderwords")
"""What lm-eval makes the questions with, besides its own dependencies."""


@cache
def definition_of(task: str) -> Path | None:
    """The file that defines one of RULER's tasks; None for any other task, and for the group of all of them."""
    for path in lm_eval_definitions(task):
        if path.parent.name == FOLDER and read_definition(path).get("task") == task:
            return path
    return None


@cache
def offered(task: str) -> tuple[int, ...]:
    """The lengths that lm-eval scores a task of RULER at; none of any other task."""
    path = definition_of(task)
    metrics = read_definition(path).get("metric_list", ()) if path else ()
    return tuple(sorted(int(each["metric"]) for each in metrics))


def chosen(task: str, wanted: Sequence[int], context: int) -> tuple[int, ...]:
    """Those of `wanted`, or without any all that fit in a context of so many tokens. Raises ValueError for a length
    that is not offered or does not fit, and for a package that is not installed."""
    valid = [length for length in offered(task) if length <= context]
    if not offered(task):
        return ()
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ValueError(f"task = {task}: lm-eval makes its questions with {missing[0]}: pip install {missing[0]}")
    listed = ", ".join(map(str, valid)) or f"none: the shortest is {offered(task)[0]}"
    if wrong := [length for length in wanted if length not in valid]:
        raise ValueError(f"lengths = {wrong[0]}: task {task}, in a context of {context} tokens, takes {listed}")
    if not valid:
        raise ValueError(f"task = {task}: a context of {context} tokens has room for {listed}")
    return tuple(wanted) or tuple(valid)


def configs(task: str, lengths: Sequence[int], tokenizer: Path, seed: int) -> list[dict[str, Any]]:
    """lm-eval's definition of a task at each length, for the tokenizer in a folder. What it draws when it loads them
    comes from Python's own random numbers, which begin here at `seed`."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path = definition_of(task)
    assert path is not None
    own = load_yaml(path)
    random.seed(seed)
    return [
        own
        | {
            "task": f"{task}_{length}",
            "dataset_kwargs": {"max_seq_lengths": [length], "tokenizer": str(tokenizer)},
            "process_results": _of_length(own["process_results"], str(length)),
            "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        }
        for length in lengths
    ]


def _of_length(score: Callable[..., dict[str, float]], length: str) -> Callable[..., dict[str, float]]:
    return lambda doc, results: {METRIC: score(doc, results)[length]}


def fetch() -> None:
    """Download what the questions are made of: sentences' ends, which importing does, and the essays."""
    from lm_eval.tasks.ruler.prepare_niah import get_haystack

    get_haystack("essay")
