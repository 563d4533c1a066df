"""Where to write the names of points and lines so that no name covers a point or another name. Numbers alone.

Boxes are (x0, y0, x1, y1) in any unit; which way y grows does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

XY = tuple[float, float]
Box = tuple[float, float, float, float]
Numbers = NDArray[np.float64]
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
    fixed, crossed = _boxes(taken), _boxes(_beads(lines, gap))
    places: list[_Places] = []
    for i, (anchor, size) in enumerate(zip(anchors, sizes, strict=True)):
        reach = _FAR if near is None or i < near else _NEAR
        rivals = np.array([other for other in anchors if other != anchor], dtype=np.float64).reshape(-1, 2)
        places.append(_Places.of(anchor, size, fixed, crossed, rivals, bounds, gap, reach))
    chosen: list[Box | None] = [None] * len(anchors)
    for _ in range(_ROUNDS):
        for i, own in enumerate(places):
            chosen[i] = own.cheapest(_boxes([box for j, box in enumerate(chosen) if box and j != i]), gap)
    return [None if box is None else (box[0], box[1]) for box in chosen]


@dataclass(frozen=True)
class _Places:
    """The places that a label may have, all of which are looked at together, as there are dozens for each of hundreds
    of labels. `costs` are those without other labels."""

    boxes: Boxes
    costs: Numbers

    @classmethod
    def of(
        cls,
        anchor: XY,
        size: XY,
        fixed: Boxes,
        crossed: Boxes,
        rivals: Boxes,
        bounds: Box,
        gap: float,
        reach: Sequence[float],
    ) -> _Places:
        """Those within `bounds` that cover none of the `fixed` boxes, near ones first."""
        distances = np.repeat(np.array(reach), len(_DIRECTIONS))
        boxes = _candidates(anchor, size, gap * distances)
        costs = distances + np.tile(_PREFERENCE * np.arange(len(_DIRECTIONS)), len(reach))
        free = _inside(boxes, bounds) & (_overlaps(boxes, fixed) == 0)
        boxes, costs = boxes[free], costs[free]
        costs = costs + _CROSSING * _overlaps(boxes, crossed) / (size[0] * size[1])
        own = np.array([math.dist(nearest((x0, y0, x1, y1), anchor), anchor) for x0, y0, x1, y1 in boxes.tolist()])
        return cls(boxes, costs + _CONFUSION * (_distances(boxes, rivals) < own + gap / 2))

    def cheapest(self, others: Boxes, gap: float) -> Box | None:
        """The cheapest place that covers none of the `others`, the labels that have their places."""
        free = _overlaps(self.boxes, others) == 0
        if not free.any():
            return None
        boxes = self.boxes[free]
        grown = boxes + np.array([-1, -1, 1, 1]) * (gap / 2)
        costs = self.costs[free] + _CROWDING * (_overlaps(grown, others) > 0)
        x0, y0, x1, y1 = boxes[costs.argmin()].tolist()
        return (x0, y0, x1, y1)


def _candidates(anchor: XY, size: XY, distances: Numbers) -> Boxes:
    """In each direction, for one distance after the other, the box of `size` whose nearest edge or corner lies so far
    from the anchor."""
    directions = np.array([(math.cos(angle), math.sin(angle)) for angle in _DIRECTIONS])
    # On which side of the anchor the box's centre lies, fully so from 45° on.
    towards = np.clip(directions / math.sin(math.radians(45)), -1, 1)
    count = len(distances) // len(directions)
    (dx, dy), (right, up) = np.tile(directions, (count, 1)).T, np.tile(towards, (count, 1)).T
    x = anchor[0] + distances * dx + size[0] / 2 * (right - 1)
    y = anchor[1] + distances * dy + size[1] / 2 * (up - 1)
    return np.stack([x, y, x + size[0], y + size[1]], axis=1)


def nearest(box: Box, point: XY) -> XY:
    """The point of a box that is nearest to a given one: where a line to a far label ends."""
    return (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))


def _inside(boxes: Boxes, bounds: Box) -> NDArray[np.bool_]:
    low = (boxes[:, 0] >= bounds[0]) & (boxes[:, 1] >= bounds[1])
    return low & (boxes[:, 2] <= bounds[2]) & (boxes[:, 3] <= bounds[3])


def _overlaps(boxes: Boxes, others: Boxes) -> Numbers:
    """Of each box the area that the others cover, counted once for each."""
    width = np.minimum(boxes[:, None, 2], others[:, 2]) - np.maximum(boxes[:, None, 0], others[:, 0])
    height = np.minimum(boxes[:, None, 3], others[:, 3]) - np.maximum(boxes[:, None, 1], others[:, 1])
    return np.asarray((np.clip(width, 0, None) * np.clip(height, 0, None)).sum(axis=1))


def _distances(boxes: Boxes, points: Boxes) -> Numbers:
    """From each box to the nearest of the points."""
    across = np.maximum(np.maximum(boxes[:, None, 0] - points[:, 0], points[:, 0] - boxes[:, None, 2]), 0)
    up = np.maximum(np.maximum(boxes[:, None, 1] - points[:, 1], points[:, 1] - boxes[:, None, 3]), 0)
    return np.asarray(np.hypot(across, up).min(axis=1, initial=math.inf))


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
