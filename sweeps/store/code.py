"""The code that jobs import, as one hash and as a copy; and the part of it that can change a result, as another hash.

The first hash names the copy, so it covers every byte in it. The second is for people: `mlkv plan` tells them which
finished steps were made by code that might have given something else. It covers the science, the kinds of steps and
the process that runs them, and of these only what Python does, not comments, docstrings and line breaks: a warning
after each edited sentence would soon be ignored. Extensions are in neither, as the digest of one is part of the
id of every step that uses it.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sweeps.store.files import sha256

ROOT = Path(__file__).resolve().parents[2]
"""Where the packages and conf/ lie side by side: a checkout, or site-packages."""
CONF = ROOT / "conf"

_IMPORTED = ("mlkv", "sweeps", "slurm", "conf/tasks")
_OF_RESULTS = ("mlkv/", "sweeps/steps/", "sweeps/worker/child_main.py", "sweeps/worker/fork_server.py", "conf/tasks/")


def import_variables(root: Path = ROOT) -> dict[str, str]:
    """The variables with which another Python imports this code: it comes first, and the working directory is not on
    the path, as a `sweeps/`, a `torch.py` or a `wandb.py` may lie there."""
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join(dict.fromkeys(filter(None, [str(root), *others])))
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _sources(root: Path = ROOT) -> Iterator[tuple[str, Path]]:
    for folder in _IMPORTED:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(root).as_posix(), path


def tree_hash(root: Path = ROOT) -> str:
    """Sixteen hex digits over every file that jobs import or read."""
    digest = hashlib.sha256()
    for name, path in _sources(root):
        digest.update(f"{name} {sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def result_hash(root: Path = ROOT) -> str:
    """Sixteen hex digits over what the code that can change a step's result does. Takes a quarter of a second."""
    digest = hashlib.sha256()
    for name, path in _sources(root):
        if name.startswith(_OF_RESULTS):
            content = _structure(ast.parse(path.read_bytes())).encode() if path.suffix == ".py" else path.read_bytes()
            digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


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


def copy_tree(target: Path) -> None:
    for name, path in _sources():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
