from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import frame, labels
from analysis.cloud import clouds, main_cloud
from analysis.figures import WIDTH, pareto_figure
from analysis.gather import gather
from analysis.memory import lines, memory_figure, spread
from analysis.plot import lay_out
from analysis.published import SETS, published
from analysis.results import results
from analysis.ticks import byte_ticks, nice_ticks


@pytest.fixture
def pivot(finished: Any) -> Any:
    return results(gather(finished.store, finished.name))


def drawn_points(figure: Any) -> set[tuple[float, float]]:
    """Data coordinates of the markers; lines and the caps of error bars have none."""
    artists = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", "_")]
    return {(x, y) for line in artists for x, y in line.get_xydata().tolist()}


def names_of(figure: Any) -> list[Any]:
    return [text for text in figure.axes[0].texts if text.get_text()]


def test_plotted_points_are_the_pivots_and_the_records_numbers(finished: Any, pivot: Any) -> None:
    plotted = drawn_points(pareto_figure(pivot))
    from_pivot = {(float(row.kv_bytes_per_token), row.quality) for row in pivot.itertuples()}
    from_records = set()
    for variant in finished.variants:
        (score,) = finished.store.step(variant["steps"]["evaluate"]["bits_per_byte"]).record()["metrics"]
        from_records.add((float(variant["kv_bytes_per_token"]), score["value"]))
    assert plotted == from_pivot == from_records


def test_a_variant_without_its_score_is_not_plotted(filler: Any) -> None:
    filler.shared()
    filler.train("GQA-12")
    filler.evaluate("GQA-12", "bits_per_byte")
    filler.fail(filler.variant("MQA-6")["steps"]["evaluate"]["bits_per_byte"], "broken")
    pivot = results(gather(filler.store, filler.name))
    assert drawn_points(pareto_figure(pivot)) == {(1536.0, 2.245)}
    cloud = main_cloud(pivot)
    assert cloud is not None
    assert cloud.missing["MQA-6"] == "FAILED: broken"


def test_a_sweep_without_results_still_has_a_figure(filler: Any) -> None:
    figure = pareto_figure(results(gather(filler.store, filler.name)))
    assert [text.get_text() for text in names_of(figure)] == ["nothing has finished yet"]


def test_the_front_goes_through_the_layouts_worth_having(pivot: Any) -> None:
    cloud = main_cloud(pivot)
    assert cloud is not None
    assert [point.variant for point in cloud.front] == ["MLKV-1", "MLKV-2", "MLKV-3", "MQA-6", "GQA-12", "MHA-36"]
    assert {p.variant: p.dominated_by for p in cloud.points if p.dominated_by} == {
        "MLKV-12": "GQA-12",
        "MLKV-6": "MQA-6",
    }


@pytest.mark.parametrize("name", ["mlkv", "cla-1b"])
def test_names_cover_no_marker_and_no_other_name(name: str) -> None:
    figure = pareto_figure(results(published(name)))
    axes = figure.axes[0]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in names_of(figure)]
    assert len(boxes) > 8
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    markers = [axes.transData.transform(point) for point in drawn_points(figure)]
    assert not any(box.contains(x, y) for box in boxes for x, y in markers)
    assert figure.get_figwidth() == WIDTH == 3.3


def test_published_figures_have_the_papers_front() -> None:
    cloud = main_cloud(results(published("mlkv")))
    assert cloud is not None
    assert [p.variant for p in cloud.front] == ["MLKV-1", "MLKV-2", "MLKV-4", "MLKV-6", "MQA-12", "GQA-48"]
    assert cloud.missing == {"Random init": "no KV bytes"}


def test_coverage_is_the_share_of_the_box_that_a_family_dominates() -> None:
    rows = [("MLKV", 256, 0.4), ("MLKV", 512, 0.6), ("GQA", 1024, 0.7), ("MHA", 4096, 0.8)]
    cells = [
        {
            "variant": str(size),
            "family": family,
            "kv_bytes_per_token": size,
            "value": value,
            "task": "t",
            "metric": "acc",
        }
        for family, size, value in rows
    ]
    cloud = main_cloud(
        results(frame.make({**cell, "kind": "evaluate", "state": "DONE", "in_axis": True} for cell in cells))
    )
    assert cloud is not None
    assert cloud.coverage("MLKV") == pytest.approx(3 * 20 / (4 * 40))
    assert cloud.coverage("GQA") == pytest.approx(2 * 30 / (4 * 40))
    assert cloud.coverage("MHA") == cloud.coverage("CLA") == 0.0


