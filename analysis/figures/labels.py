"""Where to write the names of points and lines so that no name covers a point or another name. Numbers alone.

Boxes are (x0, y0, x1, y1) in any unit; which way y grows does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

XY = tuple[float, float]
Box = tuple[float, float, float, float]
Boxes = NDArray[np.float64]

# Of a fixed set of places around its point each label takes the cheapest free one, and all are reconsidered in a few
# rounds: the greedy form of the search in Christensen, Marks and Shieber, "An empirical study of algorithms for
# point-feature label placement" (ACM Transactions on Graphics 14(3), 1995). The best arrangement is NP-hard to find.
# Cartographers prefer the upper right, so it comes first.
_DIRECTIONS = [
    math.radians(angle) for angle in (45, 90, 0, 135, 315, 270, 180, 225, 20, 70, 110, 160, 200, 250, 290, 340)
]
_NEAR, _FAR = (1.0, 1.8), (1.0, 1.8, 2.8, 4.0, 5.5)
"""Distances from the point, in gaps."""
_ROUNDS = 3
_PREFERENCE, _CROSSING, _CONFUSION, _CROWDING = 0.03, 14.0, 2.5, 0.5
"""Costs in units of the distance: of each direction further down the list; of a label that a line crosses wholly; of a
label as close to another point as to its own; of a label that touches another one. Chosen by eye on published sets."""


def place(
    anchors: Sequence[XY],
    sizes: Sequence[XY],
    *,
    taken: Sequence[Box],
    lines: Sequence[tuple[XY, XY]] = (),
    bounds: Box,
    gap: float,
    near: int | None = None,
) -> list[XY | None]:
    """The lower corner (x0, y0) of a label of each size near its anchor, or None where there is no free place.

    `taken` must not be covered, `lines` should not be; earlier labels choose first, then all are reconsidered in turn.
    `gap` is the distance kept from the anchor, and the unit in which labels move away from it; labels from number
    `near` on are left out rather than moved far.
    """
    chosen: list[Box | None] = [None] * len(anchors)
    fixed, crossed = _boxes(taken), _boxes(_beads(lines, gap))
    for _ in range(_ROUNDS):
        for i, (anchor, size) in enumerate(zip(anchors, sizes, strict=True)):
            others = _boxes([box for j, box in enumerate(chosen) if box and j != i])
            reach = _FAR if near is None or i < near else _NEAR
            rivals = np.array([other for other in anchors if other != anchor], dtype=np.float64).reshape(-1, 2)
            chosen[i] = _choose(anchor, size, fixed, others, crossed, rivals, bounds, gap, reach)
    return [None if box is None else (box[0], box[1]) for box in chosen]


def _choose(
    anchor: XY,
    size: XY,
    fixed: Boxes,
    others: Boxes,
    crossed: Boxes,
    rivals: Boxes,
    bounds: Box,
    gap: float,
    reach: Sequence[float],
) -> Box | None:
    """The cheapest place that covers neither `fixed` boxes nor `others`, the labels that have their places."""
    best, best_cost = None, math.inf
    for distance in reach:
        for preference, direction in enumerate(_DIRECTIONS):
            box = _candidate(anchor, size, direction, gap * distance)
            if not _inside(box, bounds) or _overlap(box, fixed) > 0 or _overlap(box, others) > 0:
                continue
            cost = distance + _PREFERENCE * preference + _CROSSING * _overlap(box, crossed) / (size[0] * size[1])
            cost += _CONFUSION * (_distance(box, rivals) < math.dist(nearest(box, anchor), anchor) + gap / 2)
            cost += _CROWDING * (_overlap(_grown(box, gap / 2), others) > 0)
            if cost < best_cost:
                best, best_cost = box, cost
    return best


def _grown(box: Box, by: float) -> Box:
    return (box[0] - by, box[1] - by, box[2] + by, box[3] + by)


def _candidate(anchor: XY, size: XY, direction: float, distance: float) -> Box:
    """The box of `size` whose nearest edge or corner lies `distance` from the anchor."""
    dx, dy = math.cos(direction), math.sin(direction)
    x = anchor[0] + distance * dx + size[0] / 2 * (_toward(dx) - 1)
    y = anchor[1] + distance * dy + size[1] / 2 * (_toward(dy) - 1)
    return (x, y, x + size[0], y + size[1])


def _toward(component: float) -> float:
    """-1 to 1: on which side of the anchor the box's centre lies, fully so from 45° on."""
    return max(-1.0, min(1.0, component / math.sin(math.radians(45))))


def nearest(box: Box, point: XY) -> XY:
    """The point of a box that is nearest to a given one: where a line to a far label ends."""
    return (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))


def _inside(box: Box, bounds: Box) -> bool:
    return box[0] >= bounds[0] and box[1] >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]


def _overlap(box: Box, boxes: Boxes) -> float:
    """Area of `box` that `boxes` cover, counted once for each."""
    width = np.minimum(boxes[:, 2], box[2]) - np.maximum(boxes[:, 0], box[0])
    height = np.minimum(boxes[:, 3], box[3]) - np.maximum(boxes[:, 1], box[1])
    return float((np.clip(width, 0, None) * np.clip(height, 0, None)).sum())


def _distance(box: Box, points: Boxes) -> float:
    """From the box to the nearest of the points."""
    across = np.maximum(np.maximum(box[0] - points[:, 0], points[:, 0] - box[2]), 0)
    up = np.maximum(np.maximum(box[1] - points[:, 1], points[:, 1] - box[3]), 0)
    return float(np.hypot(across, up).min(initial=math.inf))


def _beads(lines: Sequence[tuple[XY, XY]], step: float) -> list[Box]:
    """Lines as chains of small boxes."""
    beads = []
    for (x0, y0), (x1, y1) in lines:
        count = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / step))
        for k in range(count + 1):
            x, y = x0 + (x1 - x0) * k / count, y0 + (y1 - y0) * k / count
            beads.append((x - step / 2, y - step / 2, x + step / 2, y + step / 2))
    return beads


def _boxes(boxes: Sequence[Box]) -> Boxes:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def stack(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights from high to low, moved as little as needed to be `gap` apart and between the edges. There has to be
    room for all of them."""
    spread_out = spread(heights, gap)
    top = [min(height, high - gap * i) for i, height in enumerate(spread_out)]
    return [max(height, low + gap * (len(top) - 1 - i)) for i, height in enumerate(top)]


def spread(heights: Iterable[float], gap: float) -> list[float]:
    """Heights from high to low, moved as little as needed (least squares) to be `gap` apart."""
    # Isotonic regression by pooling adjacent violators: heights that push each other share the mean of their wishes.
    groups: list[list[float]] = []
    for i, height in enumerate(heights):
        groups.append([height + gap * i])
        while len(groups) > 1 and fmean(groups[-1]) > fmean(groups[-2]):
            pushing = groups.pop()
            groups[-1] += pushing
    tops = [fmean(group) for group in groups for _ in group]
    return [top - gap * i for i, top in enumerate(tops)]
