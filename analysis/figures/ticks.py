"""Where axes have their marks: powers of two for bytes, round numbers for scores."""

from __future__ import annotations

import math


def byte_ticks(low: float, high: float, most: int) -> list[int]:
    """Powers of two from `low` to `high` (both above 0.5), thinned evenly to at most `most`."""
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    stride = max(1, math.ceil((last - first + 1) / most))
    return [2**power for power in range(first, last + 1, stride)]


def nice_ticks(low: float, high: float, about: int = 6) -> tuple[list[float], int]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`, and the decimals they need."""
    rough = (high - low) / about
    power = math.floor(math.log10(rough))
    step = next(m * 10.0**power for m in (1, 2, 5, 10) if m * 10.0**power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)], max(0, -math.floor(math.log10(step) + 1e-9))


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers from `low` to `high` (both above 0) for a logarithmic axis: the densest of 1-2-5,
    1-3 and powers of ten that fits; multiples of a round step where the axis spans less than that."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**power for power in decades for m in steps if low <= m * 10.0**power <= high]
        if len(found) < 3:
            return nice_ticks(low, high, max(3, most - 2))[0]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]
