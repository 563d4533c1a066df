"""Setting values on plain dictionaries: faster than on OmegaConf's, which do it wherever the two may differ."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Values = dict[str, Any]
_KEY = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_REFERENCE = re.compile(rf"\$\{{({_KEY.pattern})\}}")
_MISSING = "???"
"""OmegaConf's for a value that somebody has to give."""


class _InDoubt(Exception):
    """OmegaConf may do something else with this than replace a value by another."""


def select(config: Values, key: str) -> Any:
    """The value under a dotted key; None where there is none."""
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def with_values(config: Values, changes: Mapping[str, Any]) -> Values | None:
    """A copy with values under dotted keys, and references (`${corpus.vocab_size}`) replaced by what they refer to.

    None where that is not certain to be what OmegaConf makes of it: mappings are merged, values computed, keys written
    with brackets, and what must be given is missing.
    """
    try:
        changed = _copy(config, lambda text: text)
        for key, value in changes.items():
            _set(changed, key, _copy(value, _plain_text))
        return _copy(changed, lambda text: _resolved(changed, text))
    except _InDoubt:
        return None


def _copy(value: Any, text: Callable[[str], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _copy(each, text) for key, each in value.items()}
    if isinstance(value, list):
        return [_copy(each, text) for each in value]
    if isinstance(value, str):
        return text(value)
    if value is None or isinstance(value, int | float):
        return value
    raise _InDoubt


def _plain_text(text: str) -> str:
    if "${" in text or text == _MISSING:
        raise _InDoubt
    return text


def _set(config: Values, key: str, value: Any) -> None:
    *above, last = key.split(".")
    place = select(config, ".".join(above)) if above else config
    if not _KEY.fullmatch(key) or not isinstance(place, dict):
        raise _InDoubt
    if isinstance(value, dict) or isinstance(place.get(last), dict):
        raise _InDoubt
    place[last] = value


def _resolved(config: Values, text: str) -> Any:
    """What a text stands for, through references to references."""
    found: Any = text
    for _ in range(10):
        if not isinstance(found, str) or not (reference := _REFERENCE.fullmatch(found)):
            break
        found = select(config, reference[1])
    if isinstance(found, dict | list) or (found is None and text is not found):
        raise _InDoubt
    return _plain_text(found) if isinstance(found, str) else found
