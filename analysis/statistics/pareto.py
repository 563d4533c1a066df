"""Which of some points (cost, quality) are Pareto-optimal. Pure functions of numbers.

A point dominates another when it costs no more, is no worse, and is better in at least one of the two. Equal points do
not dominate each other, so that ties are on the front together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def front(cost: Sequence[float], quality: Sequence[float], *, higher_is_better: bool = True) -> list[bool]:
    """For every point, whether no other dominates it. Cost is always better when lower. Raises ValueError."""
    points = _oriented(cost, quality, higher_is_better)
    on_front = [False] * len(points)
    best = (math.inf, -math.inf)
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best[1] or points[i] == best:
            best = points[i]
            on_front[i] = True
    return on_front


def dominated_by(cost: Sequence[float], quality: Sequence[float], *, higher_is_better: bool = True) -> list[int | None]:
    """For every point, the cheapest front point that dominates it (its index), or None on the front."""
    points = _oriented(cost, quality, higher_is_better)
    on_front = front(cost, quality, higher_is_better=higher_is_better)
    leaders = sorted((i for i, on in enumerate(on_front) if on), key=lambda i: points[i][0])
    return [
        None if on_front[i] else next(j for j in leaders if _dominates(points[j], points[i]))
        for i in range(len(points))
    ]


def hypervolume(
    cost: Sequence[float], quality: Sequence[float], reference: tuple[float, float], *, higher_is_better: bool = True
) -> float:
    """Area that the front covers, bounded by the `reference` (cost, quality); points beyond it add nothing.

    The unit is the cost's times the quality's. Callers pass log2 bytes: half the memory is then worth the same at
    every size, where in bytes the largest layouts alone would make up the area.
    """
    points = _oriented(cost, quality, higher_is_better)
    ((limit, floor),) = _oriented([reference[0]], [reference[1]], higher_is_better)
    area, reached = 0.0, floor
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if x < limit and y > reached:
            area += (limit - x) * (y - reached)
            reached = y
    return area


def _dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] >= b[1] and a != b


def _oriented(cost: Sequence[float], quality: Sequence[float], higher_is_better: bool) -> list[tuple[float, float]]:
    """Points as (lower is better, higher is better)."""
    if len(cost) != len(quality):
        raise ValueError(f"cost has {len(cost)} points, quality {len(quality)}: they must pair up")
    if not all(map(math.isfinite, (*cost, *quality))):
        raise ValueError("a point has a cost or quality that is not a finite number: leave missing results out")
    sign = 1.0 if higher_is_better else -1.0
    return [(float(x), sign * float(y)) for x, y in zip(cost, quality, strict=True)]
