"""Reads what W&B writes offline: `run-<id>.wandb`, torn and corrupt ones too.

The format is LevelDB's log: after a header of 7 bytes blocks of 32 KiB, in them chunks of crc (u32), length (u16) and
type (u8: whole, first, middle, last), whose payloads are protobuf records. A chunk that does not check is left out, and
reading goes on at the next byte that begins one which does.
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

from sweeps.tracking.read.runs import LoggedRun

Json = dict[str, Any]
HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
BLOCK = 32 * 1024
USUAL_AXIS = "train/global_step"
_CHUNK = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class WandbFileWarning(UserWarning):
    """Part of a file could not be read; the message says which."""


def read_directory(path: Path) -> list[LoggedRun]:
    """Every run below `path`: fragments of one run become one, and on a position the later one's word counts."""
    fragments = [run for file in sorted(path.rglob("run-*.wandb")) if (run := read_file(file))]
    merged: dict[tuple[str, str, str], LoggedRun] = {}
    for fragment in sorted(fragments, key=lambda run: run.started):
        key = (fragment.entity, fragment.project, fragment.id)
        merged[key] = _merge(merged[key], fragment) if key in merged else fragment
    return list(merged.values())


def read_file(path: Path) -> LoggedRun | None:
    """One fragment; None, with a warning, where not even the run's id can be read."""
    found = _Fragment()
    lost = 0
    for payload in _payloads(path):
        if payload is None or not found.take(payload):
            lost += 1
    if lost:
        warnings.warn(f"{path}: {lost} damaged places left out", WandbFileWarning, stacklevel=2)
    if not found.records:
        return None
    if not found.run.id:
        found.run.id = path.stem.removeprefix("run-")
        warnings.warn(f"{path}: says not what run it is; taken for {found.run.id}", WandbFileWarning, stacklevel=2)
    return found.run


# Chunks


def _payloads(path: Path) -> Iterator[bytes | None]:
    """Records in order; None for each damaged place."""
    data = path.read_bytes()
    if data[: len(HEADER)] != HEADER:
        yield None
    begun: list[bytes] = []
    for kind, payload in _chunks(data):
        if kind is None:
            begun = []
            yield None
        elif kind in (_WHOLE, _FIRST):
            begun = [payload]
        elif begun:
            begun.append(payload)
        if kind in (_WHOLE, _LAST) and begun:
            yield b"".join(begun)
            begun = []
    if begun:
        yield None


def _chunks(data: bytes) -> Iterator[tuple[int | None, bytes]]:
    position, damaged = min(len(HEADER), len(data)), False
    while position < len(data):
        left = BLOCK - position % BLOCK
        if left < _CHUNK.size:
            position += left  # a block's tail too short for a chunk is padding
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
    """What the records of one file say."""

    def __init__(self) -> None:
        from wandb.proto import wandb_internal_pb2

        self._schema: Any = wandb_internal_pb2
        self.run, self.records = LoggedRun(""), 0

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

    def _take_run(self, told: Any) -> None:
        run = self.run
        run.id, run.name, run.project, run.entity = told.run_id, told.display_name, told.project, told.entity
        run.job_type, run.group, run.tags = told.job_type, told.run_group, tuple(told.tags)
        run.sweep = told.sweep_id
        run.started = told.start_time.seconds + told.start_time.nanos / 1e9
        self._take_config(told.config)
        self._take_summary(told.summary)

    def _take_config(self, told: Any) -> None:
        _update(self.run.config, told)
        self.run.config.pop("_wandb", None)

    def _take_summary(self, told: Any) -> None:
        _update(self.run.summary, told)

    def _take_history(self, told: Any) -> None:
        row: Json = {}
        for item in told.item:
            _put(row, _path(item), json.loads(item.value_json))
        self.run.rows.append(row)

    def _take_metric(self, told: Any) -> None:
        if told.step_metric:
            self.run.axes[told.glob_name or told.name] = told.step_metric

    def _take_exit(self, told: Any) -> None:
        self.run.state = "failed" if told.exit_code else "finished"


def _path(item: Any) -> list[str]:
    return list(item.nested_key) or [item.key]


def _update(values: Json, told: Any) -> None:
    for item in told.update:
        _put(values, _path(item), json.loads(item.value_json))
    for item in told.remove:
        path = _path(item)
        inner = _inside(values, path)
        inner.pop(path[-1], None)


def _put(values: Json, path: list[str], value: Any) -> None:
    _inside(values, path)[path[-1]] = value


def _inside(values: Json, path: list[str]) -> Json:
    for part in path[:-1]:
        below = values.get(part)
        if not isinstance(below, dict):
            below = values[part] = {}
        values = below
    return values


# Fragments of one run


def _merge(earlier: LoggedRun, later: LoggedRun) -> LoggedRun:
    """Later values win; rows are put together by the run's own axis, as W&B's step starts over in each fragment."""
    later.axes = {**earlier.axes, **later.axes}
    later.rows = _merge_rows(earlier.rows, later.rows, later.axes)
    later.config = {**earlier.config, **later.config}
    later.summary = {**earlier.summary, **later.summary}
    return later


def _merge_rows(earlier: list[Json], later: list[Json], axes: Json) -> list[Json]:
    """Rows of both by their place on the axis. Without an axis nothing says which rows are the same: all are kept."""
    places = {_place(row, axes) for row in later} - {None}
    kept = [row for row in earlier if _place(row, axes) not in places]
    return sorted([*kept, *later], key=lambda row: _place(row, axes) or ("", 0.0))


def _place(row: Json, axes: Json) -> tuple[str, float] | None:
    """The axis that the row's metrics are drawn against, and where on it; the usual name where none was defined."""
    defined = [axis for pattern, axis in axes.items() if any(fnmatch.fnmatchcase(key, pattern) for key in row)]
    found = next((axis for axis in (*defined, USUAL_AXIS) if isinstance(row.get(axis), int | float)), None)
    return (found, row[found]) if found else None
