"""Whose result a step has, and the other results of the same step that are kept beside it. Part of the store; see
sweeps.store.store.

A step's id says what it is, so two machines, or two versions of a library, can make outputs of one step that differ.
`done.json` is the one that counts. `origin.json` beside it says that it was unpacked, and whose it is; it names the
record that it belongs to by its SHA-256, so that one which was left behind says nothing of a later record. Any other
result lies in `others/<first digits of its record's SHA-256>/`, with the same files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mlkv.files import discard
from sweeps.store import typed_json
from sweeps.store.files import rename_once, sha256, write_json
from sweeps.store.schema import Files, Origin, Record
from sweeps.store.typed_json import as_json

RECORD, ORIGIN, FOLDER = "done.json", "origin.json", "others"
PARTS = ("out", "attempts", ORIGIN, RECORD)
"""What a result consists of; the record is moved last, and taken away first."""
_DIGITS = 16


@dataclass(frozen=True)
class Other:
    """A result that does not count. origin: None for one that was made in this store."""

    path: Path
    record: Record
    origin: Origin | None

    @property
    def words(self) -> str:
        return self.origin.words if self.origin else "made here"


def same_result(one: Record, other: Record) -> bool:
    """Whether two records of a step say the same: by the hashes of their outputs, or, for a step that leaves no files
    (a measurement), by their numbers."""
    return one.outputs == other.outputs and (bool(one.outputs) or one.metrics == other.metrics)


def origin_of(folder: Path) -> Origin | None:
    """Of the result in a folder; None for one that was made in this store. Raises DamagedFileError and OSError."""
    origin = typed_json.load_once(Origin, f"{folder}/{ORIGIN}")
    try:
        return origin if origin and origin.record == sha256(folder / RECORD) else None
    except FileNotFoundError:
        return None


def write_origin(folder: Path, origin: Origin, record: Path | None = None) -> None:
    """Say whose the result in a folder is; `record` where its record is not there yet."""
    write_json(folder / ORIGIN, as_json(replace(origin, record=sha256(record or folder / RECORD))))


CODE = ".py"
"""A checkpoint carries the decoder's code for transformers; no step reads it, and no pack has it."""


def absent(out: Path, outputs: Files, origin: Origin | None) -> list[str]:
    """Outputs that were not in the pack which a result came in, and are still not there."""
    names = (origin.absent if origin else None) or ()
    return [name for name in names if name in outputs and not (out / name).exists()]


def others(step: Path) -> Iterator[Other]:
    """Every other result of a step, in a fixed order. Raises DamagedFileError and OSError."""
    try:
        names = os.listdir(step / FOLDER)
    except (FileNotFoundError, NotADirectoryError):  # as nearly always; a glob takes ten times as long to find nothing
        return
    for folder in (step / FOLDER / name for name in sorted(names) if not name.startswith(".")):
        if record := typed_json.load(Record, folder / RECORD):
            yield Other(folder, record, origin_of(folder))


def whose(step: Path, record: Record) -> str:
    """Whose the result that counts is, and which others there are; empty for one of this store alone."""
    origin = origin_of(step)
    descriptions = (
        f"{'the same outputs' if same_result(record, other.record) else 'another result is kept beside,'} {other.words}"
        for other in others(step)
    )
    return "; ".join([*([origin.words] if origin else []), *dict.fromkeys(descriptions)])


def unpacked_at(step: Path) -> float:
    """When a result was last unpacked, or put beside another, in seconds since the epoch; 0 where none was."""
    found = 0.0
    for path in (step / ORIGIN, step / FOLDER):
        with suppress(FileNotFoundError):
            found = max(found, path.stat().st_ctime)  # a rename keeps the time of the last change of the content
    return found


def key_of(record: Path) -> str:
    """The name of the folder of a result, by its record."""
    return sha256(record)[:_DIGITS]


def put_beside(step: Path, source: Path) -> bool:
    """Move the result in `source` (a step's own folder, or one that was made ready) beside the one that counts; false
    where it is there already. Raises OSError."""
    target = step / FOLDER / key_of(source / RECORD)
    if target.exists():
        return False
    temporary = target.with_name(f".{target.name}")
    discard(temporary)
    temporary.mkdir(parents=True)
    for name in reversed(PARTS):
        if (source / name).exists():
            (source / name).rename(temporary / name)
    return rename_once(temporary, target)
