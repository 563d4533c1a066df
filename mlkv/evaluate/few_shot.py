"""How many worked examples a task's own definition puts before a question, read from its files; nothing is imported.

lm-eval's rules (lm_eval/tasks/_factory.py, 0.4.13): a file inherits from those that it includes; a group's settings
apply to its members, and a member's entry in a group wins over both; a tag stands for several tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from .task_names import TASKS_FOLDER, lm_eval_definitions, own_tasks
from .tasks import TASKS

Counts = dict[str, int | None]
"""Task → its own number of examples. None, where its definition says nothing, means 0 that may be overridden; a 0 that
is written out may not."""
SHOTS = "num_fewshot"
Settings = Mapping[str, int | None]
"""The one setting that counts here, `num_fewshot`; empty where a definition does not set it."""


@dataclass(frozen=True)
class Definition:
    """A task or a group, from a file or from an entry of a group: the part that decides numbers of examples."""

    name: str | None
    """None where the file names none, or an entry forgot it."""
    is_group: bool
    tags: tuple[str, ...]
    settings: Settings
    members: tuple[Definition, ...]
    """A group's entries."""


def own_counts(name: str, folder: Path = TASKS_FOLDER) -> Counts:
    """The count of a task, or those of all tasks in a group or tag. Raises ValueError where a file is no definition."""
    own = own_tasks(folder)
    if name in own:
        return {name: _definition(_read(own[name])).settings.get(SHOTS)}
    if name in TASKS:
        return {name: None}
    return _counts(name, {})


def _counts(name: str, inherited: Settings) -> Counts:
    definition, tagged = _find(name)
    if definition is None:
        return {task: count for each in tagged for task, count in _counts(each, inherited).items()}
    if definition.is_group:
        return _members(name, definition, inherited)
    return {name: {**definition.settings, **inherited}.get(SHOTS)}


def _members(group: str, definition: Definition, inherited: Settings) -> Counts:
    settings = {**definition.settings, **inherited}
    counts: Counts = {}
    for entry in definition.members:
        counts |= _member(group, entry, settings)
    return counts


def _member(group: str, entry: Definition, inherited: Settings) -> Counts:
    """One entry of a group: a task, tag or group by name, or one that is defined in the entry."""
    if entry.name is None:
        raise ValueError(f"group {group} has a member without a name, which lm-eval cannot run")
    settings = {**inherited, **entry.settings}
    if any(_find(entry.name)):
        return _counts(entry.name, settings)
    if entry.is_group:
        return _members(f"{group}::{entry.name}", entry, inherited)
    return {f"{group}::{entry.name}": settings.get(SHOTS)}


@cache
def _find(name: str) -> tuple[Definition | None, tuple[str, ...]]:
    """lm-eval's task or group of that name, or else the tasks with that tag."""
    tagged: list[str] = []
    for path in lm_eval_definitions(name):
        definition = _definition(_read(path))
        if definition.name == name:
            return definition, ()
        if definition.name and not definition.is_group and name in definition.tags:
            tagged.append(definition.name)
    return None, tuple(sorted(set(tagged)))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Leaves the name of a `!function` as text: calling it is what would need the task's code."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The YAML of a file and of those that it includes."""
    try:
        values = yaml.load(path.read_text("utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict) or path in above:
        raise ValueError(f"{path}: {'includes itself' if path in above else 'is no task definition'}")
    included = values.pop("include", [])
    inherited: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        inherited |= _read(path.parent / name, (*above, path))
    return inherited | values


def _definition(values: str | Mapping[str, Any]) -> Definition:
    if isinstance(values, str):  # an entry of a group may be a name alone
        return Definition(values, False, (), {}, ())
    is_group = "group" in values and "class" not in values  # a task of a Python class may name its group
    name, task, tags = values.get("group" if is_group else "task"), values.get("task"), values.get("tag") or ()
    return Definition(
        name if isinstance(name, str) else None,
        is_group,
        (tags,) if isinstance(tags, str) else tuple(tags),
        {SHOTS: values[SHOTS]} if SHOTS in values else {},
        tuple(map(_definition, task)) if is_group and isinstance(task, list) else (),
    )
