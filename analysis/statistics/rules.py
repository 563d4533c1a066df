"""Rules that place owners, scored against layouts that were all measured: how much worse than the best is their pick,
and do they rank layouts as training does?

A cell is a number of owners with a number of heads each, of which several groupings of neighbouring layers are
measured: where the owners sit is all that its layouts differ in. A rule picks one layout of a cell; one that gives
every layout a number also ranks them. Legend: `R` repetitions, `V` layouts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """The measured groupings with so many owners and heads, two or more, by their groups."""

    owners: int
    heads: int
    points: Mapping[Groups, Point]
    possible: int
    """How many groupings there are, measured or not."""

    @property
    def budget(self) -> int:
        return self.owners * self.heads


@dataclass(frozen=True)
class Rule:
    """`pick`: the groups that it chooses in a cell; None where it has none. `rank`: a number for each of the cell's
    layouts, less being better, of a rule that has one."""

    name: str
    pick: Callable[[Cell], Groups | None]
    rank: Callable[[Cell], Mapping[Groups, float] | None] | None = None


@dataclass(frozen=True)
class Scored:
    """How a rule did in the cells in which its pick is measured, each number the mean over them.

    regret: its pick's score minus that of the best layout of the cell. at_bytes: minus that of the best measured layout
    of the same cache, whatever its owners, heads and sources. of_random: `regret` over that of a layout taken at
    random. best: in how many cells its pick is the best. tau, rho: Kendall's and Spearman's correlation of its numbers
    with the scores, in cells that are measured; None for a rule that does not rank. Intervals are 95 %, over seeds and
    samples.
    """

    rule: str
    cells: int
    regret: Interval
    at_bytes: Interval
    of_random: Interval | None
    best: int | None
    tau: Interval | None
    rho: Interval | None


RANDOM = "random"


def cells(landscape: Landscape) -> list[Cell]:
    """Every cell with two measured layouts or more, fewest owners and heads first."""
    found: dict[tuple[int, int], dict[Groups, Point]] = defaultdict(dict)
    for (groups, heads), point in landscape.grouped.items():
        found[len(groups), heads][groups] = point
    return [
        Cell(owners, heads, points, math.comb(landscape.layers - 1, owners - 1))
        for (owners, heads), points in sorted(found.items())
        if len(points) > 1
    ]


def rules_of(landscape: Landscape, matrices: Iterable[PairMatrix] = (), others: Iterable[Landscape] = ()) -> list[Rule]:
    """The rules that this landscape can be asked with: patterns, the score before training where it is known, scores of
    the same layouts by another recipe (untrained, cut from an elastic training, trained for less) among `others`,
    and those by the matrices of its base."""
    found = [Rule(name, partial(_placed, name, landscape.layers)) for name in PLACED]
    if any(point.converted for point in landscape.points):
        found.append(_by_scores("score before training", _converted))
    for other in others:
        if other.base == landscape.base and other is not landscape:
            found.append(_by_scores(f"best by {other.recipe or 'the plain recipe'}", partial(_of_recipe, other)))
    for matrix in matrices:
        found += _of_matrix(matrix)
    return found


def _by_scores(name: str, rank: Callable[[Cell], Mapping[Groups, float] | None]) -> Rule:
    """The rule that takes the layout with the least number."""

    def pick(cell: Cell) -> Groups | None:
        numbers = rank(cell)
        return min(numbers, key=lambda groups: numbers[groups]) if numbers else None

    return Rule(name, pick, rank)


def _of_recipe(other: Landscape, cell: Cell) -> Mapping[Groups, float] | None:
    """None unless all of the cell's layouts are scored by the other recipe too."""
    grouped = other.grouped
    found = {
        groups: grouped[groups, cell.heads].score.value for groups in cell.points if (groups, cell.heads) in grouped
    }
    return found if len(found) == len(cell.points) else None


