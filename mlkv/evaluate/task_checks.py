"""What is wrong with a task definition of lm-eval can mostly be seen in it, without running anything."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .definitions import Function, read_definition
from .task_files import members
from .task_names import lm_eval_tasks

OUTPUT_TYPES = ("loglikelihood", "loglikelihood_rolling", "generate_until", "multiple_choice")
_NEEDED = {
    "loglikelihood": ("doc_to_text", "doc_to_target"),
    "loglikelihood_rolling": ("doc_to_target",),
    "generate_until": ("doc_to_text", "doc_to_target"),
    "multiple_choice": ("doc_to_text", "doc_to_target", "doc_to_choice"),
}
_INSTEAD = {"doc_to_text": ("use_prompt",), "doc_to_target": ("use_prompt",), "doc_to_choice": ("use_prompt",)}


def check_definition(path: Path, definitions: Mapping[str, Path]) -> None:
    """Raises ValueError, naming the file and the key, for a task that lm-eval cannot run; `definitions`: task → file of
    those that a group can name besides lm-eval's."""
    values = read_definition(path)
    if "class" in values:
        return
    if "group" in values and isinstance(values.get("task"), list):
        for name in members(values):
            inline = any(isinstance(each, dict) and each.get("task") == name for each in values["task"])
            if name not in definitions and not inline and name not in lm_eval_tasks():
                raise ValueError(
                    f"{path}: task {name} is defined neither beside it nor by lm-eval{_near(name, [*definitions])}"
                )
        return
    _check_keys(path, values)
    for metric in values.get("metric_list") or ():
        if isinstance(metric, Mapping):
            _check_metric(path, metric)


def _check_keys(path: Path, values: Mapping[str, Any]) -> None:
    output = values.get("output_type", "generate_until")
    if output not in OUTPUT_TYPES:
        raise ValueError(f"{path}: output_type = {output}: must be one of {', '.join(OUTPUT_TYPES)}")
    if not values.get("dataset_path") and not values.get("custom_dataset"):
        raise ValueError(f"{path}: has no dataset_path")
    for key in _NEEDED[output]:
        if values.get(key) is None and not any(values.get(other) for other in _INSTEAD[key]):
            raise ValueError(f"{path}: has no {key}, which output_type {output} needs")
    if not values.get("test_split") and not values.get("validation_split"):
        raise ValueError(f"{path}: has no test_split")


def _check_metric(path: Path, metric: Mapping[str, Any]) -> None:
    known = _registered()
    name, aggregation = metric.get("metric"), metric.get("aggregation")
    named = isinstance(name, str) and not isinstance(name, Function) and not metric.get("hf_evaluate")
    if named and name not in known["metric"]:
        near = _near(str(name), known["metric"])
        raise ValueError(
            f"{path}: metric = {name}: lm-eval has none of that name{near}; a metric of the evaluate library needs "
            "hf_evaluate: true"
        )
    if (
        isinstance(aggregation, str)
        and not isinstance(aggregation, Function)
        and aggregation not in known["aggregation"]
    ):
        near = _near(aggregation, known["aggregation"])
        raise ValueError(f"{path}: aggregation = {aggregation}: lm-eval has none of that name{near}")


def _near(name: str, known: list[str]) -> str:
    found = get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


@lru_cache(maxsize=1)
def _registered() -> dict[str, list[str]]:
    """The names of lm-eval's metrics and aggregations, from its source: importing it takes seconds."""
    source = "".join(_sources())
    return {
        "metric": re.findall(r"@register_metric\([^)]*?metric=[\"']([^\"']+)", source),
        "aggregation": re.findall(r"@register_aggregation\(\s*[\"']([^\"']+)", source),
    }


def _sources() -> Iterator[str]:
    spec = find_spec("lm_eval")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted((Path(folder) / "api").glob("*.py")):
            yield path.read_text("utf-8")
