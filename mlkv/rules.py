"""Rules that choose which layers share keys and values: by what it costs that one layer reads another.

A cost is a matrix: `cost[i][j]` is what it costs that layer `j` reads the keys and values of layer `i` below it, by
whatever measure (dissimilarity, similarity, the loss that it causes). A layout costs the sum over all layers that
read another's. Groups are of neighbours and read from their bottom. `L` layers, `M` groups or owners. Needs the
standard library alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, combinations

from .layout import Sources

MOST_CHOICES = 10_000
"""Sets of owners that `any_below` compares with each other."""
Cost = Sequence[Sequence[float]]
Groups = tuple[int, ...]
"""Layers of each group, lowest group first."""


def cost_of(groups: Groups, cost: Cost) -> float:
    """What a grouping costs."""
    starts = [sum(groups[:group]) for group in range(len(groups))]
    return math.fsum(_of_group(cost, start, size) for start, size in zip(starts, groups, strict=True))


def greedy(cost: Cost, groups: int) -> Groups:
    """From every layer by itself: join the two neighbouring groups whose joining adds least, until `groups` are left;
    of equals the lowest. Raises ValueError for a matrix that is not square and for a number that no grouping has."""
    _check(cost, groups)
    found: Groups = (1,) * len(cost)
    while len(found) > groups:
        joined = [(*found[:i], found[i] + found[i + 1], *found[i + 2 :]) for i in range(len(found) - 1)]
        found = min(joined, key=lambda each: cost_of(each, cost))
    return found


def cheapest(cost: Cost, groups: int) -> Groups:
    """The grouping into `groups` that costs least, by dynamic programming over where the last group begins: L² · M
    sums. Raises like `greedy`."""
    _check(cost, groups)

    @cache
    def best(layers: int, number: int) -> tuple[float, Groups]:
        """Of the lowest `layers` layers in `number` groups."""
        if number == 1:
            return _of_group(cost, 0, layers), (layers,)
        ways = []
        for start in range(number - 1, layers):
            before, below = best(start, number - 1)
            ways.append((before + _of_group(cost, start, layers - start), (*below, layers - start)))
        return min(ways, key=lambda way: way[0])

    return best(len(cost), groups)[1]


def _of_group(cost: Cost, start: int, size: int) -> float:
    return math.fsum(cost[start][layer] for layer in range(start + 1, start + size))


def any_below(cost: Cost, owners: int) -> Sources:
    """The source of each layer where a layer may read any owner below it: each that owner which costs it least (of
    equals the nearest), and the owners with which that is least in all. Where there are more than MOST_CHOICES sets of
    owners, from all layers as owners the one that is missed least is taken away, again and again; the result is never
    worse than `cheapest`. Raises like `greedy`."""
    _check(cost, owners)
    layers = len(cost)
    if math.comb(layers - 1, owners - 1) <= MOST_CHOICES:
        sets = ((0, *others) for others in combinations(range(1, layers), owners - 1))
        return _reading(cost, min(sets, key=lambda own: cost_of_sources(_reading(cost, own), cost)))
    own = tuple(range(layers))
    while len(own) > owners:
        fewer = [(*own[:i], *own[i + 1 :]) for i in range(1, len(own))]
        own = min(fewer, key=lambda each: cost_of_sources(_reading(cost, each), cost))
    neighbours = tuple(accumulate(cheapest(cost, owners)[:-1], initial=0))
    return min((_reading(cost, each) for each in (own, neighbours)), key=lambda each: cost_of_sources(each, cost))


def cost_of_sources(sources: Sources, cost: Cost) -> float:
    """What it costs that each layer reads this one."""
    return math.fsum(cost[source][layer] for layer, source in enumerate(sources) if source != layer)


def _reading(cost: Cost, owners: Sequence[int]) -> Sources:
    own, sources = set(owners), []
    for layer in range(len(cost)):
        below = [owner for owner in owners if owner < layer]
        sources.append(layer if layer in own else min(reversed(below), key=lambda owner: cost[owner][layer]))
    return tuple(sources)


def negative(matrix: Cost) -> list[list[float]]:
    """Of a similarity the cost, by which what is similar is shared first."""
    return [[-value for value in row] for row in matrix]


def _check(cost: Cost, groups: int) -> None:
    if any(len(row) != len(cost) for row in cost):
        raise ValueError(f"cost: has {len(cost)} rows, and one of {next(len(r) for r in cost if len(r) != len(cost))}")
    if not 1 <= groups <= len(cost):
        raise ValueError(f"groups = {groups}: {len(cost)} layers take 1 to {len(cost)}")
