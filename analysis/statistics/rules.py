"""Rules that place owners, scored against layouts that were all measured: how much worse than the best is their pick,
and do they rank layouts as training does?

A cell is measured layouts that a rule chooses among. There are two kinds. In one are groupings of neighbouring layers
with so many owners and heads: where the owners sit is all that its layouts differ in. In the other are all layouts of
so many bytes, whatever their owners, heads and sources. A rule picks one layout of a cell; one that gives every layout
a number also ranks them. Legend: `R` repetitions, `V` layouts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from analysis.data.pairs import PairMatrix
from analysis.statistics import bootstrap
from analysis.statistics.elastic import Interval, rank_correlation
from analysis.statistics.estimate import Floats
from analysis.statistics.landscape import Landscape, Point
from mlkv import rules
from mlkv.groupings import sizes_of
from mlkv.patterns import sources_of

Groups = tuple[int, ...]
PLACED = ("even", "cla", "keep_ends", "dense_front", "dense_back", "pizza", "sandwich")
"""Patterns that are scored: those that place owners and need nothing measured."""


@dataclass(frozen=True)
class Cell:
    """Measured layouts with `budget` heads in all. `place`: the owners, and the heads of each, of a cell of groupings;
    None where only the bytes are equal."""

    points: Sequence[Point]
    budget: int
    place: tuple[int, int] | None = None

    @property
    def possible(self) -> int | None:
        """How many groupings there are, measured or not; None where only the bytes are equal."""
        return None if self.place is None else math.comb(len(self.points[0].sources) - 1, self.place[0] - 1)

    def of_groups(self, groups: Groups) -> Point | None:
        return next((point for point in self.points if point.groups == groups), None)


Numbers = Sequence[float]
"""A number for each layout of a cell, in their order, less being better."""


@dataclass(frozen=True)
class Rule:
    """`pick`: the layout that it chooses in a cell; None where it has none, or that one is not measured. `rank`: the
    numbers that it gives, of a rule that has some; None in a cell where one of them is not known."""

    name: str
    pick: Callable[[Cell], Point | None]
    rank: Callable[[Cell], Numbers | None] | None = None


@dataclass(frozen=True)
class Scored:
    """How a rule did in the cells in which its pick is measured, each number the mean over them.

    by_bytes: in cells of equal bytes, else in those of equal owners and heads. regret: its pick's score minus that of
    the best layout of the cell. at_bytes: minus that of the best measured layout of the same cache, whatever its
    owners, heads and sources. of_random: `regret` over that of a layout taken at random. best: in how many cells its
    pick is the best. tau, rho: Kendall's and Spearman's correlation of its numbers with the scores, in cells that are
    measured; None for a rule that does not rank. Intervals are 95 %, over seeds and samples.
    """

    rule: str
    by_bytes: bool
    cells: int
    regret: Interval
    at_bytes: Interval
    of_random: Interval | None
    best: int | None
    tau: Interval | None
    rho: Interval | None


RANDOM = "random"
LEAST_OF_BYTES = 3
"""Layouts of a cell of equal bytes at least: sweeps of patterns have two of a budget, of which a coin finds the better
one every other time."""


def place_cells(landscape: Landscape) -> list[Cell]:
    """The groupings of each number of owners and heads of which two or more are measured, fewest first."""
    found: dict[tuple[int, int], list[Point]] = defaultdict(list)
    for (groups, heads), point in landscape.grouped.items():
        found[len(groups), heads].append(point)
    return [
        Cell(points, owners * heads, (owners, heads))
        for (owners, heads), points in sorted(found.items())
        if len(points) > 1
    ]


def byte_cells(landscape: Landscape) -> list[Cell]:
    """All layouts of as many bytes, LEAST_OF_BYTES or more, fewest first; without those that are a cell of
    groupings."""
    found: dict[int, list[Point]] = defaultdict(list)
    for point in landscape.points:
        found[point.budget].append(point)
    one_place = [set(map(id, cell.points)) for cell in place_cells(landscape)]
    return [
        Cell(points, budget)
        for budget, points in sorted(found.items())
        if len(points) >= LEAST_OF_BYTES and set(map(id, points)) not in one_place
    ]


def rules_of(landscape: Landscape, matrices: Iterable[PairMatrix] = (), others: Iterable[Landscape] = ()) -> list[Rule]:
    """The rules that this landscape can be asked with: patterns, the score before training where it is known and the
    layouts were trained, scores of the same layouts by another recipe (untrained, cut from an elastic training, trained
    for less) among `others`, and those by the matrices of its base."""
    found = [Rule(name, partial(_placed, name, landscape.layers)) for name in PLACED]
    if any(point.converted and point.converted.value != point.score.value for point in landscape.points):
        found.append(_by_numbers("score before training", _converted))
    for other in others:
        if other.base == landscape.base and other is not landscape:
            found.append(_by_numbers(f"best by {other.recipe or 'the plain recipe'}", partial(_of_recipe, other)))
    for matrix in matrices:
        found += _of_matrix(matrix)
    return found


def _by_numbers(name: str, rank: Callable[[Cell], Numbers | None]) -> Rule:
    return Rule(name, partial(_least, rank), rank)


def _least(rank: Callable[[Cell], Numbers | None], cell: Cell) -> Point | None:
    """The layout with the least number; None where not every layout has one."""
    numbers = rank(cell)
    return None if numbers is None else cell.points[int(np.argmin(numbers))]


def _of_recipe(other: Landscape, cell: Cell) -> Numbers | None:
    scores = {(point.sources, point.heads): point.score.value for point in other.points}
    return _complete([scores.get((point.sources, point.heads)) for point in cell.points])


def _converted(cell: Cell) -> Numbers | None:
    return _complete([point.converted.value if point.converted else None for point in cell.points])


def _complete(numbers: Iterable[float | None]) -> Numbers | None:
    """None unless all are known."""
    found = list(numbers)
    known = [number for number in found if number is not None]
    return known if len(known) == len(found) else None


def _placed(name: str, layers: int, cell: Cell) -> Point | None:
    if cell.place:
        with suppress(ValueError):  # the pattern has no layout of so many owners
            groups = sizes_of(sources_of(name, layers, cell.place[0]))
            return cell.of_groups(groups) if groups else None
    return None


def _of_matrix(matrix: PairMatrix) -> list[Rule]:
    """By a similarity, what is alike first, as most do, and what is not, as KVSharer does; by a cost, the cheapest
    first. Each joins greedily, and the first also takes the cheapest layout of all."""
    cost = rules.negative(matrix.values) if matrix.higher_is_alike else matrix.values
    word = "cheapest" if matrix.is_cost else "similar"
    found = [
        Rule(f"{word} first: {matrix.name}", partial(_greedy, cost), partial(_costs, cost)),
        Rule(f"{word} in all: {matrix.name}", partial(_cheapest, cost), partial(_costs, cost)),
    ]
    if not matrix.is_cost:
        opposite = rules.negative(cost)
        found.append(Rule(f"dissimilar first: {matrix.name}", partial(_greedy, opposite), partial(_costs, opposite)))
    return found


def _greedy(cost: rules.Cost, cell: Cell) -> Point | None:
    return cell.of_groups(rules.greedy(cost, cell.place[0])) if cell.place else None


def _cheapest(cost: rules.Cost, cell: Cell) -> Point | None:
    if cell.place:
        return cell.of_groups(rules.cheapest(cost, cell.place[0]))
    return _least(partial(_costs, cost), cell)


def _costs(cost: rules.Cost, cell: Cell) -> Numbers:
    return [rules.cost_of_sources(point.sources, cost) for point in cell.points]


def scored(landscape: Landscape, chosen: Sequence[Rule]) -> list[Scored]:
    """Every rule that picks a measured layout somewhere, first in cells of equal owners and heads, then in those of
    equal bytes; in each, least regret relative to chance first. A layout taken at random is one of them, with its exact
    expectation, and alone it is none."""
    draws = _Draws(landscape)
    return [*_ranked(place_cells(landscape), chosen, draws), *_ranked(byte_cells(landscape), chosen, draws)]


def _ranked(measured: Sequence[Cell], chosen: Sequence[Rule], draws: _Draws) -> list[Scored]:
    found = [one for rule in chosen if (one := _scored(rule, measured, draws))]
    if not found:
        return []
    return sorted(
        [*found, _random(measured, draws)], key=lambda each: each.of_random.value if each.of_random else math.inf
    )


def floor(landscape: Landscape, measured: Sequence[Cell]) -> float:
    """The regret that a perfect rule would show, because the best of layouts that are measured with noise looks better
    than it is: that of the observed best of each cell, measured again."""
    draws = _Draws(landscape)
    again = [draws.drawn(cell.points) for cell in measured]
    first = [int(np.argmin([point.score.value for point in cell.points])) for cell in measured]
    pairs = zip(again, first, strict=True)
    return float(np.mean([(each[:, best] - each.min(1)).mean() for each, best in pairs]))


class _Draws:
    """Every layout's score as measured and in every repetition, once for all rules."""

    def __init__(self, landscape: Landscape) -> None:
        self._place = {id(point): column for column, point in enumerate(landscape.points)}
        self._own_V = np.array([point.score.value for point in landscape.points])
        self._drawn_RV = bootstrap.draws([point.score for point in landscape.points])
        self.budgets: dict[int, list[Point]] = defaultdict(list)
        for point in landscape.points:
            self.budgets[point.budget].append(point)

    def own(self, points: Sequence[Point]) -> Floats:
        """`[1, V]`"""
        return self._own_V[None, [self._place[id(point)] for point in points]]

    def drawn(self, points: Sequence[Point]) -> Floats:
        """`[R, V]`"""
        return self._drawn_RV[:, [self._place[id(point)] for point in points]]


