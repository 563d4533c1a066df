"""JSON as dataclasses, and dataclasses as JSON.

Reading is strict about types and lenient about keys: a key of later code is ignored, and one that earlier code did not
write yet has a default. What does not fit raises an error that names the field; where a file is read, DamagedFileError,
which names the file and what to do too. Writing gives the keys in the order of the fields, so that a file that is read
and written again has the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from mlkv.context import MetricRow
from mlkv.files import Json
from sweeps.store.errors import DamagedFileError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def later() -> Any:
    """A field that earlier code did not write, and that is left out of a file where it has no value."""
    return field(default=None, metadata={"later": True})


@dataclass(frozen=True, kw_only=True)
class Fields:
    """A JSON object whose keys belong to a kind of step: all of it is in `fields`. A subclass checks the keys that
    every kind has, and gives them properties."""

    MAY_DIVERGE: ClassVar[bool] = False
    """Whether it can hold numbers that are not finite, as training that diverged logs them."""
    fields: Json = field(default_factory=dict)


def check_type(values: Json, name: str, *types: type) -> None:
    """Raises ValueError, naming the key, for a value of another type; True and False are no numbers."""
    value = values.get(name)
    if name in values and type(value) not in types:
        raise ValueError(f"{name}: should be {types[0].__name__}, not {str(value)[:40]}")


def load(kind: type[T], path: Path) -> T | None:
    """What a file holds; None where there is no file. Raises DamagedFileError and OSError."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return parsed(kind, content)
    except ValueError as error:
        raise DamagedFileError(f"{path}: {error}; {getattr(kind, 'REMEDY', 'delete it')}") from None


_RACY_SECONDS = 2.0
"""A file can change twice within one tick of the clock that stamps it, so what was written just now is read again."""
_known: dict[tuple[type[Any], str], tuple[tuple[int, ...], Any]] = {}


def load_once(kind: type[T], path: Path | str) -> T | None:
    """The same of a file that seldom changes and that one command looks at many times: it is read again where its time,
    size or inode differ. What is returned is shared and must not be changed."""
    key = (kind, str(path))
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    version = (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)
    known = _known.get(key)
    if known is not None and known[0] == version:
        return cast("T", known[1])
    value = load(kind, Path(path))
    if time.time() - found.st_ctime > _RACY_SECONDS:
        _known[key] = (version, value)
    return value


def from_json(kind: type[T], value: Json) -> T:
    """The same of JSON that is parsed already. Raises ValueError that names the field."""
    return parsed(kind, json.dumps(value).encode())


def as_json(value: Any) -> Any:
    """What JSON holds of a value: objects with the fields in their order, without those that have no value and that
    earlier code did not write."""
    if isinstance(value, MetricRow):
        return value.as_json()
    if isinstance(value, Fields):
        return as_json(value.fields)
    if dataclasses.is_dataclass(value):
        fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {f.name: as_json(held) for f, held in fields if held is not None or "later" not in f.metadata}
    if isinstance(value, Mapping):
        return {key: as_json(held) for key, held in value.items()}
    return [as_json(held) for held in value] if isinstance(value, list | tuple) else value


def parsed(kind: type[T], content: bytes) -> T:
    """What some JSON text says. Raises ValueError that names the field."""
    from pydantic import ValidationError

    if _UNUSUAL_NUMBER.search(content):
        _check_numbers(content, diverged=getattr(kind, "MAY_DIVERGE", False))
    if issubclass(kind, Fields):
        return kind(fields=_object(content))
    try:
        # Of JSON text, strict still means that a list can become a tuple, and an object a dataclass; of Python's values
        # it would not (https://docs.pydantic.dev/latest/concepts/conversion_table/).
        return cast("T", _adapter(kind).validate_json(content, strict=True))
    except ValidationError as error:
        if error.errors()[0]["type"] != "json_invalid":
            raise ValueError(_first_fault(error)) from None
    # Python writes half a surrogate pair, as in a file name that is no text and that a reason quotes; pydantic does not
    # read it.
    try:
        respelled = json.dumps(_object(content), ensure_ascii=False).encode(errors="replace")
        return cast("T", _adapter(kind).validate_json(respelled, strict=True))
    except RecursionError:
        raise ValueError("is no JSON (it is nested too deeply)") from None
    except ValidationError as error:
        raise ValueError(_first_fault(error)) from None


_UNUSUAL_NUMBER = re.compile(rb"NaN|Infinity|\d[eE]\+?\d{3}|\d{19}")
"""What a number looks like that no table can hold. A text may look so too: only the parser tells."""


def _check_numbers(content: bytes, *, diverged: bool) -> None:
    """Raises ValueError for an integer of more than 64 bits, and for what is not finite unless training that `diverged`
    may have logged it."""
    number = float if diverged else _finite
    try:
        json.loads(content, parse_float=number, parse_int=_of_64_bits, parse_constant=number)
    except RecursionError as error:
        raise ValueError(f"is no JSON ({error})") from None


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]}: is no finite number")
    return value


def _of_64_bits(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{text[:40]}: is too large")
    return int(text)


def _object(content: bytes) -> Json:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")
    return value


_adapters: dict[Any, TypeAdapter[Any]] = {}
"""Each is made once, as that takes a hundred times as long as reading a file."""


def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def _first_fault(error: ValidationError) -> str:
    """`metrics.0.value: should be a valid number, not 'x'`."""
    fault = error.errors()[0]
    place, message = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if not place:
        return "is no JSON object"
    if fault["type"] == "missing":
        return f"has no {place}"
    return f"{place}: {message}, not {str(fault['input'])[:40]}"
