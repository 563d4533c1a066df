"""Evaluation tasks of one's own: YAML files given by path, in the `tasks/` of `--config-dir`, or below
`evaluate.include_path`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from os.path import abspath, expanduser
from pathlib import Path
from typing import Any

from mlkv.context import StepFailed
from mlkv.evaluate.definitions import Function
from mlkv.evaluate.task_checks import check_definition
from mlkv.evaluate.task_files import TaskCopy, TaskFiles, collect, name_of, names_in
from mlkv.evaluate.task_names import own_tasks
from mlkv.evaluate.tasks import TASKS
from mlkv.files import Json
from mlkv.recipes import EvaluateRecipe
from sweeps.planning.scalars import check_texts
from sweeps.store.errors import UserError
from sweeps.store.files import read_cache, write_json
from sweeps.store.user_cache import user_cache

FOLDER = "tasks"
"""Where definitions lie in the directory that `--config-dir` names."""
_SUFFIXES = (".yaml", ".yml")
_TRIED, _MOST_TRIED = "tried.json", 1000
"""The file in the user's cache that lists tasks which lm-eval has loaded, and how many."""
MOST_FILES = 100_000
"""In a folder of definitions; lm-eval's own has 16,000. To search `/` takes minutes."""


class OwnTasks:
    """Finds definitions and their files; each is read once."""

    def __init__(self, config_dir: Path | None = None) -> None:
        self._folders = (config_dir / FOLDER,) if config_dir and (config_dir / FOLDER).is_dir() else ()
        self._given: dict[str, Path] = {}
        """Task → the file that was named by its path."""
        self._indexes: dict[tuple[Path, ...], tuple[dict[str, list[Path]], list[str]]] = {}
        self._files: dict[tuple[str, str | None], TaskFiles | None] = {}
        self._tried: set[tuple[str, EvaluateRecipe]] = set()

    def named(self, values: Json, lines: Sequence[str]) -> Json:
        """The configuration with names of tasks in place of paths, and a list where one task is given alone. Scores of
        tasks that the line replaced by others go with them. Raises UserError for a file that defines no task."""
        evaluate = values.get("evaluate")
        if not isinstance(evaluate, dict) or not evaluate.get("tasks"):
            return values
        tasks = [evaluate["tasks"]] if isinstance(evaluate["tasks"], str) else evaluate["tasks"]
        if not _are_texts(tasks) or not all(map(_are_scores, (evaluate.get("accuracy"), evaluate.get("axis")))):
            return values  # which the schema refuses
        check_texts({"evaluate": evaluate})
        names = {task: self._name(task) for task in tasks}
        own: Json = {"tasks": list(names.values())}
        if isinstance(evaluate.get("few_shot"), dict):
            own["few_shot"] = {names.get(task, task): count for task, count in evaluate["few_shot"].items()}
        scored = {key: _renamed(evaluate[key], names) for key in ("accuracy", "axis") if evaluate.get(key)}
        chosen = {line.partition("=")[0].lstrip("+") for line in lines}
        if "evaluate.tasks" in chosen:
            left = {key: _among(scored[key], own["tasks"]) for key in scored if f"evaluate.{key}" not in chosen}
            scored |= left
        if converted := evaluate.get("converted"):
            scored["converted"] = _converted(converted, names, chosen)
        return {**values, "evaluate": {**evaluate, **own, **scored}}

    def _name(self, task: Any) -> Any:
        if not isinstance(task, str) or not _is_path(task):
            return task
        path = Path(expanduser(task))
        if not path.is_file():
            raise UserError(f"evaluate.tasks = {task}: no such file")
        path = Path(abspath(path))
        try:
            name = name_of(path)
        except ValueError as error:
            raise UserError(f"evaluate.tasks: {error}") from None
        if self._given.setdefault(name, path) != path:
            raise UserError(f"evaluate.tasks = {task}: {self._given[name]} defines {name} too; rename one")
        return name

    def definitions(self, name: str, include_path: str | None) -> Mapping[str, Path]:
        """Task → definition, of all that are found beside that of `name`. Raises UserError where two files define
        it."""
        folders = [*self._folders, *([_existing(include_path)] if include_path else [])]
        found, _ = self._index(tuple(folders))
        given = self._given.get(name)
        beside = self._index((given.parent,), deep=False)[0] if given else {}
        merged = {**found, **beside, **({name: [given]} if given else {})}
        if len(paths := merged.get(name, [])) > 1:
            raise UserError(f"evaluate.tasks: {name} is defined by {paths[0]} and by {paths[1]}; rename one")
        return {key: paths[0] for key, paths in merged.items()}

    def faults(self, include_path: str | None) -> list[str]:
        """What is wrong with files that might define a task which is not found."""
        folders = [*self._folders, *([_existing(include_path)] if include_path else [])]
        return self._index(tuple(folders))[1]

    def _index(self, folders: tuple[Path, ...], deep: bool = True) -> tuple[dict[str, list[Path]], list[str]]:
        if folders not in self._indexes:
            found = (path for folder in folders for path in _listed(folder, deep) if path.suffix in _SUFFIXES)
            paths = sorted({Path(abspath(path)) for path in found if path.is_file()})
            self._indexes[folders] = names_in(paths)
        return self._indexes[folders]

    def files(self, name: str, include_path: str | None) -> TaskFiles | None:
        """The files of a task of one's own; None for any other. Raises UserError for what cannot be a task."""
        key = name, include_path
        if key not in self._files:
            self._files[key] = self._collected(name, include_path)
        return self._files[key]

    def _collected(self, name: str, include_path: str | None) -> TaskFiles | None:
        definitions = self.definitions(name, include_path)
        if name not in definitions:
            return None
        if name in own_tasks() or name in TASKS:
            raise UserError(f"evaluate.tasks: {definitions[name]}: a task {name} exists already; rename yours")
        try:
            files = collect(name, definitions)
            for path in files.definitions:
                check_definition(path, definitions)
        except (ValueError, OSError) as error:
            raise UserError(f"evaluate.tasks: {error}") from None
        return files

    def try_out(self, files: TaskFiles, recipe: EvaluateRecipe) -> None:
        """Have lm-eval load a task whose data is on this machine, and write its first question. Raises UserError where
        that fails. What went well is kept in the user's cache: lm-eval takes seconds to import."""
        if not files.data or (files.digest, recipe) in self._tried:
            return
        self._tried.add((files.digest, recipe))
        if (key := _try_key(files, recipe)) in (known := read_cache(user_cache(_TRIED))):
            return
        from mlkv.evaluate.harness import try_task

        own = TaskCopy(Path(), files.name, files.definitions, files.data)
        try:
            try_task(own, recipe, user_cache("datasets"))
        except StepFailed as error:
            raise UserError(f"evaluate.tasks: {error}") from None
        with suppress(OSError):  # where the cache cannot be written, the next plan tries again
            write_json(user_cache(_TRIED), dict([*known.items(), (key, files.name)][-_MOST_TRIED:]))