def _placed(name: str, layers: int, cell: Cell) -> Groups | None:
    with suppress(ValueError):  # the pattern has no layout of so many owners
        return sizes_of(sources_of(name, layers, cell.owners))
    return None


def _converted(cell: Cell) -> Mapping[Groups, float] | None:
    numbers = {groups: point.converted.value for groups, point in cell.points.items() if point.converted}
    return numbers if len(numbers) == len(cell.points) else None


def _of_matrix(matrix: PairMatrix) -> list[Rule]:
    """By a similarity, what is alike first, as most do, and what is not, as KVSharer does; by a cost, the cheapest
    first. Each joins greedily, and the first also takes the cheapest grouping of all."""
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


def _greedy(cost: rules.Cost, cell: Cell) -> Groups:
    return rules.greedy(cost, cell.owners)


def _cheapest(cost: rules.Cost, cell: Cell) -> Groups:
    return rules.cheapest(cost, cell.owners)


def _costs(cost: rules.Cost, cell: Cell) -> Mapping[Groups, float]:
    return {groups: rules.cost_of(groups, cost) for groups in cell.points}


def scored(landscape: Landscape, chosen: Sequence[Rule]) -> list[Scored]:
    """Every rule that picks a measured layout somewhere, least regret relative to chance first; a layout taken at
    random is one of them, with its exact expectation."""
    measured = cells(landscape)
    if not measured:
        return []
    draws = _Draws(landscape)
    found = [one for rule in chosen if (one := _scored(rule, measured, draws))]
    found.append(_random(measured, draws))
    return sorted(found, key=lambda each: each.of_random.value if each.of_random else math.inf)


def floor(landscape: Landscape) -> float:
    """The regret that a perfect rule would show, because the best of layouts that are measured with noise looks better
    than it is: that of the observed best of each cell, measured again."""
    measured, draws = cells(landscape), _Draws(landscape)
    again = [draws.drawn(list(cell.points.values())) for cell in measured]
    first = [int(np.argmin([p.score.value for p in cell.points.values()])) for cell in measured]
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
    chosen = [(cell, rule.pick(cell)) for cell in measured]
    picks = [(cell, cell.points[groups]) for cell, groups in chosen if groups in cell.points and groups]
    if not picks:
        return None
    taken = [[point] for _, point in picks]
    return _of_picks(rule, [cell for cell, _ in picks], taken, draws)


def _random(measured: Sequence[Cell], draws: _Draws) -> Scored:
    return _of_picks(Rule(RANDOM, lambda _: None), measured, [list(cell.points.values()) for cell in measured], draws)


def _of_picks(rule: Rule, own: Sequence[Cell], taken: Sequence[Sequence[Point]], draws: _Draws) -> Scored:
    """`taken`: of each cell the layouts that the rule takes, with equal probability."""
    every = [list(cell.points.values()) for cell in own]
    at_bytes = [draws.budgets[cell.budget] for cell in own]
    regret = _interval(partial(_regret, taken, every), draws)
    bytes_regret = _interval(partial(_regret, taken, at_bytes), draws)
    assert regret, "scores are finite"
    assert bytes_regret, "scores are finite"
    least = [min(point.score.value for point in points) for points in every]
    correlations = _rankings(rule, own)
    return Scored(
        rule=rule.name,
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


def _rankings(rule: Rule, own: Sequence[Cell]) -> list[tuple[list[Point], Floats]]:
    """Of each cell the layouts and the rule's numbers for them; without cells in which all numbers are equal."""
    found = []
    for cell in own if rule.rank else ():
        numbers = rule.rank(cell) if rule.rank else None
        if numbers and len(set(numbers.values())) > 1:
            found.append((list(cell.points.values()), np.array([numbers[groups] for groups in cell.points])))
    return found


def _correlation(
    statistic: Callable[[Floats, Floats], Floats],
    ranked: Sequence[tuple[list[Point], Floats]],
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
