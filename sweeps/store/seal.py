"""The seal on a record: a hash of the rest of it, so that a number edited later is seen."""

from __future__ import annotations

import hashlib
import json

from mlkv.files import Json

KEY = "seal"


def sealed(record: Json) -> Json:
    """The record with its seal. Raises ValueError for NaN, which JSON does not hold."""
    return {**record, KEY: _hash(record)}


def is_sealed(record: Json) -> bool:
    """Records of earlier code are not."""
    return KEY in record


def seal_holds(record: Json) -> bool:
    try:
        return bool(record[KEY] == _hash({key: value for key, value in record.items() if key != KEY}))
    except ValueError:  # NaN, which was never sealed
        return False


def _hash(record: Json) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
