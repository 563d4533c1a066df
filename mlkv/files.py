"""The type of JSON objects, and functions for files that many people use."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from contextlib import suppress
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


def share(folder: Path) -> None:
    """Let whoever may read a folder, or write to it, do so with all that is in it: safetensors writes through a
    temporary file that its owner alone can read, whatever the umask says."""
    wanted = stat.S_IMODE(folder.stat().st_mode)
    for parent, folders, files in os.walk(folder):
        for names, bits in ((folders, wanted), (files, wanted & 0o666)):
            for path in (Path(parent, name) for name in names):
                mode = stat.S_IMODE(path.lstat().st_mode)
                if not path.is_symlink() and mode | bits != mode:
                    with suppress(OSError):  # a file system without permissions
                        path.chmod(mode | bits)
