"""Values out of JSON that anybody may have written: their types are not known."""

from __future__ import annotations

import json
import re

Object = dict[str, object]
"""A JSON object of another program."""


def as_dict(value: object) -> Object:
    return value if isinstance(value, dict) else {}


def text(value: object) -> str:
    """A JSON value as one text, the same for `1`, `1.0` and `"1"`, and for keys in any order."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool) or value is None:
        return str(value)
    return json.dumps(value, sort_keys=True)


def name_of(value: str) -> str:
    """A task's or a metric's name as one word: tables separate names by spaces."""
    return re.sub(r"[\s\x00-\x1f\ud800-\udfff]+", "_", value.strip())
