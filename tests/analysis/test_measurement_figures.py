"""The figures of what was measured: caches and decode speeds."""

from __future__ import annotations

from analysis.data.gather import gather
from analysis.figures.drawing import draw
from analysis.figures.memory import lines, memory_figure
from analysis.figures.throughput import speed_lines, throughput_figure
from analysis.statistics.sources import load, published_source
from tests.support.figures import assert_readable, source_of
from tests.support.filler import Filler
from tests.support.read_back import points, present


def test_memory_lines_are_the_formula_and_points_what_was_measured(finished: Filler) -> None:
    found = lines(gather(finished.store, finished.name))
    assert [line.label for line in found][:2] == ["MHA-36", "GQA-12, MLKV-12"]
    for line in found:
        assert (line.unit % 272, line.extra) == (0, 0)
        for cells in line.caches.values():
            assert cells == {1: line.formula(1), 8: line.formula(8)}


def test_running_out_of_memory_is_a_mark_and_no_number(filler: Filler) -> None:
    filler.measure("MLKV-1", batches=(8,), failed=(64,))
    source = source_of(gather(filler.store, filler.name))
    (line,) = lines(source.table)
    assert line.failed == {64}
    assert line.caches == {"MLKV": {8: line.formula(8)}}
    crosses = [artist for artist in present(memory_figure(source)).axes[0].lines if artist.get_marker() == "x"]
    assert [points(c) for c in crosses] == [[(64.0, line.formula(64))]]


def test_nothing_measured_is_no_figure(filler: Filler) -> None:
    source = source_of(gather(filler.store, filler.name))
    assert memory_figure(source) is None
    assert throughput_figure(source) is None


def test_speeds_are_the_measured_ones_and_end_where_memory_did() -> None:
    found = {line.name: line for line in speed_lines(published_source("mlkv").table)}
    assert found["MHA-144"].cells == {8: 46.06, 24: 79.71, 48: 31.29}
    assert found["MHA-144"].last == (48, 31.29)
    assert max(found["MLKV-1"].cells) == 1100


def test_a_batch_that_did_not_fit_is_marked_in_the_speeds(filler: Filler) -> None:
    step = filler.variant("MLKV-1")["steps"]["measure"]
    rows = [("tokens_per_second", 8, 100.0), ("oom", 64, 1.0)]
    cells = [{"metric": m, "batch": b, "context": 256, "value": v, "stderr": None, "n": 1} for m, b, v in rows]
    filler.done(step, cells)
    figure = present(throughput_figure(load(filler.store, filler.name)))
    crosses = [points(line) for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert crosses == [[(64.0, 100.0)]]


def test_at_one_batch_size_the_context_is_the_axis(filler: Filler) -> None:
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
    source = load(filler.store, filler.name)
    for line in lines(source.table):
        (found,) = line.caches.values()
        assert found == {context: line.formula(context) for context in (1024, 4096)}
    assert [line.label for line in lines(source.table)] == ["GQA-12 ×2", "MLKV-1 ×2"]
    assert [line.cells for line in speed_lines(source.table)] == [{1024: 1e5 / 1024, 4096: 1e5 / 4096}] * 2
    for kind in ("memory", "throughput"):
        figure = present(draw(kind, source))
        assert figure.axes[0].get_xlabel() == "context, tokens"
        assert_readable(figure)
