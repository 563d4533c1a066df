"""The code that jobs import, as one hash over every byte of it, and as a copy, which is named by that hash. Extensions
are in neither, as the digest of one is part of the id of every step that uses it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sweeps.store.files import sha256

ROOT = Path(__file__).resolve().parents[2]
"""Where the packages and conf/ lie side by side: a checkout, or site-packages."""
CONF = ROOT / "conf"

_IMPORTED = ("mlkv", "sweeps", "slurm", "conf/tasks")
DRIVER = ("mlkv", "sweeps", "slurm", "analysis", "conf")
"""What a job needs that plans while it runs, and not steps alone."""


def import_variables(root: Path = ROOT, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables with which another Python imports this code: it comes first, and the working directory is not on
    the path, as a `sweeps/`, a `torch.py` or a `wandb.py` may lie there."""
    others = inherited.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join(dict.fromkeys(filter(None, [str(root), *others])))
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def sources(root: Path = ROOT, folders: Sequence[str] = _IMPORTED) -> Iterator[tuple[str, Path]]:
    """Every file that jobs import or read, with its name below the root."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(root).as_posix(), path


def tree_hash(root: Path = ROOT, folders: Sequence[str] = _IMPORTED) -> str:
    """Sixteen hex digits over every file that jobs import or read."""
    digest = hashlib.sha256()
    for name, path in sources(root, folders):
        digest.update(f"{name} {sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def copy_tree(target: Path, folders: Sequence[str] = _IMPORTED) -> None:
    for name, path in sources(folders=folders):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
