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
