"""What a task's own definition says of its questions, read from its files: worked examples, and the type of answer.
Nothing is imported.

lm-eval's rules (lm_eval/tasks/_factory.py, 0.4.13): a file inherits from those that it includes; a group's settings
apply to its members, and a member's entry in a group wins over both; a tag stands for several tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .definitions import read_definition
from .task_names import TASKS_FOLDER, lm_eval_definitions, own_tasks
from .tasks import TASKS

Counts = dict[str, int | None]
"""Task → its own number of examples. None, where its definition says nothing, means 0 that may be overridden; a 0 that
is written out may not."""
SHOTS = "num_fewshot"
OUTPUT, GENERATION = "output_type", "generation_kwargs"
Settings = Mapping[str, Any]
"""The settings that count here: SHOTS, OUTPUT and GENERATION, where a definition sets them."""
DEFAULT_ANSWER = 256
"""Tokens of a generated answer where a definition does not say (HFLM.max_gen_toks, lm-eval 0.4.13)."""
_ANSWER = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of that number; the first that is set counts (lm_eval.models.utils.normalize_gen_kwargs)."""


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


def own_counts(name: str, folder: Path = TASKS_FOLDER, given: Mapping[str, Path] = MappingProxyType({})) -> Counts:
    """The count of a task, or those of all tasks in a group or tag. `given`: definitions by name that go before
    lm-eval's. Raises ValueError where a file is no definition."""
    return {task: settings.get(SHOTS) for task, settings in _settings(name, folder, given).items()}


def answer_tokens(
    name: str, folder: Path = TASKS_FOLDER, given: Mapping[str, Path] = MappingProxyType({})
) -> dict[str, int]:
    """Task → tokens of an answer at most, of those tasks in `name` whose answers are generated."""
    return {
        task: _answer(settings.get(GENERATION))
        for task, settings in _settings(name, folder, given).items()
        if settings.get(OUTPUT, "generate_until") == "generate_until"
    }


def _answer(settings: Any) -> int:
    named = [settings[key] for key in _ANSWER if settings.get(key) is not None] if isinstance(settings, Mapping) else []
    return named[0] if named and isinstance(named[0], int) else DEFAULT_ANSWER


def _settings(name: str, folder: Path, given: Mapping[str, Path]) -> dict[str, Settings]:
    own = own_tasks(folder)
    if name in own:
        return {name: _definition(read_definition(own[name])).settings}
    if name in TASKS:
        return {name: {OUTPUT: "function"}}
    return _leaves(name, {}, given)


def _leaves(name: str, inherited: Settings, given: Mapping[str, Path]) -> dict[str, Settings]:
    definition, tagged = _find_among(name, given)
    if definition is None:
        return {task: found for each in tagged for task, found in _leaves(each, inherited, given).items()}
    if definition.is_group:
        return _members(name, definition, inherited, given)
    return {name: {**definition.settings, **inherited}}


def _members(group: str, definition: Definition, inherited: Settings, given: Mapping[str, Path]) -> dict[str, Settings]:
    settings = {**definition.settings, **inherited}
    found: dict[str, Settings] = {}
    for entry in definition.members:
        found |= _member(group, entry, settings, given)
    return found


def _member(group: str, entry: Definition, inherited: Settings, given: Mapping[str, Path]) -> dict[str, Settings]:
    """One entry of a group: a task, tag or group by name, or one that is defined in the entry."""
    if entry.name is None:
        raise ValueError(f"group {group} has a member without a name, which lm-eval cannot run")
    settings = {**inherited, **entry.settings}
    if any(_find_among(entry.name, given)):
        return _leaves(entry.name, settings, given)
    if entry.is_group:
        return _members(f"{group}::{entry.name}", entry, inherited, given)
    return {f"{group}::{entry.name}": settings}


def _find_among(name: str, given: Mapping[str, Path]) -> tuple[Definition | None, tuple[str, ...]]:
    return (_definition(read_definition(given[name])), ()) if name in given else _find(name)


@cache
def _find(name: str) -> tuple[Definition | None, tuple[str, ...]]:
    """lm-eval's task or group of that name, or else the tasks with that tag."""
    tagged: list[str] = []
    for path in lm_eval_definitions(name):
        definition = _definition(read_definition(path))
        if definition.name == name:
            return definition, ()
        if definition.name and not definition.is_group and name in definition.tags:
            tagged.append(definition.name)
    return None, tuple(sorted(set(tagged)))


def _definition(values: str | Mapping[str, Any]) -> Definition:
    if isinstance(values, str):  # an entry of a group may be a name alone
        return Definition(values, False, (), {}, ())
    is_group = "group" in values and "class" not in values  # a task of a Python class may name its group
    name, task, tags = values.get("group" if is_group else "task"), values.get("task"), values.get("tag") or ()
    return Definition(
        name if isinstance(name, str) else None,
        is_group,
        (tags,) if isinstance(tags, str) else tuple(tags),
        {key: values[key] for key in (SHOTS, OUTPUT, GENERATION) if key in values},
        tuple(map(_definition, task)) if is_group and isinstance(task, list) else (),
    )
