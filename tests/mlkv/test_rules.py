"""Rules that choose which layers share, against brute force over every grouping."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkv.groupings import groupings, of_sizes
from mlkv.rules import cheapest, cost_of, greedy, negative

COSTS = st.integers(1, 7).flatmap(
    lambda layers: st.lists(
        st.lists(st.floats(-100, 100), min_size=layers, max_size=layers), min_size=layers, max_size=layers
    )
)


@given(COSTS, st.data())
def test_dynamic_programming_is_brute_force_and_greed_is_never_better(
    cost: list[list[float]], data: st.DataObject
) -> None:
    number = data.draw(st.integers(1, len(cost)))
    every = {groups: cost_of(groups, cost) for groups in groupings(len(cost), number)}
    assert cost_of(cheapest(cost, number), cost) == pytest.approx(min(every.values()))
    taken = greedy(cost, number)
    assert taken in every
    assert every[taken] >= min(every.values()) - 1e-9


@given(COSTS)
def test_the_cost_of_a_grouping_is_that_of_every_read(cost: list[list[float]]) -> None:
    for groups in groupings(len(cost)):
        sources = of_sizes(groups)
        reads = [cost[source][layer] for layer, source in enumerate(sources) if source != layer]
        assert cost_of(groups, cost) == pytest.approx(math.fsum(reads))


def test_similar_first_joins_what_is_alike() -> None:
    alike = [[0.0] * 4 for _ in range(4)]
    alike[1][2] = alike[2][1] = 0.9
    assert greedy(negative(alike), 3) == cheapest(negative(alike), 3) == (1, 2, 1)
    assert greedy(alike, 3) == (2, 1, 1), "and dissimilar first anything else, the lowest of equals"


@pytest.mark.parametrize("rule", [greedy, cheapest])
def test_a_rule_refuses_what_it_cannot_group(rule: object) -> None:
    assert callable(rule)
    with pytest.raises(ValueError, match="groups = 3: 2 layers take 1 to 2"):
        rule([[0.0, 1.0], [1.0, 0.0]], 3)
    with pytest.raises(ValueError, match="has 2 rows, and one of 1"):
        rule([[0.0, 1.0], [1.0]], 1)
