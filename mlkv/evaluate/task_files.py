"""Tasks of lm-eval that one's own YAML files define, with every file that such a definition needs.

What lm-eval reads when it runs a task is what identifies the task: the definition, the files that it includes, the
Python files of its `!function`s and its data on this machine. Nothing is imported or run here, so plans stay fast.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from glob import glob
from os.path import abspath, commonpath
from pathlib import Path
from typing import Any

from .definitions import Function, read_definition, read_file

LISTING = "task.json"
"""The file of a copy that says what is in it."""
_OUTSIDE = "outside"


@dataclass(frozen=True)
class TaskFiles:
    """A task or group, and its files.

    definitions: the YAML files of it and of its members. data: a name in a definition → the files and folders that it
    stands for. files: (name in a copy, place) of all, sorted. names: what the first two hold → its name in a copy.
    """

    name: str
    definitions: tuple[Path, ...]
    data: Mapping[str, tuple[Path, ...]]
    files: tuple[tuple[str, Path], ...]
    names: Mapping[Path, str]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of names and contents."""
        whole = hashlib.sha256(json.dumps(self._listing()).encode())
        for name, path in self.files:
            with path.open("rb") as file:
                whole.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return whole.hexdigest()

    def copy(self, folder: Path) -> None:
        """Into a folder that does not exist."""
        for name, path in self.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        (folder / LISTING).write_text(json.dumps(self._listing(), indent=2) + "\n", "utf-8")

    def _listing(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "definitions": [self.names[path] for path in self.definitions],
            "data": {text: [self.names[path] for path in paths] for text, paths in sorted(self.data.items())},
        }


@dataclass(frozen=True)
class TaskCopy:
    """A copy of a task's files in `folder`, as `TaskFiles.copy` made it."""

    folder: Path
    name: str
    definitions: tuple[Path, ...]
    data: Mapping[str, tuple[Path, ...]]

    @classmethod
    def read(cls, folder: Path) -> TaskCopy:
        """Raises ValueError, OSError or KeyError for what is no copy."""
        listing = json.loads((folder / LISTING).read_bytes())
        data = {text: tuple(folder / name for name in names) for text, names in listing["data"].items()}
        return cls(folder, listing["name"], tuple(folder / name for name in listing["definitions"]), data)

    def check(self, digest: str) -> None:
        """Raises ValueError where the copy is not what was copied."""
        places = [*self.definitions, *(path for group in self.data.values() for path in group)]
        names = {path: path.relative_to(self.folder).as_posix() for path in places}
        found = TaskFiles(self.name, self.definitions, self.data, tuple(sorted(self._files())), names)
        if found.digest != digest:
            raise ValueError(f"its digest is {found.digest[:16]}, not {digest:.16}")

    def _files(self) -> Iterator[tuple[str, Path]]:
        for path in self.folder.rglob("*"):
            if path.is_file() and path.name != LISTING and "__pycache__" not in path.parts:
                yield path.relative_to(self.folder).as_posix(), path


def collect(name: str, definitions: Mapping[str, Path]) -> TaskFiles:
    """The files of the task or group `name`, whose members may be among `definitions` (name → YAML file). Raises
    ValueError that names the file in which something is wrong."""
    chosen = list(dict.fromkeys(_with_members(name, definitions, ())))
    sources: dict[Path, None] = {}
    data: dict[str, tuple[Path, ...]] = {}
    for path in chosen:
        sources |= dict.fromkeys(_sources(path))
        for text, found in _data(path).items():
            if data.setdefault(text, found) != found:
                raise ValueError(f"{path}: {text} is another file here than in {name}'s other definitions; rename one")
    root = Path(commonpath([path.parent for path in sources]))
    names = {path: path.relative_to(root).as_posix() for path in sources}
    for number, text in enumerate(sorted(data)):
        for path in data[text]:
            inside = path.is_relative_to(root)
            names.setdefault(path, path.relative_to(root).as_posix() if inside else f"{_OUTSIDE}/{number}/{path.name}")
    files = {each for path, place in names.items() for each in _files_below(place, path)}
    return TaskFiles(name, tuple(chosen), data, tuple(sorted(files)), names)


def _files_below(name: str, path: Path) -> list[tuple[str, Path]]:
    if not path.is_dir():
        return [(name, path)]
    return [(f"{name}/{p.relative_to(path).as_posix()}", p) for p in path.rglob("*") if p.is_file()]


def _with_members(name: str, definitions: Mapping[str, Path], above: tuple[str, ...]) -> Iterator[Path]:
    yield definitions[name]
    for member in members(read_definition(definitions[name])):
        if member in definitions and member not in (*above, name):
            yield from _with_members(member, definitions, (*above, name))


