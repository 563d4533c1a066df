"""The code that produces results, as one hash and as a copy that jobs run from."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from sweeps.store.files import sha256

ROOT = Path(__file__).resolve().parents[2]
"""Where the packages and conf/ lie side by side: a checkout, or site-packages."""
CONF = ROOT / "conf"
_PACKAGES = ("mlkv", "sweeps", "slurm", "analysis", "conf")


def _sources(root: Path = ROOT) -> Iterator[tuple[str, Path]]:
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(root).as_posix(), path


def tree_hash(root: Path = ROOT) -> str:
    """Sixteen hex digits over the Python sources and task files that can change a step's result."""
    digest = hashlib.sha256()
    for name, path in _sources(root):
        if name.startswith(("mlkv/", "sweeps/", "conf/tasks/")):
            digest.update(f"{name} {sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def copy_tree(target: Path) -> None:
    for name, path in _sources():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
