"""Groups of neighbouring layers: all of them, by their sizes and back; and layouts drawn at random."""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkv.groupings import drawn, groupings, of_sizes, sizes_of
from mlkv.layout import KVLayout, from_owners, mha
from mlkv.patterns import PATTERNS, make


@given(st.integers(1, 9))
def test_groupings_are_all_ways_to_place_owners(layers: int) -> None:
    found = [of_sizes(sizes) for sizes in groupings(layers)]
    owners = [[0, *(layer for layer in range(1, layers) if mask >> layer & 1)] for mask in range(0, 2**layers, 2)]
    assert sorted(found) == sorted(from_owners(layers, each) for each in owners)
    assert [sizes_of(each) for each in found] == list(groupings(layers))
    for number in range(1, layers + 1):
        assert len(list(groupings(layers, number))) == math.comb(layers - 1, number - 1)


def test_sources_that_are_no_groups_of_neighbours_have_no_sizes() -> None:
    assert sizes_of((0, 1, 0)) is None
    assert sizes_of((1, 1, 1)) is None, "read from its middle"
    assert sizes_of((0, 0, 2, 2)) == (2, 2)


BASES = st.builds(
    lambda layers, heads, kv: KVLayout(tuple(range(layers)), (kv,) * layers, heads * kv),
    st.integers(1, 9),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2, 4, 6]),
)


@settings(max_examples=25)
@given(BASES)
def test_drawn_layouts_are_distinct_and_no_pattern_makes_one(base: KVLayout) -> None:
    found: list[KVLayout] = []
    with suppress(ValueError):
        for number in range(5):
            found += [drawn(base, number)]
    if len(found) < 5:
        with pytest.raises(ValueError, match=f"draw = 9: there are {len(found)} layouts to draw"):
            drawn(base, 9)
    assert len(set(found)) == len(found)
    possible = base.layers > 2 and len({*base.kv_heads}) == 1 and base.kv_heads[0] > 1
    assert bool(found) == possible
    for layout in found:
        assert not layout.reads_above
        assert sizes_of(layout.kv_source_layers) is None
        assert len(set(layout.kv_heads)) > 1
        assert all(base.kv_heads[0] % heads == 0 for heads in layout.kv_heads)
        makes = [row for row in PATTERNS.values() if row.values is None and row.makes(layout)]
        assert not makes


def test_the_drawn_hundred_stay() -> None:
    """They are a published table's rows: another draw would be other layouts under the same numbers."""
    hundred = [drawn(mha(6, 6), number) for number in range(100)]
    assert len(set(hundred)) == 100
    assert [layout.draw() for layout in islice(hundred, 3)] == ["2 3 1 ─ ←1 6", "3 2 ←0 6 1 2", "6 3 6 ←0 ←0 6"]
    assert hundred[99].draw() == "1 ─ ─ 2 2 ←3"
    assert {layout.kv_layers for layout in hundred} == {2, 3, 4, 5}
    assert min(each.budget for each in hundred) < 4 < 20 < max(each.budget for each in hundred)


def test_even_groups_are_the_pattern_of_that_name() -> None:
    assert of_sizes((2, 2, 2)) == make("even", 6, 6, 3, 1).kv_source_layers
