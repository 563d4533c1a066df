"""Takes the places of a machine out of what is packed: folders say nothing to another person, and tell who and where
the packer is."""

from __future__ import annotations

import re
from typing import Any

_FOLDERS = re.compile(r"(?<![\w.:…/])~?/(?=[^\s/])(?:[^/,\]\"'\n]+/)*")
"""The folders of an absolute path; not an address (`https://…`), a fraction or a relative path."""
_MARK = "…/"


def without_paths(value: Any) -> Any:
    """A JSON value in which every absolute path is its last part alone, behind a `…/`."""
    if isinstance(value, str):
        return _FOLDERS.sub(_MARK, value)
    if isinstance(value, list | tuple):
        return [without_paths(each) for each in value]
    if isinstance(value, dict):
        return {without_paths(key): without_paths(each) for key, each in value.items()}
    return value
