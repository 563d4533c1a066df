"""The type of JSON objects, and a function that deletes files and never raises an error."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

Json = dict[str, Any]
"""A JSON object: what a file, a request or a record holds before it is read into a type."""

DISCARDED = ".discarded-"
"""The beginning of the names of folders that could not be deleted whole."""


def discard(path: Path) -> bool:
    """Delete a file or a folder if possible; false where it, or a part of it, remains.

    A folder is renamed first, so that half of it never has the whole's name. What remains is a file that another
    process has open on NFS (a busy `.nfs…`), or one that the file system refuses to delete.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return True
        discarded = path.with_name(f"{DISCARDED}{secrets.token_hex(6)}")
        path.rename(discarded)
        shutil.rmtree(discarded, ignore_errors=True)
        return not discarded.exists()
    except OSError:
        return False
