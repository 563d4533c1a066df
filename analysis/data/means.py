"""The mean of independent scores, and its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean(values: Sequence[float], errors: Sequence[float | None]) -> tuple[float, float | None]:
    """The mean, and √(Σ error²)/n; no error where one of them is not known."""
    known = [error for error in errors if error is not None]
    stderr = math.sqrt(math.fsum(error * error for error in known)) / len(values)
    return math.fsum(values) / len(values), stderr if len(known) == len(values) else None
