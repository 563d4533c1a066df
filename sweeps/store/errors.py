"""The errors that the command line prints as one line, and the text that lists valid choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

OK, NOT_DONE = 0, 1
"""Exit statuses of subcommands."""


class UserError(ValueError):
    """Names the field, the value and the valid choices; the command line prints it and exits with 2."""


class StoreError(UserError):
    """The store cannot be used as it is; the message says what to do, in one line."""


class DamagedFileError(StoreError):
    """A file of the store does not hold what was written to it; the message names it."""


def describe_fault(error: BaseException) -> str:
    """An error in one line: the messages of our own say all; others mean little without the error's type."""
    text = " ".join(str(error).split())[:2000]
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def choices(given: str, valid: Iterable[str]) -> str:
    """`did you mean x? valid: a, b, x`, as the tail of a message."""
    names = sorted(valid)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}valid: {', '.join(names)}"
