"""How many worked examples a task's own definition puts before a question, read from its files; nothing is imported.

lm-eval's rules (lm_eval/tasks/_factory.py, 0.4.13): a file inherits what it includes; a group hands its settings to its
members, and a member's entry in a group wins over both; a tag stands for several tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from .task_names import BITS_PER_BYTE, TASKS_FOLDER, lm_eval_definitions, own_tasks

Settings = Mapping[str, Any]
Counts = dict[str, int | None]
"""Task → its own number of examples. None, where its definition says nothing, means 0 that may be overridden; a 0 that
is written out may not."""
_OF_GROUP = ("group", "group_alias", "task", "aggregate_metric_list", "metadata")
"""Keys of a group that are not handed to its members."""


def own_counts(name: str, folder: Path = TASKS_FOLDER) -> Counts:
    """The count of a task, or those of all tasks in a group or tag. Raises ValueError where a file is no definition."""
    own = own_tasks(folder)
    if name == BITS_PER_BYTE or name in own:
        return {name: _read(own[name]).get("num_fewshot") if name in own else None}
    return _counts(name, {})


def _counts(name: str, handed: Settings) -> Counts:
    definition, tagged = _defined(name)
    if definition is None:
        return {task: count for one in tagged for task, count in _counts(one, handed).items()}
    if "group" in definition and "class" not in definition:
        return _members(name, definition, handed)
    return {name: {**definition, **handed}.get("num_fewshot")}


def _members(group: str, definition: Settings, handed: Settings) -> Counts:
    settings = {key: value for key, value in definition.items() if key not in _OF_GROUP} | dict(handed)
    entries = definition.get("task")
    counts: Counts = {}
    for entry in entries if isinstance(entries, list) else []:
        counts |= _member(group, {"task": entry} if isinstance(entry, str) else entry, settings)
    return counts


def _member(group: str, entry: Settings, handed: Settings) -> Counts:
    """One entry of a group: a task, tag or group by name, or one that is defined on the spot."""
    is_group = "group" in entry
    if not isinstance(name := entry.get("group" if is_group else "task"), str):
        raise ValueError(f"group {group} has a member without a name, which lm-eval cannot run")
    settings = {**handed, **{key: value for key, value in entry.items() if key not in ("group", "task")}}
    if any(_defined(name)):
        return _counts(name, settings)
    if is_group:
        return _members(f"{group}::{name}", entry, handed)
    return {f"{group}::{name}": settings.get("num_fewshot")}


@cache
def _defined(name: str) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """lm-eval's task or group of that name, or else the tasks with that tag."""
    tagged: list[str] = []
    for path in lm_eval_definitions(name):
        definition = _read(path)
        task, tags = definition.get("task"), definition.get("tag") or ()
        if name == (task if "class" in definition else definition.get("group", task)):
            return definition, ()
        if isinstance(task, str) and name in ([tags] if isinstance(tags, str) else tags):
            tagged.append(task)
    return None, tuple(sorted(set(tagged)))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Leaves the name of a `!function` as text: calling it is what would need the task's code."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A definition and what it includes."""
    try:
        definition = yaml.load(path.read_text("utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    if not isinstance(definition, dict) or path in above:
        raise ValueError(f"{path}: {'includes itself' if path in above else 'is no task definition'}")
    included = definition.pop("include", [])
    inherited: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        inherited |= _read(path.parent / name, (*above, path))
    return inherited | definition
