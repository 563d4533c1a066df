"""The packages that a process can import, as a requirements file names them."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

_INFO = (".dist-info", ".egg-info")


@cache
def installed_packages() -> str:
    """`name==version` by line, in order. From the names of the folders that installers leave beside the packages: to
    open their files, as importlib.metadata does, takes half a second."""
    found: dict[str, str] = {}
    for place in filter(None, sys.path):  # the first place on the path is the one that counts
        for info in (path for path in Path(place).glob("*-info") if path.suffix in _INFO):
            name, _, version = info.stem.partition("-")
            if version:
                found.setdefault(name.replace("_", "-").lower(), version.partition("-")[0])
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))
