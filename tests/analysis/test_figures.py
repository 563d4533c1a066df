from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.data import frame
from analysis.data.gather import gather
from analysis.data.published import SETS, published
from analysis.figures import labels
from analysis.figures.canvas import QUIET, SMALLEST, WIDTH, evenly, spread, within
from analysis.figures.cloud import clouds, main_cloud
from analysis.figures.drawing import CannotDraw, draw_all, write_figures
from analysis.figures.kinds import FIGURES
from analysis.figures.layouts import layouts_of
from analysis.figures.memory import lines, memory_figure
from analysis.figures.pareto import PAIRED, READING, cloud_figure
from analysis.figures.spectrum import series, told_apart
from analysis.figures.style import LOOKS, look, shades
from analysis.figures.tasks import panels, tasks_figure
from analysis.figures.throughput import paces, throughput_figure
from analysis.figures.ticks import byte_ticks, nice_ticks, round_ticks
from analysis.figures.training import LOSS, Curve, curves_figure, curves_of
from analysis.page.plot import lay_out
from analysis.statistics.results import results
from analysis.statistics.sources import Source, load, published_source
from tests.support.read_back import points, present


@pytest.fixture
def pivot(finished: Any) -> Any:
    return results(gather(finished.store, finished.name))


def pareto_figure(pivot: Any) -> Any:
    cloud = main_cloud(pivot)
    assert cloud is not None
    return cloud_figure(cloud)


def drawn_points(figure: Any) -> set[tuple[float, float]]:
    """Data coordinates of the markers; lines and the caps of error bars have none."""
    artists = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", "_")]
    return {(x, y) for line in artists for x, y in points(line)}


def names_of(figure: Any) -> list[Any]:
    return [text for text in figure.axes[0].texts if text.get_text()]


def test_plotted_points_are_the_pivots_and_the_records_numbers(finished: Any, pivot: Any) -> None:
    plotted = drawn_points(pareto_figure(pivot))
    from_pivot = {(float(row.kv_bytes_per_token), row.quality) for row in pivot.frame.itertuples()}
    from_records = set()
    for variant in finished.variants:
        (score,) = finished.store.step(variant["steps"]["evaluate"]["bits_per_byte"]).record()["metrics"]
        from_records.add((float(variant["kv_bytes_per_token"]), score["value"]))
    assert plotted == from_pivot == from_records


@pytest.mark.parametrize("paired", [True, False])
def test_chances_from_the_same_samples_are_said_to_be_sharper_than_the_bars(pivot: Any, paired: bool) -> None:
    found = main_cloud(pivot)
    assert found is not None
    said = cloud_figure(replace(found, paired=paired)).get_supxlabel()
    assert READING in said
    assert (PAIRED in said) == paired


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
        assert (line.unit % 272, line.extra) == (0, 0)
        for cells in line.caches.values():
            assert cells == {1: line.formula(1), 8: line.formula(8)}


def test_running_out_of_memory_is_a_mark_and_no_number(filler: Any) -> None:
    filler.measure("MLKV-1", batches=(8,), failed=(64,))
    table = gather(filler.store, filler.name)
    (line,) = lines(table)
    assert line.failed == {64}
    assert line.caches == {"MLKV": {8: line.formula(8)}}
    crosses = [artist for artist in present(memory_figure(table)).axes[0].lines if artist.get_marker() == "x"]
    assert [points(c) for c in crosses] == [[(64.0, line.formula(64))]]


def test_nothing_measured_is_no_figure(filler: Any) -> None:
    assert memory_figure(gather(filler.store, filler.name)) is None


