"""The user's cache directory: what can be computed again, and what a store that is shared, or can only be read, should
not hold."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def user_cache(name: str) -> Path:
    """A file or folder there (`$XDG_CACHE_HOME/mlkv/NAME`, else `~/.cache`); it can be thrown away at any time."""
    from platformdirs import user_cache_path

    folder = user_cache_path("mlkv")
    if not folder.is_absolute():  # a user without a home, as in some containers
        folder = Path(tempfile.gettempdir()) / f"mlkv-{os.getuid()}"
    return folder / name