def _try_key(files: TaskFiles, recipe: EvaluateRecipe) -> str:
    """Of everything that decides how a try ends: the task's files, how it is asked, and the libraries that ask."""
    libraries = [version(name) for name in ("lm_eval", "datasets", "jinja2")]
    return hashlib.sha256(json.dumps([files.digest, asdict(recipe), libraries]).encode()).hexdigest()


def _is_path(task: str) -> bool:
    return task.endswith(_SUFFIXES) or task.startswith((".", "/", "~"))


def _existing(include_path: str) -> Path:
    folder = Path(expanduser(include_path))
    if not folder.is_dir():
        raise UserError(f"evaluate.include_path = {include_path}: no such directory")
    return folder


def _are_texts(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(each, str) for each in given)


def _are_scores(given: Any) -> bool:
    """(task, metric) pairs, one pair, or none."""
    return given is None or _are_texts(given) or (isinstance(given, list) and all(map(_are_texts, given)))


def _listed(folder: Path, deep: bool) -> Iterator[Path]:
    """What lies in a folder, and below it. Folders that cannot be listed, or are gone by then, define no task. Raises
    UserError for a folder that holds more than definitions of tasks."""
    count = 0
    for place, folders, files in os.walk(folder):
        count += len(files)
        if count > MOST_FILES and deep:
            raise UserError(
                f"evaluate.tasks: {folder} (evaluate.include_path, or {FOLDER}/ of --config-dir) holds more than "
                f"{MOST_FILES:,} files; give the folder in which the definitions of the tasks lie"
            )
        yield from (Path(place) / name for name in files)
        if not deep:
            folders.clear()


def _renamed(scored: Any, names: Mapping[Any, Any]) -> Any:
    """(task, metric) pairs, or one pair."""
    if isinstance(scored, list) and scored and isinstance(scored[0], list):
        return [_renamed(pair, names) for pair in scored]
    return [names.get(scored[0], scored[0]), *scored[1:]] if isinstance(scored, list) and scored else scored


def _converted(given: Any, names: Mapping[Any, Any], chosen: Collection[str]) -> Any:
    """`evaluate.converted` by names. An option's own go with the tasks that a line or an experiment replaced."""
    tasks = [given] if isinstance(given, str) else given
    if not _are_texts(tasks):
        return given  # which the schema refuses
    if "evaluate.converted" not in chosen:
        replaced = "evaluate.tasks" in chosen
        shipped = [task for task in tasks if task not in names and (task in TASKS or task in own_tasks())]
        tasks = [task for task in tasks if task in names or not (replaced or task in shipped)]
    return [names.get(task, task) for task in tasks]


def _among(scored: Any, tasks: Sequence[str]) -> Any:
    if not isinstance(scored, list) or not scored:
        return scored
    if isinstance(scored[0], list):
        return [pair for pair in scored if pair and pair[0] in tasks]
    return scored if scored[0] in tasks else None


_DEFAULT_METRICS = {"multiple_choice": "acc", "loglikelihood": "acc", "generate_until": "exact_match"}
"""What lm-eval records where a definition lists no metrics (DEFAULT_METRIC_REGISTRY, lm-eval 0.4.13): of each type, the
first that is better when higher."""


def accuracy_of(values: Mapping[str, Any]) -> str | None:
    """The first metric of a definition that is better when higher, as results name it; None where there is none, or
    where only the task's own code could say."""
    is_group = "group" in values
    listed = values.get("aggregate_metric_list" if is_group else "metric_list")
    if listed is None:
        metric = None if is_group else _DEFAULT_METRICS.get(values.get("output_type", "generate_until"))
    else:
        entries = [entry for entry in (listed if isinstance(listed, list) else [listed]) if isinstance(entry, Mapping)]
        metric = next((entry.get("metric") for entry in entries if entry.get("higher_is_better", True)), None)
    if not isinstance(metric, str) or isinstance(metric, Function):
        return None
    filters = values.get("filter_list")
    first = filters[0] if isinstance(filters, list) and filters else None
    name = first.get("name", "none") if isinstance(first, Mapping) else "none"
    return metric if name == "none" else f"{metric},{name}"
