"""The errors that the command line prints as one line, and the text that lists valid choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

OK, NOT_DONE = 0, 1
"""Exit statuses of subcommands."""
_SHOWN = 80
"""Characters of a value that a message shows."""


class UserError(ValueError):
    """Names the field, the value and the valid choices; the command line prints it and exits with 2.

    The message is one printable line, whatever is quoted in it: names of files and values can hold any character."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.splitlines())))


class StoreError(UserError):
    """The store cannot be used as it is; the message says what to do, in one line."""


class DamagedFileError(StoreError):
    """A file of the store does not hold what was written to it; the message names it."""


def shown(value: Any) -> str:
    """A value as YAML writes it, cut where it is long."""
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(shown, value))}]"
    elif isinstance(value, str):
        text = value if value.strip() else f"'{value}'"
    else:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else _number(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def _number(value: Any) -> str:
    """Python writes an integer of more than 4300 digits in hexadecimal only."""
    return f"{value:#x}" if isinstance(value, int) and value.bit_length() > 10_000 else str(value)


def choices(given: str, valid: Iterable[str]) -> str:
    """`did you mean x? valid: a, b, x`, as the tail of a message."""
    names = sorted(valid)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}valid: {', '.join(names)}"
