"""Reads the files that W&B writes offline (`run-<id>.wandb`), truncated and corrupt ones too.

wandb has no reader for them in Python (since 0.30), so the format is read here. It is LevelDB's log format
(https://github.com/google/leveldb/blob/main/doc/log_format.md): a header of 7 bytes, then blocks of 32 KiB, in them
chunks of crc (u32), length (u16) and type (u8: whole, first, middle, last), whose payloads are protobuf records. A
chunk with a wrong crc is left out, and reading goes on at the next byte where a correct one begins.
"""

from __future__ import annotations

import fnmatch
import json
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlkv.files import Json
from sweeps.tracking.console import CONSOLE_KEY
from sweeps.tracking.read.runs import LoggedRun

HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
BLOCK = 32 * 1024
DEFAULT_AXIS = "train/global_step"
_CHUNK = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class WandbFileWarning(UserWarning):
    """Part of a file could not be read; the message says which."""


def read_directory(path: Path) -> list[LoggedRun]:
    """Every run below `path`. Fragments of one run are merged; where two have a row for one position the later wins."""
    fragments = [run for file in sorted(path.rglob("run-*.wandb")) if (run := read_file(file))]
    merged: dict[tuple[str, str, str], LoggedRun] = {}
    for fragment in sorted(fragments, key=lambda run: run.started):
        key = (fragment.entity, fragment.project, fragment.id)
        merged[key] = _merge(merged[key], fragment) if key in merged else fragment
    return list(merged.values())


def read_file(path: Path) -> LoggedRun | None:
    """One fragment; None, with a warning, where not even the run's id can be read."""
    fragment = _Fragment()
    damaged = 0
    for payload in _payloads(path):
        if payload is None or not fragment.take(payload):
            damaged += 1
    if damaged:
        warnings.warn(f"{path}: {damaged} damaged places left out", WandbFileWarning, stacklevel=2)
    if not fragment.records:
        return None
    if not fragment.run.id:
        fragment.run.id = path.stem.removeprefix("run-")
        warnings.warn(f"{path}: names no run; read as {fragment.run.id}", WandbFileWarning, stacklevel=2)
    if (packages := path.parent / "files" / "requirements.txt").is_file():
        fragment.run.requirements = packages
    return fragment.run


# Chunks


def _payloads(path: Path) -> Iterator[bytes | None]:
    """Records in order; None for each damaged place."""
    data = path.read_bytes()
    if data[: len(HEADER)] != HEADER:
        yield None
    parts: list[bytes] = []
    for kind, payload in _chunks(data):
        if kind is None:
            parts = []
            yield None
        elif kind in (_WHOLE, _FIRST):
            parts = [payload]
        elif parts:
            parts.append(payload)
        if kind in (_WHOLE, _LAST) and parts:
            yield b"".join(parts)
            parts = []
    if parts:
        yield None


def _chunks(data: bytes) -> Iterator[tuple[int | None, bytes]]:
    position, damaged = min(len(HEADER), len(data)), False
    while position < len(data):
        left = BLOCK - position % BLOCK
        if left < _CHUNK.size:
            position += left  # the end of a block that is too short for a chunk is padding
            continue
        chunk = _chunk_at(data, position, left)
        if chunk is None:
            if not damaged:
                yield None, b""
            damaged = True
            position += 1
            continue
        damaged = False
        yield chunk
        position += _CHUNK.size + len(chunk[1])


def _chunk_at(data: bytes, position: int, left: int) -> tuple[int, bytes] | None:
    if position + _CHUNK.size > len(data):
        return None
    crc, length, kind = _CHUNK.unpack_from(data, position)
    start = position + _CHUNK.size
    if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or length > left - _CHUNK.size or start + length > len(data):
        return None
    payload = data[start : start + length]
    return (kind, payload) if zlib.crc32(payload, zlib.crc32(bytes([kind]))) == crc else None


# Records


