"""CSV files of measurements: ours (variant, batch, metric, value and, where it is known, context), or with the columns
of the MLKV authors."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from analysis.data.frame import Row
from analysis.data.json_values import name_of
from analysis.data.measured import ABOVE_ZERO, CACHE, PUBLISHED_MEMORY, SPEED

_AUTHORS = {"model_name", "batch_size", "kv_cache_mem", "memory_usage", "inference_speed", "inference_time"}
_OURS = {"variant", "batch", "metric", "value"}
_LARGEST = 2.0**53

Line = dict[str, str]
T = TypeVar("T")


def measurement_cells(path: Path) -> list[tuple[str, Row]]:
    """(model, cell) of every measurement in a file.

    Raises ValueError for a file that cannot be read, for other columns, and for a line with a value that is no number.
    """
    measured = []
    for at, line in read_lines(path):
        theirs, ours = _AUTHORS.issubset(line), _OURS.issubset(line)
        if not theirs and not ours:
            wanted = f"{', '.join(sorted(_OURS))} or {', '.join(sorted(_AUTHORS))}"
            raise ValueError(f"columns {', '.join(line)}: wanted {wanted}")
        cells = on_line(at, _authors_cells if theirs else _own_cells, line)
        measured += [(line["model_name" if theirs else "variant"], {"kind": "measure", **cell}) for cell in cells]
    return measured


def read_lines(path: Path, wanted: set[str] | None = None) -> Iterator[tuple[int, Line]]:
    """Lines by number. Raises ValueError where a wanted column is not there, or the file is no CSV."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if lacking := sorted((wanted or set()) - set(reader.fieldnames or ())):
                raise ValueError(f"has no column {lacking[0]}")
            for line in reader:
                yield reader.line_num, {name: value or "" for name, value in line.items() if name is not None}
    except csv.Error as error:
        raise ValueError(f"is not CSV ({error})") from None
    except UnicodeDecodeError:
        raise ValueError("is not CSV (not UTF-8)") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None


def on_line(at: int, read: Callable[[Line], T], line: Line) -> T:
    try:
        return read(line)
    except ValueError as error:
        raise ValueError(f"line {at}: {error}") from None


def _authors_cells(line: Line) -> list[Row]:
    """The context is 2,000 + speed · time / batch: the authors' script starts with a cache of 2,000 tokens and decodes
    the rest."""
    batch, speed, seconds = (
        _whole(line, "batch_size"),
        _number(line, "inference_speed"),
        _number(line, "inference_time"),
    )
    decoded = speed * seconds
    if batch < 1 or not 0 <= decoded < _LARGEST:
        raise ValueError(f"batch_size = {batch}, speed · time = {decoded}: do not give a number of decoded tokens")
    common = {"batch": batch, "context": 2000 + round(decoded / batch)}
    scores = {
        CACHE: _number(line, "kv_cache_mem") * 2**20,
        PUBLISHED_MEMORY: _number(line, "memory_usage") * 2**20,
        SPEED: speed,
    }
    return [{**common, **_measurement(metric, value)} for metric, value in scores.items()]


def _own_cells(line: Line) -> list[Row]:
    if not line["variant"].strip() or not line["metric"].strip():
        raise ValueError("variant and metric may not be empty")
    context = _whole(line, "context") if line.get("context") else None
    if (batch := _whole(line, "batch")) < 1:
        raise ValueError(f"batch = {batch}: must be at least 1")
    if context is not None and context < 0:
        raise ValueError(f"context = {context}: may not be negative")
    return [{"batch": batch, "context": context, **_measurement(name_of(line["metric"]), _number(line, "value"))}]


def _measurement(metric: str, value: float) -> Row:
    """Its value, or why there is none."""
    wrong = "not above zero" if value <= 0 else "too large to be one" if _LARGEST < value < math.inf else ""
    if metric in ABOVE_ZERO and wrong:
        return {"metric": metric, "value": None, "reason": f"{value:g}, {wrong}"}
    return {"metric": metric, "value": value}


def _number(line: Line, name: str) -> float:
    try:
        return float(line[name])
    except ValueError:
        raise ValueError(f"{name} = {line[name]}: is no number") from None


def _whole(line: Line, name: str) -> int:
    number = _number(line, name)
    if not number.is_integer() or abs(number) > _LARGEST:
        raise ValueError(f"{name} = {line[name]}: is no whole number")
    return int(number)
