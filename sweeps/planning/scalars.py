"""Numbers and texts in a composed configuration: what no field can hold, whatever its schema says."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin

from sweeps.store.errors import UserError, shown

_FREE_TEXT = ("cluster.setup", "cluster.extra", "cluster.python", "sweep.filter", "sweep.grid")
"""Shell lines and expressions, which may be long and have several lines."""
_LONGEST_TEXT = 4096
"""What an operating system takes as a path."""


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The values inside mappings and lists, each with its path: `corpus.files[0]`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{i}]")
    else:
        yield path, value


@cache
def is_number(hint: Any) -> bool:
    """Whether a field holds numbers alone, by themselves or in lists and mappings."""
    types = set(_leaf_types(hint))
    return bool(types & {int, float}) and not types & {bool, str, Any}


def _leaf_types(hint: Any) -> Iterator[Any]:
    inner = get_args(hint)
    if not inner or get_origin(hint) is Literal:
        yield hint
        return
    for each in inner[1:] if get_origin(hint) is dict else inner:
        yield from _leaf_types(each)


_MISLEADING = re.compile(r"\s*[-+]?(0[0-9_]+|[0-9_]*_[0-9_]*|\s+[0-9]+|[0-9]+\s+)")


def check_number(place: str, leaf: Any, own_forms: bool) -> None:
    """Refuse what pydantic would take for a number and a reader for another one: true for 1, `010` for 10.

    own_forms: the field reads text by itself. Raises UserError.
    """
    if isinstance(leaf, bool):
        raise UserError(f"{place} = {shown(leaf)}: must be a number")
    if isinstance(leaf, str) and not own_forms and _MISLEADING.fullmatch(leaf):
        raise UserError(f"{place} = {shown(leaf)}: must be a number, written without leading zeros, spaces and _")


def check_texts(values: Mapping[str, Any]) -> None:
    """Refuse text that no path, name or table can hold. Raises UserError."""
    for place, leaf in leaves(values, ""):
        if isinstance(leaf, str) and (fault := _text_fault(leaf, free=place[1:].startswith(_FREE_TEXT))):
            raise UserError(f"{place[1:]} = {shown(leaf)}: {fault}")


def _text_fault(text: str, free: bool) -> str:
    if text.isascii() and text.isprintable() and text.strip() and len(text) <= _LONGEST_TEXT:
        return ""
    if "\0" in text:
        return "has the character NUL"
    if any(unicodedata.category(c) == "Cs" for c in text):
        return "is not UTF-8"
    if free:
        return ""
    if not text.strip():
        return "is blank; null leaves a field unset"
    if any(unicodedata.category(c) == "Cc" for c in text):
        return "has a control character"
    return f"has {len(text)} characters, at most {_LONGEST_TEXT} are valid" if len(text) > _LONGEST_TEXT else ""
