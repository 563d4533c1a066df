"""Housekeeping on files: what may stay undone, and never fails the work that it follows."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

Json = dict[str, Any]
"""A JSON object: what a file, a request or a record holds before it is read into a type."""

DISCARDED = ".discarded-"
"""How the names of folders begin that were given up and could not be removed whole."""


def discard(path: Path) -> bool:
    """Remove a file or a folder if that is possible; false where it, or something of it, stays.

    A folder is renamed first, so that one with its own name is never half there. What stays is a file that another
    process has open on NFS (a busy `.nfs…`), or whatever the file system refuses.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return True
        given_up = path.with_name(f"{DISCARDED}{secrets.token_hex(6)}")
        path.rename(given_up)
        shutil.rmtree(given_up, ignore_errors=True)
        return not given_up.exists()
    except OSError:
        return False
