"""Numbers that an axis has no place for: 0 on a logarithmic one, what is missing, not finite or absurdly large. They
are left out, counted and named, and everything else is drawn inside the axes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from analysis.data import frame
from analysis.data.frame import Row
from analysis.data.measured import CACHE, PEAK, SPEED
from analysis.data.numbers import on_log_axis
from analysis.figures.drawing import draw
from analysis.figures.geometry import (
    Scale,
    byte_ticks,
    count_scale,
    linear_scale,
    log_scale,
    not_drawn,
    number_text,
    round_ticks,
)
from analysis.figures.kinds import FIGURES
from analysis.figures.pareto_data import SPEED as SPEED_COST
from analysis.figures.pareto_data import main_pareto_data, pareto_data
from analysis.page.plot import layout_plot
from analysis.statistics.scores import shown_scores
from analysis.statistics.sources import Source, load
from tests.support.figures import assert_readable, log_losses, source_of
from tests.support.filler import Filler
from tests.support.read_back import points, present

ODD = (0.0, -1.0, math.nan, math.inf, -math.inf, 5e-324, 1e-200, 1e200, 1.7e308, None)
NUMBERS = st.one_of(st.sampled_from(ODD), st.floats(), st.floats(1e-3, 1e12))


def measured(finished: Filler) -> list[Row]:
    """The finished table with a speed and a peak in every cell."""
    rows = frame.records(load(finished.store, finished.name).table)
    caches = [row for row in rows if row["metric"] == CACHE]
    return [
        *rows,
        *({**row, "metric": PEAK, "value": 2 * row["value"]} for row in caches),
        *({**row, "metric": SPEED, "value": 1e9 / row["value"], "stderr": 3.0, "n": 3} for row in caches),
    ]


def with_values(rows: list[Row], metric: str, value: float | None) -> Source:
    return source_of(frame.make({**row, "value": value} if row["metric"] == metric else row for row in rows))


def remarks(figure: Figure) -> str:
    return figure._supxlabel.get_text().replace("\n", " ") if figure._supxlabel else ""  # type: ignore[attr-defined]


PIXEL = 1e-4
"""Of the axes' width or height: less than a printed figure can show."""


def assert_inside(figure: Figure) -> None:
    """Every marker lies inside its axes, whose ends are numbers."""
    for axes in figure.axes:
        for low, high, log in ((*axes.get_xlim(), axes.get_xscale()), (*axes.get_ylim(), axes.get_yscale())):
            assert math.isfinite(low), low
            assert math.isfinite(high), high
            assert low != high
            assert log == "linear" or min(low, high) > 0
        for line in axes.lines:
            for point in points(line) if line.get_marker() not in ("None", "_", None) else ():
                x, y = axes.transAxes.inverted().transform(axes.transData.transform(point))
                assert -PIXEL <= x <= 1 + PIXEL, (point, axes.get_xlim())
                assert -PIXEL <= y <= 1 + PIXEL, (point, axes.get_ylim())


def draw_without_a_warning(kind: str, source: Source) -> Figure | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return draw(kind, source)


@pytest.mark.parametrize(
    ("kind", "metric", "noun"), [("memory", PEAK, "peak"), ("memory", CACHE, "cache"), ("throughput", SPEED, "speed")]
)
@pytest.mark.parametrize(("value", "text"), [(0.0, "of 0"), (-2.0, "of -2"), (math.nan, "without a number")])
def test_what_has_no_place_on_a_logarithmic_axis_is_counted(
    finished: Filler, kind: str, metric: str, noun: str, value: float, text: str
) -> None:
    rows = measured(finished)
    some = next(row for row in rows if row["metric"] == metric)
    figure = present(draw_without_a_warning(kind, source_of(frame.make([*rows, {**some, "batch": 2, "value": value}]))))
    assert f"not drawn: 1 {noun} {text}" in remarks(figure)
    assert_inside(figure)
    assert_readable(figure)


def test_caches_are_drawn_where_every_peak_is_zero(finished: Filler) -> None:
    figure = present(draw_without_a_warning("memory", with_values(measured(finished), PEAK, 0.0)))
    assert "not drawn: 18 peaks of 0" in remarks(figure)
    assert "dash: peak of the run" not in remarks(figure)


@pytest.mark.parametrize(("kind", "metric"), [("memory", CACHE), ("throughput", SPEED)])
def test_nothing_with_a_place_is_no_figure(finished: Filler, kind: str, metric: str) -> None:
    assert draw_without_a_warning(kind, with_values(measured(finished), metric, 0.0)) is None


def test_a_single_point_has_axes_around_it(finished: Filler) -> None:
    rows = [row for row in measured(finished) if row["variant"] == "MLKV-1" and row["batch"] in (None, 1)]
    for kind in ("memory", "throughput", "pareto", "pareto_throughput"):
        assert_inside(present(draw_without_a_warning(kind, source_of(frame.make(rows)))))


