"""Files of JSON lines that only grow. They stay readable when a writer dies in the middle of a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from sweeps.store import typed_json

T = TypeVar("T")


@dataclass(frozen=True)
class Lines(Generic[T]):
    """The rows of a file that grows by a JSON object per line. `skipped`: lines that are no such row."""

    rows: list[T]
    skipped: int = 0


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add a line per row, all in one write. An incomplete line at the end of the file does not damage them."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write((_new_line(path) + text).encode())
        file.flush()
        os.fsync(file.fileno())


def open_to_append(path: Path) -> TextIO:
    """A file of lines that a process keeps open while it adds to it."""
    start = _new_line(path)
    file = path.open("a", encoding="utf-8")
    file.write(start)
    return file


def _new_line(path: Path) -> str:
    """A line break where the last writer died in the middle of a line, else nothing."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return ""
            file.seek(-1, os.SEEK_END)
            return "" if file.read() == b"\n" else "\n"
    except FileNotFoundError:
        return ""


def read_rows(kind: type[T], path: Path, *, ended: bool = False) -> Lines[T]:
    """Every complete line of a file; none where there is no file. `ended`: no process adds to it any more, so that a
    last line without a line break counts too. Raises OSError."""
    try:
        return parse_rows(kind, path.read_bytes() + (b"\n" if ended else b""))
    except (FileNotFoundError, NotADirectoryError):
        return Lines([])


def parse_rows(kind: type[T], content: bytes) -> Lines[T]:
    """The rows in some lines. What follows the last line's end is still being written, and left for later."""
    lines = [line for line in content.split(b"\n")[:-1] if line.strip()]
    rows = [row for line in lines if (row := _row(kind, line)) is not None]
    return Lines(rows, len(lines) - len(rows))


def _row(kind: type[T], line: bytes) -> T | None:
    try:
        return typed_json.parsed(kind, line)
    except ValueError:
        return None
