"""What of the code can change the results of a kind of step, as one hash for each kind.

It is for people: `mlkv plan` tells them which finished steps were made by code that might have given something else,
and a warning after every edit would soon be ignored. So it covers the files that a step of the kind can come to import:
its file in sweeps/steps, the process that computes, and what these import of the science, at the top or inside
functions, directly or through others. And of a file it covers what Python does, not comments, docstrings and line
breaks. Extensions are not in it, as the digest of one is part of the id of every step that uses it.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sweeps.store.code import ROOT, sources

DEFINITION = "2:"
"""How a hash begins that is taken as described above. One without it, of earlier code, covers other files, so that
nothing follows where it differs."""
KINDS_OF_EXTENSIONS = ""
"""Stands for the kinds that extensions add: their files may import any of the science."""

_STEPS = "sweeps/steps/"
_SCIENCE = "mlkv/"
_PROCESS = ("sweeps/worker/child_main.py", "sweeps/worker/fork_server.py")
_READ_BY = {"conf/tasks/": "mlkv/evaluate/task_names.py"}
"""Data → the file that reads it."""
_MODULE = re.compile(r"(\w+(?:\.\w+)+)(?::\w+)?")
"""A row of a table may name what it needs as text, as in `mlkv.evaluate.bits:run`."""


def result_hashes(root: Path = ROOT) -> dict[str, str]:
    """Kind of step → DEFINITION and sixteen hex digits. Takes a second."""
    paths = dict(sources(root))
    files = read_files(paths)
    data = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items() if _reader(name)}
    science = {name: each.digest for name, each in files.items() if name.startswith(_SCIENCE)}
    hashes = {KINDS_OF_EXTENSIONS: _hash({**science, **reached(files, None), **data})}
    for name in (name for name in files if name.startswith(_STEPS) and files[name].is_kind):
        digests = reached(files, name)
        read = {each: digest for each, digest in data.items() if _reader(each) in digests}
        hashes[Path(name).stem] = _hash({**digests, **read})
    return hashes


def read_files(paths: Mapping[str, Path]) -> dict[str, CodeFile]:
    """Of all files, the Python of the science, of the steps and of the process that runs them."""
    code = (name for name in paths if name.endswith(".py") and name.startswith((_SCIENCE, _STEPS, *_PROCESS)))
    return {name: CodeFile(name, ast.parse(paths[name].read_bytes())) for name in code}


def _hash(digests: Mapping[str, str]) -> str:
    lines = (f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return DEFINITION + hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _reader(name: str) -> str | None:
    return next((reader for folder, reader in _READ_BY.items() if name.startswith(folder)), None)


def reached(files: Mapping[str, CodeFile], kind: str | None) -> dict[str, str]:
    """The files that a step can come to import, each with its digest, from the file of its kind on. Files of other
    kinds are imported, as what runs steps knows them all, but not run. Of a package of whose own file nobody uses a
    name, only what importing it does."""
    found: dict[str, str] = {}
    left = [*_PROCESS, *filter(None, [kind])]
    while left:
        name = left.pop()
        if name in found:
            continue
        file, found[name] = files[name], files[name].digest
        named = file.imports if file.is_kind and name != kind else [*file.imports, *file.imports_later]
        left += (path for module in named if (path := _file_of(module, files)))
    for package in {f"{parent.as_posix()}/__init__.py" for name in found for parent in Path(name).parents}:
        if package in files and package not in found and (effects := files[package].effects):
            found[package] = _digest(effects)
    return found


def _file_of(module: str, files: Mapping[str, CodeFile]) -> str | None:
    """The file of the science or of steps that a name means: a module's, or that of the module with this name in it."""
    for path in (module.replace(".", "/"), module.rpartition(".")[0].replace(".", "/")):
        for name in (f"{path}.py", f"{path}/__init__.py"):
            if name in files:
                return name
    return None


def _imported(node: ast.AST, own: str) -> Iterator[str]:
    """Full names of modules, or of what is in a module, that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = Path(own).parts[: -node.level] if node.level else ()
        module = ".".join([*above, *filter(None, [node.module])])
        yield from (f"{module}.{alias.name}" for alias in node.names)


def _as_text(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and (named := _MODULE.fullmatch(node.value)):
        yield named[1]


@dataclass(frozen=True)
class CodeFile:
    name: str
    tree: ast.Module

    @cached_property
    def digest(self) -> str:
        return _digest(self.tree)

    @cached_property
    def is_kind(self) -> bool:
        """Whether it is a kind of step."""
        return any(isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "KIND" for each in self.tree.body)

    @cached_property
    def imports(self) -> list[str]:
        """Full names of what it imports when it is imported itself."""
        return [module for statement in self.tree.body for module in _imported(statement, self.name)]

    @cached_property
    def imports_later(self) -> list[str]:
        """Of what it imports inside functions, or names as text."""
        return [module for node in ast.walk(self.tree) for module in (*_imported(node, self.name), *_as_text(node))]

    @property
    def effects(self) -> list[ast.stmt]:
        """The statements that do something when the file is imported, beyond giving names to functions and values."""
        return [statement for statement in self.tree.body if not _only_names(statement)]


def _only_names(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or _is_docstring(statement):
        return True
    if isinstance(statement, ast.ImportFrom):
        return statement.module == "__future__"
    if isinstance(statement, ast.If):
        return ast.unparse(statement.test) == "TYPE_CHECKING"
    return isinstance(statement, ast.Assign) and not any(isinstance(node, ast.Call) for node in ast.walk(statement))


def _digest(tree: object) -> str:
    return hashlib.sha256(_structure(tree).encode()).hexdigest()


def _structure(node: object) -> str:
    """A syntax tree as text, without docstrings. Unlike ast.dump it leaves out every empty field: each version of
    Python adds some (`type_params` in 3.12), and the same code must have the same hash under all of them."""
    if isinstance(node, list):
        return f"[{','.join(_structure(each) for each in node if not _is_docstring(each))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
    return f"({type(node).__name__} {' '.join(f'{name}={_structure(value)}' for name, value in fields)})"


def _is_docstring(node: object) -> bool:
    """Any statement that is only a string: one after a field does nothing, as one at the top does nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
