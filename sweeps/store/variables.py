"""The environment variables that a user sets, each read in one place; a bad value is refused in one line."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

from sweeps.store.errors import UserError

T = TypeVar("T")


def variable(
    name: str, read: Callable[[str], T], default: T, valid: str, environment: Mapping[str, str] = os.environ
) -> T:
    """What a variable says; the default where it is not set, or empty. `read` raises ValueError, or what else a bad
    value leads to. Raises UserError, which names the variable, its value and what is valid."""
    if not (text := environment.get(name)):
        return default
    try:
        return read(text)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{name} = {text}: must be {valid}") from None


def stale_seconds() -> float:
    """A claim whose process this host cannot see is stale when its heartbeat is older than this."""
    return variable("MLKV_STALE_SECONDS", _positive, 60.0, "a number of seconds above 0")


def fork_server() -> bool:
    """Whether the jobs of a sweep on this machine compute in processes forked from one that has imported already."""
    return variable("MLKV_FORK_SERVER", {"0": False, "1": True}.__getitem__, True, "0 or 1")


def _positive(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(text)
    return number
