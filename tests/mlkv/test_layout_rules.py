"""Rules that place the owners of searched layouts: every one gives layouts of the size that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product
from math import comb
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkv.groupings import sizes_of
from mlkv.layout import KVLayout, divisors, mha
from mlkv.layout_rules import DAMAGE, LAYOUT_RULES, UNLIKE, LayoutRule, candidates, grouped, placed, spread, variations
from mlkv.registry import ExtensionError
from mlkv.rules import MOST_CHOICES, any_below, cheapest, cost_of, cost_of_sources, negative

Matrix = list[list[float]]
PLACING = [name for name, rule in LAYOUT_RULES.items() if rule.place]


def matrix(layers: int) -> st.SearchStrategy[Matrix]:
    row = st.lists(st.floats(-100, 100), min_size=layers, max_size=layers)
    return st.lists(row, min_size=layers, max_size=layers)


@st.composite
def bases(draw: st.DrawFn) -> tuple[KVLayout, dict[str, Matrix], int, int]:
    """A base, all that could be measured of it, and a number of owners and of heads."""
    layers, heads = draw(st.integers(2, 7)), draw(st.sampled_from([1, 2, 6, 8]))
    shared = draw(matrix(layers))
    matrices = dict.fromkeys((*UNLIKE, DAMAGE), shared) | {"cka_values": draw(matrix(layers))}
    return mha(layers, heads), matrices, draw(st.integers(1, layers)), draw(st.sampled_from(divisors(heads)))


@given(st.sampled_from(PLACING), bases())
def test_a_rule_places_as_many_owners_as_were_asked_for(
    name: str, given: tuple[KVLayout, dict[str, Matrix], int, int]
) -> None:
    base, matrices, owners, heads = given
    try:
        layout = placed(name, [(owners, heads)], base, matrices)
    except ValueError:
        assert name in ("cla", "keep_ends", "dense_front", "dense_back"), "all others have a layout of every size"
        return
    assert (layout.keys.kv_layers, layout.values.kv_layers, layout.budget) == (owners, owners, owners * heads)
    assert all(source <= layer for layer, source in enumerate(layout.kv_source_layers))
    if "_below_" not in name and not layout.apart:
        assert sizes_of(layout.kv_source_layers)


@settings(max_examples=40)
@given(bases())
def test_a_rule_in_all_is_brute_force(given: tuple[KVLayout, dict[str, Matrix], int, int]) -> None:
    base, matrices, owners, heads = given
    cost = matrices["cka_values"]
    for sign, word in ((cost, "similar"), (negative(cost), "dissimilar")):
        layout = placed(f"{word}_in_all_cka_values", [(owners, heads)], base, matrices)
        every = [cost_of_sources(sources, sign) for sources in grouped(base.layers, owners, 10**6)]
        assert cost_of_sources(layout.kv_source_layers, sign) == pytest.approx(min(every))
        free = placed(f"{word}_below_cka_values", [(owners, heads)], base, matrices)
        assert cost_of_sources(free.kv_source_layers, sign) <= min(every) + 1e-9, "groups of neighbours are among them"


@given(st.integers(1, 6).flatmap(matrix), st.data())
def test_reading_any_owner_below_is_brute_force(cost: Matrix, data: st.DataObject) -> None:
    layers = len(cost)
    owners = data.draw(st.integers(1, layers))
    best = min(
        sum(min(cost[i][j] for i in (0, *own) if i < j) for j in range(1, layers) if j not in own)
        for own in combinations(range(1, layers), owners - 1)
    )
    assert cost_of_sources(any_below(cost, owners), cost) == pytest.approx(best)


def test_many_sets_of_owners_are_not_all_compared() -> None:
    layers, owners = 24, 8
    assert comb(layers - 1, owners - 1) > MOST_CHOICES
    cost = [[abs(i - j) + (i * j) % 3 / 10 for j in range(layers)] for i in range(layers)]
    sources = any_below(cost, owners)
    assert sum(source == layer for layer, source in enumerate(sources)) == owners
    assert cost_of_sources(sources, cost) <= cost_of(cheapest(cost, owners), cost)


def test_keys_and_values_by_matrices_of_their_own() -> None:
    near = [[0.0 if abs(i - j) == 1 and {i, j} == {1, 2} else 9.0 for j in range(4)] for i in range(4)]
    far = [[0.0 if {i, j} == {2, 3} else 9.0 for j in range(4)] for i in range(4)]
    layout = placed("similar_first_cka_apart", [(3, 2)], mha(4, 2), {"cka_keys": near, "cka_values": far})
    assert layout.kv_source_layers == (0, 1, 1, 3)
    assert layout.value_source_layers == (0, 1, 2, 2)
    assert layout.budget == 6
    together = placed("similar_first_cka_apart", [(3, 2)], mha(4, 2), {"cka_keys": near, "cka_values": near})
    assert not together.apart


def test_the_first_size_that_a_pattern_has_a_layout_for() -> None:
    assert placed("keep_ends", [(2, 3), (3, 2)], mha(6, 6), {}).kv_layers == 3
    with pytest.raises(ValueError, match=r"layout\.rule = keep_ends: kv_layers = 2: .* takes 3 to 6"):
        placed("keep_ends", [(2, 3)], mha(6, 6), {})
    with pytest.raises(ValueError, match=r"layout\.rule = similar_first_distance: reads distance, .* has cka_keys"):
        placed("similar_first_distance", [(2, 3)], mha(2, 6), {"cka_keys": [[0.0] * 2] * 2})


@settings(max_examples=25)
@given(bases(), st.integers(1, 40))
def test_candidates_are_bounded_and_of_the_size(given: tuple[KVLayout, dict[str, Matrix], int, int], most: int) -> None:
    base, _, owners, heads = given
    found = candidates("untrained", [(owners, heads), (1, heads)], base, most)
    assert len(found) == len({*found}) <= most
    assert {layout.kv_layers for layout in found} <= {owners, 1}
    if comb(base.layers - 1, owners - 1) + 1 <= most:
        assert len({layout for layout in found if layout.kv_layers == owners}) == comb(base.layers - 1, owners - 1)


def test_of_many_candidates_the_same_are_drawn() -> None:
    found = grouped(32, 8, 20)
    assert len({*found}) == 20
    assert found == grouped(32, 8, 20)
    assert found[0] == tuple(layer // 4 * 4 for layer in range(32)), "what patterns make comes first"


@settings(max_examples=40)
@given(bases(), st.randoms(use_true_random=False))
def test_heads_are_spread_as_brute_force_says(
    given: tuple[KVLayout, dict[str, Matrix], int, int], random: Random
) -> None:
    base, _, owners, heads = given
    layout, choices = placed("pizza", [(owners, heads)], base, {}), divisors(base.heads)
    every = variations(layout, choices)
    assert len({*every}) == len(every)
    allowed = [each for each in product(choices, repeat=owners) if sum(each) == layout.budget]
    assert len(every) == 1 + sum(len({each[i] for each in allowed} - {heads}) for i in range(owners))
    scores = {each: random.choice([0.0, 1.0, random.random()]) for each in every}
    found = spread(scores, layout)
    assert (found.budget, found.kv_source_layers) == (layout.budget, layout.kv_source_layers)

    def loss(numbers: Sequence[int]) -> float:
        alone = [(*layout.kv_heads[:i], g, *layout.kv_heads[i + 1 :]) for i, g in enumerate(numbers)]
        return sum(scores[replace(layout, kv_heads=each)] - scores[layout] for each in alone)

    assert loss(found.kv_heads) == pytest.approx(min(map(loss, allowed)))
    assert spread(dict.fromkeys(every, 2.0), layout) == layout, "equal where nothing is gained"
    with pytest.raises(ValueError, match=r"layout\.spread: keys and values apart"):
        variations(KVLayout((0, 0), (1,), 1, None, (0, 1), (1, 1)), [1])


def test_an_extension_that_makes_no_layout_is_refused() -> None:
    LAYOUT_RULES["upside_down"] = LayoutRule(lambda layers, owners, _: (layers - 1,) * layers)
    try:
        with pytest.raises(ValueError, match=r"layout\.rule = upside_down: gave \[2, 2, 2\], not 2 owners on 3 layers"):
            placed("upside_down", [(2, 1)], mha(3, 2), {})
    finally:
        del LAYOUT_RULES["upside_down"]
    with pytest.raises(ValueError, match="either a function that places owners, or candidates"):
        LayoutRule()
    with pytest.raises(ExtensionError, match="layout rule mine: must be a LayoutRule, not str"):
        LAYOUT_RULES["mine"] = "even"  # type: ignore[assignment]