def members(values: Mapping[str, Any]) -> list[str]:
    """The names that a group lists; none of a task."""
    listed = values.get("task")
    if "group" not in values or not isinstance(listed, list):
        return []
    names = [each.get("task") or each.get("group") if isinstance(each, dict) else each for each in listed]
    return [name for name in names if isinstance(name, str)]


def _sources(path: Path) -> Iterator[Path]:
    """A definition, those that it includes, and the Python files of their functions with what these import from beside
    them."""
    yield path
    values = read_file(path)
    included = values.get("include") or []
    for name in [included] if isinstance(included, str) else included:
        if Path(name).is_absolute():
            raise ValueError(f"{path}: include = {name}: a path from the file's own folder is needed")
        yield from _sources(Path(abspath(path.parent / name)))
    for function in _functions(values):
        module, _, name = function.rpartition(".")
        file = path.parent / f"{module.replace('.', '/')}.py"
        if file.is_file():
            _check_function(path, file, name)
            yield from _modules(file, set())


def _functions(values: Any) -> Iterator[Function]:
    if isinstance(values, Function):
        yield values
    elif isinstance(values, Mapping):
        for each in values.values():
            yield from _functions(each)
    elif isinstance(values, list):
        for each in values:
            yield from _functions(each)


def _check_function(definition: Path, file: Path, name: str) -> None:
    """Raises ValueError where the file is no Python, or does not define the name."""
    tree = _parsed(file)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    defined |= {alias.asname or alias.name for alias in _aliases(tree)}
    if name not in defined and "*" not in defined:
        raise ValueError(f"{definition}: !function {file.stem}.{name}: {file} defines no {name}")


def _aliases(tree: ast.Module) -> Iterator[ast.alias]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from node.names


def _parsed(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError) as error:
        line = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else str(error)
        raise ValueError(f"{file}: {line}") from error


def _modules(file: Path, seen: set[Path]) -> Iterator[Path]:
    if file in seen:
        return
    seen.add(file)
    yield file
    for node in ast.walk(_parsed(file)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
        for name in names:
            beside = file.parent / f"{name.replace('.', '/')}.py"
            if beside.is_file():
                yield from _modules(beside, seen)


def _data(path: Path) -> dict[str, tuple[Path, ...]]:
    """What a definition, and those that it includes, name as data → the files and folders on this machine."""
    values = read_definition(path)
    settings = values.get("dataset_kwargs")
    settings = settings if isinstance(settings, Mapping) else {}
    named = [*_texts(settings.get("data_files")), *_texts(settings.get("data_dir"))]
    source = values.get("dataset_path")
    if isinstance(source, str) and source.startswith((".", "/", "~")):
        named.append(source)
    return {text: _places(text, path) for text in named}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str) and "://" not in value:
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _places(text: str, definition: Path) -> tuple[Path, ...]:
    """From the definition's folder, or else from the working directory. Raises ValueError where there is none."""
    for base in (definition.parent, Path()):
        if found := sorted(glob(str(base / Path(text).expanduser()), recursive=True)):
            return tuple(Path(abspath(each)) for each in found)
    raise ValueError(f"{definition}: its data {text} is neither beside it nor in the working directory")


def with_places(value: Any, data: Mapping[str, tuple[Path, ...]]) -> Any:
    """A value of `dataset_kwargs` with the places of a copy's files in place of their names."""
    if isinstance(value, str):
        files = data.get(value, ())
        return value if not files else str(files[0]) if len(files) == 1 else [str(file) for file in files]
    if isinstance(value, Mapping):
        return {key: with_places(each, data) for key, each in value.items()}
    if isinstance(value, list):
        flat = [with_places(each, data) for each in value]
        return [each for group in flat for each in (group if isinstance(group, list) else [group])]
    return value


def names_in(paths: Iterable[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """Task or group → the files that define it, and what is wrong with files that cannot be read."""
    found: dict[str, list[Path]] = {}
    faults: list[str] = []
    for path in paths:
        try:
            values = read_definition(path)
        except ValueError as error:
            faults.append(str(error))
            continue
        if name := _name(values):
            found.setdefault(name, []).append(path)
    return found, faults


def name_of(path: Path) -> str:
    """The name of the task or group that a file defines. Raises ValueError where it defines none."""
    name = _name(read_definition(path))
    if name is None:
        raise ValueError(f"{path}: defines no task (its key task is missing)")
    return name


def _name(values: Mapping[str, Any]) -> str | None:
    name = values.get("group") if "group" in values and "class" not in values else values.get("task")
    return name if isinstance(name, str) else None
