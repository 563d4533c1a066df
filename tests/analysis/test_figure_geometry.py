"""Axes, ticks and the places of names: properties that hold for any numbers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.figures import labels
from analysis.figures.geometry import (
    MARKER_ROOM,
    byte_ticks,
    count_scale,
    distinct,
    evenly,
    linear_scale,
    log_scale,
    nice_ticks,
    number_text,
    round_ticks,
    score_scale,
    zero_and_one,
)
from analysis.figures.labels import spread, stack
from tests.support.read_back import present


@given(st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200)), max_size=14))
@settings(max_examples=40)
def test_placed_labels_overlap_nothing(anchors: list[tuple[float, float]]) -> None:
    size = (40.0, 10.0)
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in anchors]
    places = labels.place(anchors, [size] * len(anchors), taken=taken, bounds=(0, 0, 300, 200), gap=5)
    boxes = [(x, y, x + size[0], y + size[1]) for x, y in filter(None, places)]
    for box in boxes:
        assert box[0] >= 0 and box[1] >= 0 and box[2] <= 300 and box[3] <= 200  # noqa: PT018
    for a, b in itertools.chain(itertools.combinations(boxes, 2), itertools.product(boxes, taken)):
        assert not (a[0] < b[2] - 1e-9 and b[0] < a[2] - 1e-9 and a[1] < b[3] - 1e-9 and b[1] < a[3] - 1e-9)


def test_a_lonely_label_is_next_to_its_point() -> None:
    ((x, y),) = map(
        present, labels.place([(50, 50)], [(20, 10)], taken=[(47, 47, 53, 53)], bounds=(0, 0, 100, 100), gap=5)
    )
    assert (x, y) == pytest.approx((50 + 5 * 0.5**0.5, 50 + 5 * 0.5**0.5))


@given(st.lists(st.floats(0, 100), max_size=10))
def test_spread_keeps_order_and_gap(heights: list[float]) -> None:
    ordered = sorted(heights, reverse=True)
    moved = spread(ordered, 5.0)
    assert len(moved) == len(ordered)
    assert all(a - b >= 5.0 - 1e-9 for a, b in itertools.pairwise(moved))
    if all(a - b >= 5.0 for a, b in itertools.pairwise(ordered)):
        assert moved == pytest.approx(ordered)


@given(st.lists(st.floats(0, 100), max_size=12))
def test_stacked_names_stay_apart_and_between_the_edges(heights: list[float]) -> None:
    moved = stack(sorted(heights, reverse=True), 8.0, 0.0, 100.0)
    assert all(-1e-6 <= height <= 100 + 1e-6 for height in moved)
    assert all(a - b >= 8.0 - 1e-6 for a, b in itertools.pairwise(moved))


@given(st.lists(st.integers(), max_size=30), st.integers(1, 9))
def test_evenly_chosen_items_are_few_and_in_order(items: list[int], most: int) -> None:
    chosen = evenly(items, most)
    assert len(chosen) == min(most, len(items))
    assert all(item in items for item in chosen)
    assert most < 2 or not items or (chosen[0], chosen[-1]) == (items[0], items[-1])


@given(st.floats(1, 1e6), st.floats(1.1, 1e6), st.integers(2, 9))
def test_byte_ticks_are_powers_of_two_inside_and_few(low: float, ratio: float, most: int) -> None:
    ticks = byte_ticks(low, low * ratio, most)
    assert len(ticks) <= most
    assert all(low <= tick <= low * ratio and int(tick).bit_count() == 1 for tick in ticks)


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_nice_ticks_are_inside_and_have_different_labels(low: float, width: float) -> None:
    ticks, digits = nice_ticks(low, low + width)
    assert 1 <= len(ticks) <= 8
    assert len({f"{tick:.{digits}f}" for tick in ticks}) == len(ticks)
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in ticks)


@given(st.floats(1e-3, 1e6), st.floats(1.2, 1e6), st.integers(4, 9))
def test_round_ticks_are_inside_and_few(low: float, ratio: float, most: int) -> None:
    ticks = round_ticks(low, low * ratio, most)
    assert 1 <= len(ticks) <= most + 1
    assert all(low * (1 - 1e-6) <= tick <= low * ratio * (1 + 1e-6) for tick in ticks)


@given(st.floats(-1e4, 0), st.floats(0, 1e4))
def test_a_narrow_axis_around_zero_has_a_second_number_inside(low: float, high: float) -> None:
    if high - low < 1e-3:
        high = low + 1.0
        low = min(low, 0.0)
    zero, other = zero_and_one(low, high)
    assert (zero.value, zero.text) == (0.0, "0")
    assert low - 1e-9 <= other.value <= high + 1e-9
    assert abs(other.value) >= 0.24 * (high - low)  # far enough from zero for two labels
    assert float(other.text.replace("−", "-").replace(",", "")) == pytest.approx(other.value)


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=9))
def test_a_logarithmic_axis_has_room_around_its_values(values: list[float]) -> None:
    scale = log_scale(values, round_ticks)
    assert scale.low <= min(values) / MARKER_ROOM * (1 + 1e-9)
    assert scale.high >= max(values) * MARKER_ROOM * (1 - 1e-9)
    for value in values:
        assert 0 < scale.share(value) < 1
        assert scale.value(scale.share(value)) == pytest.approx(value)


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=9))
def test_a_linear_axis_has_room_around_its_values(values: list[float]) -> None:
    scale = linear_scale(values)
    for value in values:
        assert 0 < scale.share(value) < 1
        assert scale.value(scale.share(value)) == pytest.approx(value, abs=1e-6)
    assert scale.ticks


def test_error_bars_are_inside_the_axis() -> None:
    scale = score_scale([(50.0, 4.0), (60.0, None)])
    assert scale.low < 46.0
    assert scale.high > 60.0


def test_whole_numbers_count_steps() -> None:
    assert [tick.text for tick in count_scale(5000).ticks] == ["0", "2,000", "4,000"]
    assert [tick.text for tick in count_scale(3).ticks] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(4096, None, "4,096"), (16384.0, None, "16,384"), (0.5, None, "0.5"), (-2, 1, "−2.0"), (3 * 0.1, None, "0.3")],
)
def test_numbers_are_printed_in_one_way(value: float, digits: int | None, text: str) -> None:
    assert number_text(value, digits) == text


def test_numbers_whose_labels_would_overlap_are_left_out() -> None:
    assert distinct([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])[-2:] == [10, 12]
