"""Importing this module has our packages found beside this one, whatever a path or another distribution offers under
their names: `sweeps`, `analysis` and `slurm` are plain words. And it says where pip has put others in their place."""

from __future__ import annotations

import hashlib
import sys
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mlkv", "sweeps", "analysis", "slurm")


class _OurPackages:
    """A finder for these names alone. To put the folder itself first on sys.path would do more: where it is
    site-packages, all that is installed there would come before Python's own modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, [str(ROOT)], target) if fullname in PACKAGES else None


sys.meta_path.insert(0, _OurPackages())


def overwritten(root: Path) -> str | None:
    """Which other distribution has put a file of its own in the place of one of ours, in one line. pip does not refuse
    to install two that own one folder."""
    if not list(root.glob("mlkv-*.dist-info")):
        return None  # a checkout
    from importlib.metadata import Distribution

    installed = {each.metadata["Name"]: each for each in Distribution.discover(path=[str(root)])}
    ours = installed.pop("mlkv")
    firsts = {f"{package}/__init__.py" for package in PACKAGES}
    changed = {str(file) for file in ours.files or () if str(file) in firsts and not _is_as_installed(root, file)}
    for name, other in sorted(installed.items()):
        if shared := sorted(changed & {str(file) for file in other.files or ()}):
            folder = root / Path(shared[0]).parent
            return (
                f"{folder} is owned by two distributions, mlkv {ours.version} and {name} {other.version}; uninstall "
                f"{name} (`pip uninstall {name}`), then install mlkv again (`pip install --force-reinstall --no-deps`)"
            )
    return None


def _is_as_installed(root: Path, file: object) -> bool:
    """By the digest that its distribution's RECORD has for it."""
    expected = getattr(file, "hash", None)
    if expected is None or expected.mode != "sha256":
        return True
    try:
        digest = hashlib.sha256((root / str(file)).read_bytes()).digest()
    except OSError:
        return False
    return urlsafe_b64encode(digest).rstrip(b"=").decode() == expected.value