class _Fragment:
    """The run that the records of one file describe. `_take_<record type>` reads one; other types are ignored."""

    def __init__(self) -> None:
        from wandb.proto import wandb_internal_pb2

        self._schema: Any = wandb_internal_pb2
        self.run, self.records, self._begun = LoggedRun(""), 0, ""

    def take(self, payload: bytes) -> bool:
        """False for a payload that is no record."""
        from google.protobuf.message import DecodeError

        record = self._schema.Record()
        try:
            record.ParseFromString(payload)
            kind = record.WhichOneof("record_type")
            if handler := getattr(self, f"_take_{kind}", None):
                handler(getattr(record, kind))
        except (DecodeError, json.JSONDecodeError, UnicodeDecodeError):
            return False
        self.records += 1
        return True

    def _take_run(self, message: Any) -> None:
        run = self.run
        run.id, run.name, run.project, run.entity = (
            message.run_id,
            message.display_name,
            message.project,
            message.entity,
        )
        run.job_type, run.group, run.tags = message.job_type, message.run_group, tuple(message.tags)
        run.sweep = message.sweep_id
        run.started = message.start_time.seconds + message.start_time.nanos / 1e9
        self._take_config(message.config)
        self._take_summary(message.summary)

    def _take_config(self, message: Any) -> None:
        _update(self.run.config, message)
        self.run.config.pop("_wandb", None)

    def _take_summary(self, message: Any) -> None:
        _update(self.run.summary, message)

    def _take_history(self, message: Any) -> None:
        row: Json = {}
        for item in message.item:
            _set(row, _path(item), json.loads(item.value_json))
        self.run.rows.append(row)

    def _take_metric(self, message: Any) -> None:
        if message.step_metric:
            self.run.axes[message.glob_name or message.name] = message.step_metric

    def _take_output_logger(self, message: Any) -> None:
        self.run.console += message.line.removesuffix("\n").split("\n")

    def _take_output_raw(self, message: Any) -> None:
        """A piece of what a program printed, which may end within a line."""
        *lines, self._begun = f"{self._begun}{message.line}".split("\n")
        self.run.console += lines

    def _take_exit(self, message: Any) -> None:
        self.run.state = "failed" if message.exit_code else "finished"


def _path(item: Any) -> list[str]:
    return list(item.nested_key) or [item.key]


def _update(values: Json, message: Any) -> None:
    for item in message.update:
        _set(values, _path(item), json.loads(item.value_json))
    for item in message.remove:
        path = _path(item)
        _parent_of(values, path).pop(path[-1], None)


def _set(values: Json, path: list[str], value: Any) -> None:
    _parent_of(values, path)[path[-1]] = value


def _parent_of(values: Json, path: list[str]) -> Json:
    """The nested mapping that holds the last key of `path`; made where it is missing."""
    for part in path[:-1]:
        below = values.get(part)
        if not isinstance(below, dict):
            below = values[part] = {}
        values = below
    return values


# Fragments of one run


def _merge(earlier: LoggedRun, later: LoggedRun) -> LoggedRun:
    """Both fragments as one; later values win. Rows are merged by the run's own axis: W&B's step starts at 0 again in
    each fragment, so it does not say which rows are the same."""
    later.axes = {**earlier.axes, **later.axes}
    later.rows = _merge_rows(earlier.rows, later.rows, later.axes)
    later.config = {**earlier.config, **later.config}
    if not _is_whole(later):
        later.console = [*earlier.console, *later.console]
    later.requirements = later.requirements or earlier.requirements
    later.summary = {**earlier.summary, **later.summary}
    return later


def _is_whole(run: LoggedRun) -> bool:
    """Whether its log begins at the beginning: each of our fragments has all that was printed until then."""
    return CONSOLE_KEY in run.summary


def _merge_rows(earlier: list[Json], later: list[Json], axes: Json) -> list[Json]:
    """Rows of both in order of the axis. Rows without an axis are all kept, as nothing shows that two are the same."""
    repeated = {_axis_position(row, axes) for row in later} - {None}
    first = [row for row in earlier if _axis_position(row, axes) not in repeated]
    return sorted([*first, *later], key=lambda row: _axis_position(row, axes) or ("", 0.0))


def _axis_position(row: Json, axes: Json) -> tuple[str, float] | None:
    """The metric that the row's metrics are drawn against, and its value; DEFAULT_AXIS where none was defined. None for
    a row without either."""
    defined = [axis for pattern, axis in axes.items() if any(fnmatch.fnmatchcase(key, pattern) for key in row)]
    axis = next((axis for axis in (*defined, DEFAULT_AXIS) if isinstance(row.get(axis), int | float)), None)
    return (axis, row[axis]) if axis else None
