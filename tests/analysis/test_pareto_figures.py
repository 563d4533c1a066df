"""Quality against cost: points, front and names, in the paper's figure and on the page alike."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from analysis.data import frame
from analysis.data.gather import gather
from analysis.data.published import SETS, published
from analysis.figures.canvas import WIDTH
from analysis.figures.drawing import draw_all
from analysis.figures.pareto import LEGEND, PAIRED, accuracy_by_memory, pareto_figure
from analysis.figures.pareto_data import pareto_data_of_scores
from analysis.page.plot import layout_plot
from analysis.statistics.results import Results, results
from analysis.statistics.sources import load, published_source
from tests.support.figures import assert_readable, drawn_points, main_data, main_figure, names_of, source_of, texts_of
from tests.support.filler import Filler
from tests.support.read_back import points, present


@pytest.fixture
def of_finished(finished: Filler) -> Results:
    return results(gather(finished.store, finished.name))


def test_plotted_points_are_the_tables_and_the_records_numbers(finished: Filler, of_finished: Results) -> None:
    plotted = drawn_points(main_figure(of_finished))
    from_table = {(float(row["kv_bytes_per_token"]), row["quality"]) for row in of_finished.rows()}
    from_records = set()
    for variant in finished.variants:
        (score,) = present(finished.store.step(variant["steps"]["evaluate"]["bits_per_byte"]).record()).metrics
        from_records.add((float(variant["kv_bytes_per_token"]), score.value))
    assert plotted == from_table == from_records


@pytest.mark.parametrize("paired", [True, False])
def test_chances_from_the_same_samples_are_said_to_be_sharper_than_the_bars(of_finished: Results, paired: bool) -> None:
    remarks = pareto_figure(replace(main_data(of_finished), paired=paired)).get_supxlabel()
    assert LEGEND in remarks
    assert (PAIRED in remarks) == paired


def test_a_variant_without_its_score_is_not_plotted(filler: Filler) -> None:
    filler.shared()
    filler.train("GQA-12")
    filler.evaluate("GQA-12", "bits_per_byte")
    filler.fail(filler.variant("MQA-6")["steps"]["evaluate"]["bits_per_byte"], "broken")
    found = results(gather(filler.store, filler.name))
    assert drawn_points(main_figure(found)) == {(1536.0, 2.245)}
    assert main_data(found).missing["MQA-6"] == "FAILED: broken"


def test_without_a_score_there_is_neither_figure_nor_plot(filler: Filler) -> None:
    table = gather(filler.store, filler.name)
    assert accuracy_by_memory(source_of(table)) is None
    assert layout_plot(main_data(results(table))) is None


def test_the_front_goes_through_the_layouts_worth_having(of_finished: Results) -> None:
    data = main_data(of_finished)
    assert [point.variant for point in data.front] == ["MLKV-1", "MLKV-2", "MLKV-3", "MQA-6", "GQA-12", "MHA-36"]
    assert {p.variant: p.dominated_by for p in data.points if p.dominated_by} == {
        "MLKV-12": "GQA-12",
        "MLKV-6": "MQA-6",
    }


@pytest.mark.parametrize("name", ["mlkv", "cla-1b"])
def test_names_cover_no_marker_and_no_other_name(name: str) -> None:
    figure = main_figure(results(published(name)))
    axes = figure.axes[0]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in names_of(figure)]
    assert len(boxes) > 8
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    markers = [axes.transData.transform(point) for point in drawn_points(figure)]
    assert not any(box.contains(x, y) for box in boxes for x, y in markers)
    assert figure.get_figwidth() == WIDTH == 3.3


def test_published_figures_have_the_papers_front() -> None:
    data = main_data(results(published("mlkv")))
    assert [p.variant for p in data.front] == ["MLKV-1", "MLKV-2", "MLKV-4", "MLKV-6", "MQA-12", "GQA-48"]
    assert data.missing == {"Random init": "no KV bytes"}


def cells(rows: list[tuple[str, str, int, float]], stderr: float | None = None) -> Results:
    """Results of (variant, family, KV bytes per token, accuracy)."""
    same = {"kind": "evaluate", "task": "t", "metric": "acc", "state": "DONE", "in_axis": True, "stderr": stderr}
    return results(
        frame.make(
            {**same, "variant": name, "family": family, "kv_bytes_per_token": size, "value": value}
            for name, family, size, value in rows
        )
    )


def test_coverage_is_the_share_of_the_box_that_a_family_dominates() -> None:
    rows = [("a", "MLKV", 256, 0.4), ("b", "MLKV", 512, 0.6), ("c", "GQA", 1024, 0.7), ("d", "MHA", 4096, 0.8)]
    data = main_data(cells(rows))
    assert data.coverage("MLKV") == pytest.approx(3 * 20 / (4 * 40))
    assert data.coverage("GQA") == pytest.approx(2 * 30 / (4 * 40))
    assert data.coverage("MHA") == data.coverage("CLA") == 0.0


def test_undecided_points_are_drawn_hollow(finished: Filler) -> None:
    data = main_data(load(finished.store, finished.name).results)
    status = {point.variant: point.pareto_status for point in data.points}
    assert status["MLKV-1"] == status["MQA-6"] == "front"
    assert status["MLKV-6"] == status["MLKV-12"] == "dominated"
    assert status["MHA-36"] == "front"
    assert LEGEND in [text.get_text() for text, _ in texts_of(pareto_figure(data))]


def test_two_points_within_noise_of_each_other_are_both_undecided() -> None:
    rows = [("A", "MLKV", 512, 0.500), ("B", "MLKV", 1024, 0.501), ("C", "MLKV", 2048, 0.9)]
    data = main_data(cells(rows, stderr=0.02))
    assert {p.variant: p.pareto_status for p in data.points} == {"A": "front", "B": "undecided", "C": "front"}
    lines = pareto_figure(data).axes[0].lines
    hollow = [line for line in lines if line.get_markerfacecolor() == "white" and points(line)]
    ((cost, score),) = [point for line in hollow for point in points(line)]
    assert (cost, score) == pytest.approx((1024.0, 50.1))


def test_published_points_are_drawn_beside_ours_on_an_axis_of_the_same_metric(finished: Filler) -> None:
    source, theirs = load(finished.store, finished.name), published_source("mlkv")
    drawn = draw_all(source, theirs)
    assert (36864.0, 52.8) in {(x, round(y, 1)) for x, y in drawn_points(drawn["pareto"])}
    assert drawn_points(drawn["pareto_loss"]) == drawn_points(draw_all(source)["pareto_loss"])  # bits are no nats
    assert_readable(drawn["pareto"])


@pytest.mark.parametrize("name", SETS)
def test_the_page_plots_every_point_where_its_axes_say(name: str) -> None:
    for data in pareto_data_of_scores(results(published(name))):
        plot = present(layout_plot(data)) if data.points else None
        if plot is None:
            continue
        assert len(plot.marks) == len(data.points)
        for mark in plot.marks:
            assert plot.x.value(mark.x) == pytest.approx(mark.point.x)
            assert plot.y.value(mark.y) == pytest.approx(mark.point.y)


@pytest.mark.parametrize("name", SETS)
def test_the_page_and_the_figure_have_the_same_axes(name: str) -> None:
    data = main_data(results(published(name)))
    plot, axes = present(layout_plot(data)), pareto_figure(data).axes[0]
    assert (plot.x.scale.low, plot.x.scale.high) == pytest.approx(axes.get_xlim())
    assert (plot.y.scale.low, plot.y.scale.high) == pytest.approx(axes.get_ylim())
    assert [text for _, text in plot.y.ticks] == [label.get_text() for label in axes.get_yticklabels()]
    across = [line for line in axes.lines if points(line) and [x for x, _ in points(line)] == [0.0, 1.0]]
    assert [plot.y.value(level.y) for level in plot.levels] == pytest.approx([points(line)[0][1] for line in across])