@pytest.mark.parametrize("cost", [0, -5])
def test_a_cost_without_a_place_is_a_reason_and_no_point(finished: Filler, cost: int) -> None:
    rows = [{**row, "kv_bytes_per_token": cost} if row["variant"] == "MQA-6" else row for row in measured(finished)]
    data = present(main_pareto_data(source_of(frame.make(rows)).results))
    assert data.missing == {"MQA-6": f"kv_bytes_per_token = {cost}: has no place on a logarithmic axis"}
    assert "MQA-6" not in {mark.point.variant for mark in present(layout_plot(data)).marks}


def test_a_speed_of_zero_is_no_point(finished: Filler) -> None:
    results = with_values(measured(finished), SPEED, 0.0).results
    data = pareto_data(results, shown_scores(results)[0], SPEED_COST)
    assert data.points == []
    assert set(data.missing.values()) == {"tokens_per_second = 0: has no place on a logarithmic axis"}


def test_losses_without_a_place_are_counted(filler: Filler) -> None:
    log_losses(filler, "GQA-12", [5.0, 4.5, math.nan, math.inf, 4.4, 1e200])
    figure = present(draw_without_a_warning("curves", load(filler.store, filler.name)))
    assert "not drawn: 2 losses without a number, 1 loss of 1e+200" in remarks(figure)
    assert_inside(figure)


def test_what_is_left_out_is_said_once_for_each_value() -> None:
    assert not_drawn([]) == []
    assert not_drawn([("peak", 0.0), ("loss", None), ("peak", 0.0), ("loss", None), ("loss", None)]) == [
        "not drawn: 3 losses without a number, 2 peaks of 0"
    ]
    assert not_drawn(("peak", float(-i)) for i in range(9))[0].endswith(", …")


@given(st.lists(st.floats(), max_size=9), st.sampled_from((byte_ticks, round_ticks)))
def test_a_logarithmic_axis_takes_any_numbers(values: list[float], ticks: Callable[..., list[float]]) -> None:
    scale = log_scale(values, ticks)
    assert_sound(scale, [value for value in values if on_log_axis(value)])
    assert scale.low > 0


@given(st.lists(st.floats(), max_size=9))
def test_a_linear_axis_takes_any_numbers(values: list[float]) -> None:
    assert_sound(linear_scale(values), [value for value in values if abs(value) <= 1e100])


@given(st.floats(0, 1e16))
def test_an_axis_of_steps_takes_any_last_one(last: float) -> None:
    assert_sound(count_scale(last), [])


def assert_sound(scale: Scale, inside: list[float]) -> None:
    assert math.isfinite(scale.low)
    assert math.isfinite(scale.high)
    assert scale.low < scale.high
    assert len(scale.ticks) < 20
    assert all(len(tick.text) <= 20 for tick in scale.ticks)
    assert all(0 <= scale.share(value) <= 1 for value in inside)


@given(st.floats())
def test_any_number_has_a_short_text(value: float) -> None:
    assert len(number_text(value)) <= 20


def assert_every_figure_can_be_drawn(rows: list[Row], numbers: list[float | None]) -> None:
    """With these numbers in the place of all values and errors."""
    of_row = [numbers[i % len(numbers)] for i in range(2 * len(rows))]
    table = frame.make(
        {**row, "value": of_row[2 * i], "stderr": of_row[2 * i + 1]} if row["value"] is not None else row
        for i, row in enumerate(rows)
    )
    for kind in FIGURES:
        if figure := draw_without_a_warning(kind, source_of(table)):
            assert_inside(figure)


@pytest.mark.parametrize("numbers", [ODD, (0.0,), (math.nan,), (1e200,), (2.0, 0.0, -3.0, 1e-150)])
def test_every_figure_takes_odd_numbers(few: Callable[..., Filler], numbers: tuple[float | None, ...]) -> None:
    filler = few(["untouched", "MHA-36", "MLKV-1"])
    filler.everything()
    assert_every_figure_can_be_drawn(measured(filler), list(numbers))


@pytest.mark.long
@given(numbers=st.lists(NUMBERS, min_size=1, max_size=40))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_figure_takes_any_numbers(finished: Filler, numbers: list[float | None]) -> None:
    rows = [row for row in measured(finished) if row["variant"] in ("untouched", "MHA-36", "MLKV-1", "MQA-6")]
    assert_every_figure_can_be_drawn(rows, numbers)


def test_a_long_footer_makes_the_figure_higher_and_not_the_axes_lower(finished: Filler) -> None:
    """Nine machines with long names, each of them a line's; their caches were recorded elsewhere."""
    rows = [
        {**row, "machine": f"node-{row['variant']}.cluster.example.org, NVIDIA H100 80GB HBM3"}
        if row["metric"] == SPEED
        else row
        for row in measured(finished)
    ]
    for kind in ("throughput", "pareto_throughput"):
        short = present(draw_without_a_warning(kind, source_of(frame.make(measured(finished)))))
        long = present(draw_without_a_warning(kind, source_of(frame.make(rows))))
        assert_readable(long)
        heights = [axes.get_window_extent().height for axes in (short.axes[0], long.axes[0])]
        assert heights[1] > 0.9 * heights[0]
