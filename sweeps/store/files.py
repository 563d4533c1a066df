"""Files and folders that appear whole or not at all, on local disks and on NFS: write beside, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlkv.files import discard
from sweeps.store.errors import DamagedFileError
from sweeps.store.schema import FileHash


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` with text or bytes; a reader sees the old content or the new, never a part."""
    with _beside(path, content) as temporary:
        os.replace(temporary, path)


def write_once(path: Path, text: str) -> bool:
    """Create `path` with `text` unless it exists; false when somebody else was first."""
    with _beside(path, text) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            # A file server also reports this when it made the link, its answer was lost, and the client repeated the
            # request.
            return temporary.stat().st_nlink > 1
    return True


@contextmanager
def _beside(path: Path, content: str | bytes) -> Iterator[Path]:
    """A file with this content, on disk, in the folder of `path` for as long as it is not renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        _write_synced(temporary, content)
        yield temporary
    finally:
        discard(temporary)


def _write_synced(path: Path, content: str | bytes) -> None:
    with path.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


TEMPORARY_FOLDER = ".new-"
"""How the names of folders begin that are being written."""


def write_folder_once(path: Path, files: Mapping[str, str]) -> bool:
    """Create folder `path` with these files, which may be in folders of it, unless it is there; false when somebody
    else was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_FOLDER}{secrets.token_hex(6)}")
    try:
        temporary.mkdir()
        for name, text in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            _write_synced(temporary / name, text)
        _sync_folder(temporary)
        made = rename_once(temporary, path)
        _sync_folder(path.parent)
        return made
    finally:
        discard(temporary)


def add_files_once(folder: Path, files: Mapping[str, str]) -> Path | None:
    """Create these files in a folder that is there: all of them, or none where one exists, which is returned."""
    made: list[Path] = []
    try:
        for path, text in ((folder / name, text) for name, text in files.items()):
            if os.path.lexists(path) or not write_once(path, text):
                return path
            made.append(path)
        made.clear()
    finally:  # what is still listed is of an attempt that did not end well
        for path in made:
            discard(path)
    return None


def rename_once(source: Path, target: Path) -> bool:
    """Rename a folder; false where a folder of that name with files in it exists. That can be this very folder, where a
    file server renamed it and its answer was lost. Raises OSError for any other failure."""
    try:
        source.rename(target)
        return True
    except OSError:
        if not target.is_dir():
            raise
        return False


def _sync_folder(path: Path) -> None:
    """Make the names in a folder survive a crash of the machine, where its file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, missing: Any = None) -> Any | None:
    """The parsed file, or `missing` where there is none. Raises DamagedFileError for what is no JSON, and OSError."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return missing
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path}: is no JSON ({error})") from None


def read_object(path: Path, *keys: str) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is no file. Raises DamagedFileError for what is no object with
    these keys, and OSError."""
    found = read_json(path, missing := object())
    if found is missing:
        return None
    if not isinstance(found, dict) or not found.keys() >= set(keys):
        raise DamagedFileError(" ".join([f"{path}: is no JSON object", *(f"with {key}" for key in keys)]))
    return found


def read_cache(path: Path) -> dict[str, Any]:
    """A JSON object that can be made again: empty where there is none, or where it is damaged."""
    try:
        found = read_json(path)
    except (DamagedFileError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: Path) -> FileHash:
    """Digest and size of a file, once it is on disk: what a full file server cannot store it may say only now."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return FileHash(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)


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


def is_number(name: str) -> bool:
    """Whether a file's name is a number as we write them: people, and file servers, leave other files beside ours."""
    return name.isascii() and name.isdigit() and name[0] != "0"


def utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