Statistic = Callable[[Callable[[Sequence[Point]], Floats]], Floats]
"""From a function that gives the scores of points, `[R, V]`, to a number for every repetition, `[R]`."""


def _interval(statistic: Statistic, draws: _Draws) -> Interval | None:
    """With the ends of the basic bootstrap interval: the least of noisy scores is too low, and that of drawn ones is
    once more too low by as much."""
    own, drawn_R = float(statistic(draws.own)[0]), statistic(draws.drawn)
    drawn_R = drawn_R[np.isfinite(drawn_R)]
    if not math.isfinite(own) or not len(drawn_R):
        return None
    low, high = bootstrap.interval(drawn_R)
    return Interval(own, 2 * own - float(high), 2 * own - float(low))


def _scored(rule: Rule, measured: Sequence[Cell], draws: _Draws) -> Scored | None:
    picks = [(cell, point) for cell in measured if (point := rule.pick(cell))]
    if not picks:
        return None
    return _of_picks(rule, [cell for cell, _ in picks], [[point] for _, point in picks], draws)


def _random(measured: Sequence[Cell], draws: _Draws) -> Scored:
    return _of_picks(Rule(RANDOM, lambda _: None), measured, [cell.points for cell in measured], draws)


def _of_picks(rule: Rule, own: Sequence[Cell], taken: Sequence[Sequence[Point]], draws: _Draws) -> Scored:
    """`taken`: of each cell the layouts that the rule takes, with equal probability."""
    every = [cell.points for cell in own]
    at_bytes = [draws.budgets[cell.budget] for cell in own]
    regret = _interval(partial(_regret, taken, every), draws)
    bytes_regret = _interval(partial(_regret, taken, at_bytes), draws)
    assert regret, "scores are finite"
    assert bytes_regret, "scores are finite"
    least = [min(point.score.value for point in points) for points in every]
    correlations = _rankings(rule, own)
    return Scored(
        rule=rule.name,
        by_bytes=own[0].place is None,
        cells=len(own),
        regret=regret,
        at_bytes=bytes_regret,
        of_random=_interval(partial(_share_of_chance, taken, every), draws),
        best=None
        if rule.name == RANDOM
        else sum(points[0].score.value == low for points, low in zip(taken, least, strict=True)),
        tau=_interval(partial(_correlation, kendall, correlations), draws) if correlations else None,
        rho=_interval(partial(_correlation, spearman, correlations), draws) if correlations else None,
    )


