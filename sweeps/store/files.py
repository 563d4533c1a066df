"""Files that appear whole or not at all, on local disks and on NFS: write beside, fsync, rename."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlkv.files import discard


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` with `text`; a reader sees the old content or the new, never a part."""
    with _beside(path, text) as temporary:
        os.replace(temporary, path)


def write_once(path: Path, text: str) -> bool:
    """Create `path` with `text` unless it exists; false when somebody else was first."""
    with _beside(path, text) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            # A file server that did it, and was asked again because its answer got lost, says so too.
            return temporary.stat().st_nlink > 1
    return True


@contextmanager
def _beside(path: Path, text: str) -> Iterator[Path]:
    """A file with `text`, on disk, in the folder of `path` for as long as it is not renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        discard(temporary)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any | None:
    """The parsed file, or None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """Digest and size of a file, once it is on disk: what a full file server cannot store it may say only now."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def tree(root: Path) -> Iterator[tuple[str, Path]]:
    """Every regular file below `root` with its relative name, in a fixed order."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            yield path.relative_to(root).as_posix(), path


def last_line(path: Path, block: int = 8192) -> str:
    """The last complete line of a file that is still being written; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - block))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return ""
    return lines[-2].decode("utf-8", "replace") if len(lines) > 1 else ""


def modified(path: Path) -> float:
    """When a file was last written or touched, by the file server's clock; 0 where there is none."""
    try:
        with path.open("rb") as file:  # NFS keeps what it knew of a file for up to a minute, until it is opened
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return 0.0


def file_clock(directory: Path) -> float:
    """Seconds since the epoch by the clock that stamps files in `directory`. Raises OSError where none can be made."""
    probe = directory / f".clock-{secrets.token_hex(6)}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        discard(probe)


def utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
