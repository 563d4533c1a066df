"""Values out of JSON that anybody may have written: nothing about their types is certain."""

from __future__ import annotations

import json
import re
from typing import Any

Json = dict[str, Any]


def as_dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def text(value: Any) -> str:
    """A JSON value as one text, the same for `1`, `1.0` and `"1"`, and for keys in any order."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool) or value is None:
        return str(value)
    return json.dumps(value, sort_keys=True)


def name_of(value: str) -> str:
    """A task's or a metric's name as one word: tables list them with spaces between."""
    return re.sub(r"[\s\x00-\x1f\ud800-\udfff]+", "_", value.strip())
