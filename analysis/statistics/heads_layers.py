"""Do fewer heads per owner and fewer owners cost together what they cost alone?

With d(P, G) the damage of the grouping P of layers with G heads per owner, the interaction is d(P, G) - d(P, all heads)
- d(all layers, G). Where both are saved at once, damage is also fitted as a sum a(P) + b(G) and as a product
a(P) · b(G): which of them is nearer says whether the costs add up or multiply. Legend: `R` repetitions, `P` groupings,
`G` numbers of heads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.statistics import bootstrap
from analysis.statistics.elastic import Interval
from analysis.statistics.estimate import Difference, Estimate, Floats, contrast, mean_of
from analysis.statistics.landscape import Landscape, Point

FEWEST = 3
"""Layouts that save in both ways: of fewer there is nothing to say in general (statistics/interaction.py has each)."""


@dataclass(frozen=True)
class Together:
    """The mean over all measured groupings into so many owners, with so many heads each: what fewer heads cost alone,
    what the grouping costs alone, and both. `interaction` is `both` minus the two others."""

    owners: int
    heads: int
    layouts: int
    heads_alone: Difference
    layers_alone: Difference
    both: Difference
    interaction: Difference


@dataclass(frozen=True)
class Fits:
    """How far damage is from a sum and from a product of an effect of the grouping and one of the heads: root mean
    squares over `groupings` × `heads` layouts, in the unit of the score. `nearer`: by how much more the sum is off."""

    groupings: int
    heads: int
    spread: float
    """Standard deviation of the damages."""
    sum: float
    product: float
    nearer: Interval


@dataclass(frozen=True)
class Single:
    """One layout that saves in both ways: its name, and the damage that adding up predicts and that it has."""

    point: Point
    predicted: Difference
    damage: Difference


def together(landscape: Landscape) -> list[Together]:
    """A row for every number of owners and heads, most owners and heads first; empty where nothing saves in both ways.
    Only groupings that are measured alone and with fewer heads count."""
    found: dict[tuple[int, int], list[_Four]] = defaultdict(list)
    for four in _fours(landscape):
        found[four.both.owners, four.both.uniform or 0].append(four)
    return [_mean(owners, heads, found[owners, heads]) for owners, heads in sorted(found, reverse=True)]


def overall(landscape: Landscape) -> Difference | None:
    """The mean interaction of all layouts that save in both ways; None where there are none."""
    fours = _fours(landscape)
    return contrast(mean_of([each.interaction for each in fours])) if fours else None


def singles(landscape: Landscape) -> list[Single]:
    """Every layout that saves in both ways, in the order of the landscape."""
    return [
        Single(
            each.both,
            contrast([(1, each.heads.score), (1, each.layers.score), (-2, each.reference.score)]),
            contrast([(1, each.both.score), (-1, each.reference.score)]),
        )
        for each in _fours(landscape)
    ]


@dataclass(frozen=True)
class _Four:
    """The layouts of one comparison: neither, either and both of the savings."""

    reference: Point
    heads: Point
    layers: Point
    both: Point

    @property
    def interaction(self) -> list[tuple[float, Estimate]]:
        points = (self.both, self.layers, self.heads, self.reference)
        return [(weight, point.score) for weight, point in zip((1, -1, -1, 1), points, strict=True)]


def _fours(landscape: Landscape) -> list[_Four]:
    grouped, single = landscape.grouped, (1,) * landscape.layers
    found: list[_Four] = []
    for (groups, heads), both in grouped.items():
        layers, fewer = grouped.get((groups, landscape.heads)), grouped.get((single, heads))
        if groups != single and heads != landscape.heads and layers and fewer:
            found.append(_Four(landscape.reference, fewer, layers, both))
    return found if len(found) >= FEWEST else []


def _mean(owners: int, heads: int, fours: Sequence[_Four]) -> Together:
    reference = [[(-1.0, each.reference.score)] for each in fours]

    def damage(points: Sequence[Point]) -> Difference:
        return contrast(mean_of([[(1.0, point.score), *base] for point, base in zip(points, reference, strict=True)]))

    return Together(
        owners=owners,
        heads=heads,
        layouts=len(fours),
        heads_alone=damage([each.heads for each in fours]),
        layers_alone=damage([each.layers for each in fours]),
        both=damage([each.both for each in fours]),
        interaction=contrast(mean_of([each.interaction for each in fours])),
    )


def fits(landscape: Landscape) -> Fits | None:
    """By how much a sum and a product miss, over the groupings that are measured with every number of heads; None for
    fewer than two of either, and where a damage is not above zero, so that it has no logarithm."""
    grouped, single = landscape.grouped, (1,) * landscape.layers
    heads = sorted({heads for _, heads in grouped if heads != landscape.heads})
    groupings = [g for g in dict.fromkeys(groups for groups, _ in grouped) if g != single]
    whole = [g for g in groupings if all((g, each) in grouped for each in heads)]
    if len(heads) < 2 or len(whole) < 2:
        return None
    estimates = [landscape.reference.score, *(grouped[g, each].score for g in whole for each in heads)]

    def damages(values_RV: Floats) -> Floats:
        return (values_RV[:, 1:] - values_RV[:, :1]).reshape(len(values_RV), len(whole), len(heads))

    own_RPG = damages(np.array([[each.value for each in estimates]]))
    if (own_RPG <= 0).any():
        return None
    drawn_RPG = damages(bootstrap.draws(estimates))
    drawn_RPG = drawn_RPG[(drawn_RPG > 0).all((1, 2))]
    if not len(drawn_RPG):
        return None
    return Fits(
        groupings=len(whole),
        heads=len(heads),
        spread=float(own_RPG.std()),
        sum=float(offmean_of(own_RPG)[0]),
        product=float(off_product(own_RPG)[0]),
        nearer=Interval(float(_nearer(own_RPG)[0]), *map(float, bootstrap.interval(_nearer(drawn_RPG)))),
    )


def offmean_of(damage_RPG: Floats) -> Floats:
    """`[R]`: the root mean square distance of damages from the nearest sum of a row's and a column's effect."""
    return _distance(damage_RPG, _additive(damage_RPG))


def off_product(damage_RPG: Floats) -> Floats:
    """`[R]`: the same of a product, fitted in logarithms."""
    return _distance(damage_RPG, np.exp(_additive(np.log(damage_RPG))))


def _additive(value_RPG: Floats) -> Floats:
    """Of a balanced table least squares are its means."""
    rows, columns = value_RPG.mean(2, keepdims=True), value_RPG.mean(1, keepdims=True)
    return np.asarray(rows + columns - value_RPG.mean((1, 2), keepdims=True))


def _distance(value_RPG: Floats, fitted_RPG: Floats) -> Floats:
    return np.asarray(np.sqrt(((value_RPG - fitted_RPG) ** 2).mean((1, 2))))


def _nearer(damage_RPG: Floats) -> Floats:
    return offmean_of(damage_RPG) - off_product(damage_RPG)
