"""Which numbers tables compare and figures draw. Imports nothing."""

from __future__ import annotations

from typing import TypeGuard

LARGEST = 1e100
"""No measurement or score is beyond; margins and squares of smaller numbers are finite."""
_LEAST = 1e-308
"""Below it a float loses its digits."""


def on_axis(value: float | None) -> TypeGuard[float]:
    """Whether a linear axis has a place for it. Whoever draws leaves out the others, and says how many they are."""
    return value is not None and abs(value) <= LARGEST


def on_log_axis(value: float | None) -> TypeGuard[float]:
    """The same of a logarithmic axis, which has no place for 0 and what is below it."""
    return value is not None and _LEAST <= value <= LARGEST