def test_importing_figures_loads_neither_matplotlib_nor_torch() -> None:
    code = (
        "import sys, analysis.figures.drawing, analysis.page.report, analysis.tables.paper, analysis.data.importer;"
        "assert not {'matplotlib', 'torch', 'jinja2', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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


def test_a_lonely_label_stands_next_to_its_point() -> None:
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


# Every kind, for every state that results can be in


def texts_of(figure: Any) -> list[Any]:
    """Every text that is printed, with its box; labels of ticks beyond the axes are not."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    beyond = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            beyond |= {tick.label1 for tick in ticks if not low <= tick.get_loc() <= high}
    hidden = {text for axes in figure.axes if not axes.get_visible() for text in axes.findobj(Text)}
    return [
        (text, Text.get_window_extent(text))  # of an annotation without its arrow
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and text not in beyond | hidden
    ]


def assert_readable(figure: Any) -> None:
    """One column wide, nothing small, nothing cut off, no text on another."""
    assert figure.get_figwidth() == WIDTH
    texts, page = texts_of(figure), figure.bbox
    assert all(text.get_fontsize() >= SMALLEST for text, _ in texts)
    for text, box in texts:
        inside = box.x0 > -1 and box.y0 > -1 and box.x1 < page.x1 + 1 and box.y1 < page.y1 + 1
        assert inside, f"{text.get_text()} is cut off"
    for (a, box_a), (b, box_b) in itertools.combinations(texts, 2):
        width, height = (
            min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0),
            min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0),
        )
        assert width < 1 or height < 1, f"{a.get_text()} and {b.get_text()} overlap"


def crowd(finished: Any) -> Source:
    """The finished table with a hundred variants: one in seven has no score, every other one ran out of memory."""
    cells = frame.records(load(finished.store, finished.name).table)
    own = {label: [cell for cell in cells if cell["variant"] == label] for label in finished.figures}
    rows = [*own["untouched"], *own["MHA-36"]]
    layouts = [label for label in finished.figures if label != "untouched"]
    for i in range(100):
        label = f"{layouts[i % 8]} uptrain.lr={i:03d}"
        for cell in own[layouts[i % 8]]:
            scored = cell["kind"] == "evaluate"
            changed = {"value": None, "state": "FAILED", "reason": "x"} if scored and i % 7 == 0 else {}
            if scored and cell["task"] == "bits_per_byte" and not changed:
                changed = {"value": cell["value"] + 0.01 * math.sin(i)}
            rows.append({**cell, "variant": label, "baseline": None, **changed})
            if i % 2 and cell["metric"] == "cache_bytes" and cell["batch"] == 8:
                rows.append({**rows[-1], "metric": "oom", "batch": 64, "value": 1.0})
    return Source("crowd", frame.make(rows))


def in_progress(filler: Any) -> Source:
    """Some done, one failed, one running."""
    filler.shared()
    for label in ("MHA-36", "MLKV-3", "MLKV-1"):
        filler.train(label)
        filler.evaluate(label, "bits_per_byte")
    filler.evaluate("untouched", "bits_per_byte")
    filler.evaluate("MLKV-3", "cloze")
    filler.measure("MLKV-3", failed=(64,))
    filler.fail(filler.variant("MLKV-6")["steps"]["convert"], "must divide 6")
    log(filler, "GQA-12", [5.0, 4.5, float("nan"), 4.4])
    return load(filler.store, filler.name)


def log(filler: Any, label: str, losses: list[float], step: int = 10) -> None:
    """Let a variant's uptraining run and log losses, one every `step` steps."""
    claim = filler.store.step(filler.variant(label)["steps"]["uptrain"]).claim()
    rows = [{"step": (i + 1) * step, "steps": 100, "loss": loss} for i, loss in enumerate(losses)]
    claim.attempt.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def single(tmp_path: Path, filler: Any) -> Source:
    one = type(filler)(tmp_path / "one", {"MLKV-3": filler.figures["MLKV-3"]})
    one.everything()
    return load(one.store, one.name)


def test_every_figure_of_published_results_is_readable() -> None:
    kinds = {}
    for name in ("mlkv", "cla-1b", "study-1b"):
        drawn = draw_all(published_source(name))
        kinds[name] = set(drawn)
        for figure in drawn.values():
            assert_readable(figure)
    assert kinds["mlkv"] == set(FIGURES)
    assert kinds["cla-1b"] == {"pareto", "spectrum", "layouts", "tasks"}  # it has perplexities alone: no pareto_loss


def test_every_figure_of_a_sweep_in_progress_is_readable(filler: Any) -> None:
    drawn = draw_all(in_progress(filler))
    assert set(drawn) == {"pareto_loss", "memory", "curves", "spectrum", "layouts", "tasks"}
    for figure in drawn.values():
        assert_readable(figure)


def test_every_figure_of_one_variant_is_readable(tmp_path: Path, filler: Any) -> None:
    drawn = draw_all(single(tmp_path, filler))
    assert set(drawn) == {"pareto", "pareto_loss", "memory", "layouts"}
    for figure in drawn.values():
        assert_readable(figure)


def test_every_figure_of_a_hundred_variants_is_readable(finished: Any) -> None:
    drawn = draw_all(crowd(finished))
    assert set(drawn) == {"pareto", "pareto_loss", "memory", "spectrum", "tasks"}
    for figure in drawn.values():
        assert_readable(figure)


def test_figures_are_written_in_three_formats(finished: Any, tmp_path: Path) -> None:
    source = load(finished.store, finished.name)
    files = write_figures(source, ["layouts", "spectrum"], tmp_path)
    assert [path.name for path in files] == [
        f"{kind}.{form}" for kind in ("layouts", "spectrum") for form in ("png", "pdf", "svg")
    ]
    assert [path.read_bytes()[:4] for path in files[:3]] == [b"\x89PNG", b"%PDF", b"<?xm"]
    before = [path.read_bytes() for path in files]
    assert [path.read_bytes() for path in write_figures(source, ["layouts", "spectrum"], tmp_path)] == before


def test_what_cannot_be_drawn_is_told(filler: Any, tmp_path: Path) -> None:
    source = load(filler.store, filler.name)
    with pytest.raises(CannotDraw, match=r"figure = paretto: choose from pareto, .*, tasks"):
        write_figures(source, ["paretto"], tmp_path / "out")
    with pytest.raises(CannotDraw, match="memory: nothing to draw for demo: no measure step has finished"):
        write_figures(source, ["memory"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_noise_leaves_open_is_drawn_hollow(finished: Any) -> None:
    cloud = main_cloud(load(finished.store, finished.name).results)
    assert cloud is not None
    standing = {point.variant: point.standing for point in cloud.points}
    assert standing["MLKV-1"] == standing["MQA-6"] == "front"
    assert standing["MLKV-6"] == standing["MLKV-12"] == "dominated"
    assert standing["MHA-36"] == "front"
    figure = cloud_figure(cloud)
    assert READING in [text.get_text() for text, _ in texts_of(figure)]


def test_two_points_within_noise_of_each_other_are_both_undecided() -> None:
    rows = [("A", 512, 0.500), ("B", 1024, 0.501), ("C", 2048, 0.9)]
    cells = [
        {"variant": name, "family": "MLKV", "kv_bytes_per_token": size, "value": value, "stderr": 0.02}
        for name, size, value in rows
    ]
    same = {"kind": "evaluate", "task": "t", "metric": "acc", "state": "DONE", "in_axis": True}
    cloud = main_cloud(results(frame.make({**cell, **same} for cell in cells)))
    assert cloud is not None
    assert {point.variant: point.standing for point in cloud.points} == {"A": "front", "B": "undecided", "C": "front"}
    hollow = [a for a in cloud_figure(cloud).axes[0].lines if a.get_markerfacecolor() == "white" and points(a)]
    ((point,),) = map(points, hollow)
    assert point == pytest.approx((1024.0, 50.1))


def test_published_points_are_laid_beside_ours_on_an_axis_of_the_same_metric(finished: Any) -> None:
    source, beside = load(finished.store, finished.name), published_source("mlkv")
    drawn = draw_all(source, beside)
    assert (36864.0, 52.8) in {(x, round(y, 1)) for x, y in drawn_points(drawn["pareto"])}
    assert drawn_points(drawn["pareto_loss"]) == drawn_points(draw_all(source)["pareto_loss"])  # bits are no nats
    assert_readable(drawn["pareto"])


def test_a_bar_is_full_only_beyond_noise() -> None:
    drawn = {panel.title: panel for panel in panels(published_source("mlkv").results)}
    full = {title: {bar.variant for bar in panel.bars if bar.beyond_noise} for title, panel in drawn.items()}
    assert full["PIQA"] == set()
    assert full["LAMBADA"] >= {"MLKV-1", "MLKV-2", "GQA-48"}
    assert drawn["ARC-e"].baseline == "43.94"
    (bar,) = [bar for bar in drawn["SciQ"].bars if bar.variant == "MLKV-1"]
    assert bar.error == pytest.approx(math.hypot(1.4, 1.6), abs=0.2)
    faces = [patch.get_facecolor() for patch in present(tasks_figure(published_source("mlkv").results)).axes[2].patches]
    assert set(faces) == {(1.0, 1.0, 1.0, 1.0)}


def test_curves_are_what_steps_logged_and_stop_where_they_are(filler: Any) -> None:
    log(filler, "GQA-12", [5.0, 4.5, float("nan"), 4.4])
    source = load(filler.store, filler.name)
    (curve,) = curves_of(source)
    assert (curve.steps, curve.losses, curve.ended) == ([10, 20, 40], [5.0, 4.5, 4.4], False)
    names = [text.get_text() for text in names_of(curves_figure(source))]
    assert names == ["GQA-12 at 40"]
    assert LOSS == "train/loss"


def test_published_losses_are_grey_beside_ours(filler: Any) -> None:
    log(filler, "GQA-12", [5.0, 4.5, 4.4])
    figure = curves_figure(load(filler.store, filler.name), published_source("mlkv"))
    colours = {text.get_text(): text.get_color() for text in names_of(figure)}
    assert colours == {"GQA-12 at 30": look("GQA").colour} | dict.fromkeys(
        ("GQA-48", "MQA-12", "MLKV-48", "MLKV-12", "MLKV-2"), QUIET
    )
    assert_readable(figure)


def test_smoothing_is_a_mean_over_neighbours_and_keeps_a_constant() -> None:
    curve = Curve("a", None, 1, list(range(48)), [float(i % 2) for i in range(48)])
    smooth = curve.smoothed()
    assert len(smooth) == 48
    assert max(smooth[4:-4]) - min(smooth[4:-4]) < 0.15
    assert set(Curve("a", None, 1, [1, 2], [3.0, 3.0]).smoothed()) == {3.0}


def test_the_spectrum_holds_heads_and_pattern_fixed(pivot: Any) -> None:
    _, found = series(pivot)
    points = {line.name: sorted(line.points) for line in found}
    assert points == {"6 heads": [2, 6], "2 heads": [3, 6], "1 head": [1, 2, 3, 6]}
    assert told_apart([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])[-2:] == [10, 12]


def test_speeds_are_the_measured_ones_and_end_where_memory_did() -> None:
    found = {pace.name: pace for pace in paces(published_source("mlkv").table)}
    assert found["MHA-144"].cells == {8: 46.06, 24: 79.71, 48: 31.29}
    assert found["MHA-144"].last == (48, 31.29)
    assert max(found["MLKV-1"].cells) == 1100


def test_a_batch_that_did_not_fit_is_marked_in_the_speeds(filler: Any) -> None:
    step = filler.variant("MLKV-1")["steps"]["measure"]
    rows = [("tokens_per_second", 8, 100.0), ("oom", 64, 1.0)]
    cells = [{"metric": m, "batch": b, "context": 256, "value": v, "stderr": None, "n": 1} for m, b, v in rows]
    filler.done(step, cells)
    figure = present(throughput_figure(load(filler.store, filler.name).table))
    crosses = [points(line) for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert crosses == [[(64.0, 100.0)]]


def test_equal_layouts_are_drawn_once_and_by_a_name_of_theirs(finished: Any) -> None:
    names = [name for name, _, _ in layouts_of(load(finished.store, finished.name))]
    assert names == ["MHA-36", "GQA-12", "MLKV-12", "MQA-6", "MLKV-6", "MLKV-3", "MLKV-2", "MLKV-1"]
    assert [name for name, *_ in layouts_of(published_source("study-1b"))] == [
        "baseline", "pizza-bottom", "lasagna-bottom (CLA2)"
    ]  # fmt: skip


def test_families_differ_in_shape_and_colour() -> None:
    assert len({looks.marker for looks in LOOKS.values()}) == len({looks.colour for looks in LOOKS.values()}) == 10
    assert len(set(shades("#D55E00", 8))) == 8


@given(st.lists(st.floats(0, 100), max_size=12))
def test_names_pushed_between_the_edges_stay_apart(heights: list[float]) -> None:
    moved = within(spread(sorted(heights, reverse=True), 8.0), 8.0, 0.0, 100.0)
    assert all(-1e-6 <= height <= 100 + 1e-6 for height in moved)
    assert all(a - b >= 8.0 - 1e-6 for a, b in itertools.pairwise(moved))


@given(st.lists(st.integers(), max_size=30), st.integers(1, 9))
def test_evenly_chosen_items_are_few_and_in_order(items: list[int], most: int) -> None:
    chosen = evenly(items, most)
    assert len(chosen) == min(most, len(items))
    assert all(item in items for item in chosen)
    assert most < 2 or not items or (chosen[0], chosen[-1]) == (items[0], items[-1])


@given(st.floats(1e-3, 1e6), st.floats(1.2, 1e6), st.integers(4, 9))
def test_round_ticks_are_inside_and_few(low: float, ratio: float, most: int) -> None:
    ticks = round_ticks(low, low * ratio, most)
    assert 1 <= len(ticks) <= most + 1
    assert all(low * (1 - 1e-6) <= tick <= low * ratio * (1 + 1e-6) for tick in ticks)


def test_at_one_batch_size_the_context_is_the_axis(filler: Any) -> None:
    for label in ("GQA-12", "MLKV-1"):
        size = filler.layout(label).kv_bytes_per_token(32)
        cells = [
            {"metric": metric, "batch": 1, "context": context, "value": value, "stderr": None, "n": 1}
            for context in (1024, 4096)
            for metric, value in (
                ("cache_bytes", 2.0 * size * (context + 16)),  # kept at 32 bits
                ("cache_bytes_per_token", 2.0 * size),
                ("tokens_per_second", 1e5 / context),
            )
        ]
        filler.done(filler.variant(label)["steps"]["measure"], cells)
    table = load(filler.store, filler.name).table
    for line in lines(table):
        (caches,) = line.caches.values()
        assert caches == {context: line.formula(context) for context in (1024, 4096)}
    assert [line.label for line in lines(table)] == ["GQA-12 ×2", "MLKV-1 ×2"]
    assert [pace.cells for pace in paces(table)] == [{1024: 1e5 / 1024, 4096: 1e5 / 4096}] * 2
    for figure in map(present, (memory_figure(table), throughput_figure(table))):
        assert figure.axes[0].get_xlabel() == "context, tokens"
        assert_readable(figure)


def test_from_scratch_bars_are_differences_from_the_largest_cache() -> None:
    rows = [("A", 512, 0.40), ("B", 1024, 0.52), ("C", 2048, 0.50)]
    same = {"kind": "evaluate", "task": "t", "metric": "acc", "state": "DONE", "in_accuracy": True, "stderr": 0.01}
    cells = [{**same, "variant": name, "kv_bytes_per_token": size, "value": value} for name, size, value in rows]
    (panel,) = panels(results(frame.make(cells)))
    assert (panel.name, panel.baseline) == ("C", "50.00")
    assert [(bar.variant, bar.beyond_noise) for bar in panel.bars] == [("A", True), ("B", False)]
    assert [bar.difference for bar in panel.bars] == pytest.approx([-10, 2])