@pytest.mark.parametrize("name", SETS)
def test_the_page_plots_every_point_where_its_axes_say(name: str) -> None:
    for cloud in clouds(results(published(name))):
        plot = lay_out(cloud)
        if plot is None:
            continue
        assert len(plot.marks) == len(cloud.points)
        for mark in plot.marks:
            assert plot.x_axis.value(mark.x) == pytest.approx(mark.point.x)
            assert plot.y_axis.value(mark.y) == pytest.approx(mark.point.y)


def test_memory_lines_are_the_formula_and_points_what_was_measured(finished: Any) -> None:
    found = lines(gather(finished.store, finished.name))
    assert [line.label for line in found][:2] == ["MHA-36", "GQA-12, MLKV-12"]
    for line in found:
        assert line.tokens == 272
        for cells in line.caches.values():
            assert cells == {1: line.formula(1), 8: line.formula(8)}


def test_running_out_of_memory_is_a_mark_and_no_number(filler: Any) -> None:
    filler.measure("MLKV-1", batches=(8,), failed=(64,))
    table = gather(filler.store, filler.name)
    (line,) = lines(table)
    assert line.failed == {64}
    assert line.caches == {"MLKV": {8: line.formula(8)}}
    crosses = [artist for artist in memory_figure(table).axes[0].lines if artist.get_marker() == "x"]
    assert [c.get_xydata().tolist() for c in crosses] == [[[64.0, line.formula(64)]]]


def test_nothing_measured_is_no_figure(filler: Any) -> None:
    assert memory_figure(gather(filler.store, filler.name)) is None


def test_importing_figures_loads_neither_matplotlib_nor_torch() -> None:
    code = (
        "import sys, analysis.figures, analysis.memory, analysis.report, analysis.tables, analysis.importer;"
        "assert not {'matplotlib', 'torch', 'jinja2', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@given(st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200)), max_size=14))
@settings(max_examples=40, deadline=None)
def test_placed_labels_overlap_nothing(anchors: list[tuple[float, float]]) -> None:
    size = (40.0, 10.0)
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in anchors]
    places = labels.place(anchors, [size] * len(anchors), taken=taken, bounds=(0, 0, 300, 200), gap=5)
    boxes = [(x, y, x + size[0], y + size[1]) for x, y in filter(None, places)]
    for box in boxes:
        assert box[0] >= 0 and box[1] >= 0 and box[2] <= 300 and box[3] <= 200  # noqa: PT018
    for a, b in itertools.chain(itertools.combinations(boxes, 2), itertools.product(boxes, taken)):
        assert not (a[0] < b[2] - 1e-9 and b[0] < a[2] - 1e-9 and a[1] < b[3] - 1e-9 and b[1] < a[3] - 1e-9)


def test_a_lonely_label_stands_next_to_its_point() -> None:
    ((x, y),) = labels.place([(50, 50)], [(20, 10)], taken=[(47, 47, 53, 53)], bounds=(0, 0, 100, 100), gap=5)
    assert (x, y) == pytest.approx((50 + 5 * 0.5**0.5, 50 + 5 * 0.5**0.5))


@given(st.lists(st.floats(0, 100), max_size=10))
def test_spread_keeps_order_and_gap(heights: list[float]) -> None:
    ordered = sorted(heights, reverse=True)
    moved = spread(ordered, 5.0)
    assert len(moved) == len(ordered)
    assert all(a - b >= 5.0 - 1e-9 for a, b in itertools.pairwise(moved))
    if all(a - b >= 5.0 for a, b in itertools.pairwise(ordered)):
        assert moved == pytest.approx(ordered)


@given(st.floats(1, 1e6), st.floats(1.1, 1e6), st.integers(2, 9))
def test_byte_ticks_are_powers_of_two_inside_and_few(low: float, ratio: float, most: int) -> None:
    ticks = byte_ticks(low, low * ratio, most)
    assert len(ticks) <= most
    assert all(low <= tick <= low * ratio and tick.bit_count() == 1 for tick in ticks)


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_nice_ticks_are_inside_and_told_apart(low: float, width: float) -> None:
    ticks, digits = nice_ticks(low, low + width)
    assert 1 <= len(ticks) <= 8
    assert len({f"{tick:.{digits}f}" for tick in ticks}) == len(ticks)
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in ticks)