def _regret(
    taken: Sequence[Sequence[Point]], others: Sequence[Sequence[Point]], of: Callable[[Sequence[Point]], Floats]
) -> Floats:
    """`[R]`: the mean over cells of what is taken above the best of the others."""
    each = [of(points).mean(1) - of(among).min(1) for points, among in zip(taken, others, strict=True)]
    return np.asarray(np.mean(each, axis=0))


def _share_of_chance(
    taken: Sequence[Sequence[Point]], others: Sequence[Sequence[Point]], of: Callable[[Sequence[Point]], Floats]
) -> Floats:
    """`[R]`: the same over the regret of a layout taken at random; not finite where all layouts are equal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _regret(taken, others, of) / _regret(others, others, of)


def _rankings(rule: Rule, own: Sequence[Cell]) -> list[tuple[Sequence[Point], Floats]]:
    """Of each cell the layouts and the rule's numbers for them; without cells in which all numbers are equal."""
    ranked = [(cell.points, rule.rank(cell)) for cell in own] if rule.rank else []
    return [(points, np.array(numbers)) for points, numbers in ranked if numbers and len(set(numbers)) > 1]


def _correlation(
    statistic: Callable[[Floats, Floats], Floats],
    ranked: Sequence[tuple[Sequence[Point], Floats]],
    of: Callable[[Sequence[Point]], Floats],
) -> Floats:
    return np.asarray(np.mean([statistic(numbers, of(points)) for points, numbers in ranked], axis=0))


def kendall(number_V: Floats, score_RV: Floats) -> Floats:
    """`[R]`: tau-b."""
    return rank_correlation(np.concatenate([np.broadcast_to(number_V, score_RV.shape), score_RV], axis=1))


def spearman(number_V: Floats, score_RV: Floats) -> Floats:
    """`[R]`: the correlation of ranks, equal numbers sharing theirs."""
    x_V, y_RV = pd.Series(number_V).rank().to_numpy(), pd.DataFrame(score_RV).rank(axis=1).to_numpy()
    x_V, y_RV = x_V - x_V.mean(), y_RV - y_RV.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.asarray(y_RV @ x_V / np.sqrt((y_RV**2).sum(1) * (x_V**2).sum()))
