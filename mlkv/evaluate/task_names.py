"""The names of evaluation tasks, read from their definition files alone, so that a plan can check them quickly."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib.util import find_spec
from os.path import normpath
from pathlib import Path
from types import MappingProxyType

from .tasks import TASKS

TASKS_FOLDER = Path(__file__).parents[2] / "conf" / "tasks"
"""The folder of our task definitions: conf is installed beside mlkv."""
ITEM_TASKS = ("heldout_cloze", "heldout_choice4", "heldout_choice2")
"""Tasks whose items a corpus makes from its held-out documents."""
RECALL_TASKS = ("recall_copy", "recall_kv", "recall_associative")
"""Groups of generated tasks: a member for each distance of which the corpus has items (mlkv/corpus/recall_items.py)."""

_SUFFIXES = {".yaml", ".yml", ""}
"""Definitions include files without a suffix, and some tags are only in those."""
_NAME = re.compile(r"""^["']?(?:task|group|tag)["']?\s*:[ \t]*["']?([^\s"'#\[]+)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)
_LIST = re.compile(r"""^["']?(?:group|tag)["']?\s*:[ \t]*((?:\n[ \t]*-[^\n]*)+|\[[^\]]*\])""", re.MULTILINE)
_ITEM = re.compile(r"[\w.:+-]*\w[\w.:+-]*")
_INCLUDE = re.compile(r"""^["']?include["']?\s*:((?:\n[ \t]*-[^\n]*)+|[^\n#]*)""", re.MULTILINE)
_FILE = re.compile(r"""[\w./+-]*\w[\w./+-]*""")


@cache
def own_tasks(folder: Path = TASKS_FOLDER) -> Mapping[str, Path]:
    """Names and definition files of the tasks in `folder`, as they are when it is asked for first: plans ask thousands
    of times."""
    return MappingProxyType({path.stem: path for path in sorted(folder.glob("*.yaml"))})


def check_task(name: str, folder: Path = TASKS_FOLDER) -> None:
    """Raises ValueError that lists similar names unless `name` is a task of TASKS, of `folder` or of lm-eval."""
    if name in own_tasks(folder) or name in TASKS:
        return
    known = lm_eval_tasks()
    if name not in known:
        near = get_close_matches(name, [*TASKS, *own_tasks(folder), *known], n=5, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"task = {name}: neither lm-eval nor {folder} has it{hint}")


def lm_eval_tasks() -> tuple[str, ...]:
    """Names of the tasks, groups and tags that the installed lm-eval defines, without importing it (about a second)."""
    return tuple(sorted(_lm_eval().named))


def lm_eval_definitions(name: str) -> list[Path]:
    """The YAML files that define or include a definition of lm-eval's task, group or tag `name`, in lm-eval's order."""
    seen, todo = set[Path](), list(_lm_eval().named.get(name, ()))
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += _lm_eval().included_by.get(str(path), ())
    return sorted((path for path in seen if path.suffix == ".yaml"), key=Path.as_posix)


@dataclass(frozen=True)
class _Definitions:
    named: dict[str, list[Path]]
    """Task, group or tag → files that name it."""
    included_by: dict[str, list[Path]]


@lru_cache(maxsize=1)
def _lm_eval() -> _Definitions:
    spec = find_spec("lm_eval")
    folders = [Path(place) / "tasks" for place in (spec.submodule_search_locations or [])] if spec else []
    named: dict[str, list[Path]] = defaultdict(list)
    included_by: dict[str, list[Path]] = defaultdict(list)
    for path in (path for folder in folders for path in folder.rglob("*") if path.suffix in _SUFFIXES):
        if path.is_file():
            definition = path.read_text("utf-8", "replace")
            for name in _names(definition):
                named[name].append(path)
            for included in (name for listed in _INCLUDE.findall(definition) for name in _FILE.findall(listed)):
                included_by[normpath(f"{path.parent}/{included}")].append(path)
    return _Definitions(named, included_by)


def _names(definition: str) -> set[str]:
    listed = {name for items in _LIST.findall(definition) for name in _ITEM.findall(items)}
    return listed | set(_NAME.findall(definition))
