"""The seal on a record: a hash of the rest of it, so that a number edited later is seen.

It is computed from the JSON, not from the type: a record that has other keys, from earlier or later code, can be
checked too.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from mlkv.files import Json
from sweeps.store.schema import Record
from sweeps.store.typed_json import as_json


def sealed(record: Record) -> Record:
    """The record with its seal. Raises ValueError for NaN, which JSON does not hold."""
    return replace(record, seal=_hash(as_json(replace(record, seal=None))))


def seal_holds(record: Json) -> bool | None:
    """Whether the record is as it was sealed; None for one without a seal, as earlier code wrote them."""
    if "seal" not in record:
        return None
    try:
        return bool(record["seal"] == _hash({key: value for key, value in record.items() if key != "seal"}))
    except ValueError:  # NaN, which was never sealed
        return False


def _hash(record: Json) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
