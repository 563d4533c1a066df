from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.statistics.pareto import dominated_by, front, hypervolume

Points = list[tuple[int, int]]
points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def split(found: Points) -> tuple[list[int], list[int]]:
    return [x for x, _ in found], [y for _, y in found]


def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(points)
def test_front_is_every_point_that_no_other_dominates(found: Points) -> None:
    assert front(*split(found)) == [not any(beats(other, one) for other in found) for one in found]


@given(points)
def test_lower_is_better_mirrors_higher_is_better(found: Points) -> None:
    cost, quality = split(found)
    mirrored = [-y for y in quality]
    assert front(cost, mirrored, higher_is_better=False) == front(cost, quality)
    assert dominated_by(cost, mirrored, higher_is_better=False) == dominated_by(cost, quality)
    reference = (7, 0)
    assert hypervolume(cost, mirrored, reference, higher_is_better=False) == hypervolume(cost, quality, reference)


@given(points)
def test_every_dominated_point_names_the_cheapest_front_point_that_dominates_it(found: Points) -> None:
    on_front = front(*split(found))
    for i, leader in enumerate(dominated_by(*split(found))):
        rivals = [found[j][0] for j, on in enumerate(on_front) if on and beats(found[j], found[i])]
        if leader is None:
            assert on_front[i]
        else:
            assert on_front[leader]
            assert beats(found[leader], found[i])
            assert found[leader][0] == min(rivals)


@given(points)
def test_hypervolume_counts_the_unit_cells_that_some_point_covers(found: Points) -> None:
    covered = {(x, y) for px, py in found for x in range(px, 7) for y in range(py)}
    assert hypervolume(*split(found), reference=(7, 0)) == len(covered)


def test_equal_points_stand_on_the_front_together() -> None:
    assert front([1, 1, 2], [3, 3, 3]) == [True, True, False]


def test_points_beyond_the_reference_add_nothing() -> None:
    assert hypervolume([8.0, 1.0], [5.0, -1.0], (7.0, 0.0)) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_missing_result_is_refused_rather_than_ranked(bad: float) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        front([1.0, 2.0], [0.5, bad])


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="cost has 1 points, quality 2"):
        front([1.0], [0.5, 0.6])
