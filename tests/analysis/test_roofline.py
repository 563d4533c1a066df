"""Decoding beside what memory gives: the roofline figure and the table of a step."""

from __future__ import annotations

import math
from typing import Any

import pytest

from analysis.figures.drawing import draw
from analysis.figures.measurements import drawn_measurements
from analysis.figures.roofline import copy_speeds, paths
from analysis.statistics.sources import Source, load
from analysis.tables.paper import make_tables
from analysis.tables.table import Table
from tests.support.figures import assert_readable
from tests.support.filler import Filler
from tests.support.read_back import present

SLOWER = {"MHA-36": 8.0, "MQA-6": 4.0, "MLKV-6": 2.0}
"""Milliseconds of a step at batch 1."""
COPY, CACHE = 10e9, 2.0**25


def cell(metric: str, value: float, batch: int | None, context: int | None, stderr: float | None = None) -> Any:
    place = {"batch": batch, "context": context}
    row = {"metric": metric, "value": value, "stderr": stderr, "n": 3 if stderr else None}
    return row | {name: each for name, each in place.items() if each is not None}


def metrics_of(filler: Filler, label: str, cells: list[tuple[int, int]], **changes: float) -> list[Any]:
    """Every batch size takes as long as the first, so that speeds are easily computed."""
    seconds, per_token = SLOWER[label] / 1e3, filler.layout(label).kv_bytes_per_token(32)
    rows = [cell("copy_bytes_per_second", COPY, None, None, 1e8), cell("processor_cache_bytes", CACHE, None, None)]
    rows += [cell("weights_bytes", 2.0**22, None, None)]
    for batch, context in cells:
        cached = per_token * batch * context * 1.0
        values = {
            "cache_bytes": cached,
            "cache_formula_bytes": cached,
            "step_bytes_once": 2.0**22 + cached,
            "step_operations": 1e6 * batch,
            "prefill_peak_bytes": 3 * 2.0**20,
            "decode_peak_bytes": 2.0**20,
        } | changes
        rows += [cell(name, value, batch, context) for name, value in values.items()]
        rows += [
            cell("step_seconds", seconds, batch, context, seconds / 10),
            cell("step_over_mha", seconds / 8e-3, batch, context, 0.01),
            cell("once_bytes_per_second", (2.0**22 + cached) / seconds, batch, context, 1e6),
            cell("by_layer_bytes_per_second", (2.0**22 + 2 * cached) / seconds, batch, context, 1e6),
        ]
    return rows


def measured(filler: Filler, cells: list[tuple[int, int]], **changes: float) -> Source:
    for label in SLOWER:
        step = filler.variant(label)["steps"]["measure"]
        filler.done(step, metrics_of(filler, label, cells, **changes), 1.0)
    return load(filler.store, filler.name)


def table(source: Source) -> Table:
    return make_tables(source, ["decoding"])["decoding"]


def column(made: Table, header: str) -> dict[str, float | None]:
    at = made.headers.index(header)
    return {row[0].text.split(" ")[0]: row[at].number for row in made.rows}


def test_points_are_operations_over_bytes_and_over_seconds(filler: Filler) -> None:
    source = measured(filler, [(1, 256), (8, 256)])
    found = {path.name: path for path in paths(source.table)}
    assert list(found) in (["MHA-36", "MQA-6", "MLKV-6"], ["MHA-36", "MLKV-6", "MQA-6"])
    for label, path in found.items():
        assert sorted(path.points) == [1, 8]
        cached = filler.layout(label).kv_bytes_per_token(32) * 8 * 256
        assert path.last.intensity == pytest.approx(8e6 / (2.0**22 + cached))
        assert path.last.speed == pytest.approx(8e6 / SLOWER[label] * 1e3 / 1e9)
        assert path.last.in_cache == (2.0**22 + cached <= CACHE)
    assert list(copy_speeds(source.table).values()) == [COPY / 1e9]


def test_no_point_that_reads_slower_than_copies_is_above_the_line(filler: Filler) -> None:
    source = measured(filler, [(1, 256), (8, 256)])
    figure = present(draw("roofline", source))
    assert_readable(figure)
    [axes] = figure.axes
    ceiling: Any = next(line for line in axes.lines if line.get_zorder() == 1)
    (x0, y0), (x1, y1) = ceiling.get_xydata()
    assert math.isclose(y0 / x0, y1 / x1)
    low, high = axes.get_xlim()
    assert (x0, x1) == (low, high)
    for path in paths(source.table):
        for point in path.points.values():
            assert point.speed < y0 / x0 * point.intensity
            assert low < point.intensity < high
            assert axes.get_ylim()[0] < point.speed < axes.get_ylim()[1]


def test_where_contexts_are_many_the_axis_is_the_context(filler: Filler) -> None:
    cells = [(batch, context) for batch in (1, 4) for context in (1024, 2048, 4096)]
    drawn = drawn_measurements(measured(filler, cells).table)
    assert drawn.axis == "context"
    assert {each.batch for each in drawn.cells} == {4}
    assert {each.x for each in drawn.cells} == {1024, 2048, 4096}
    source = load(filler.store, filler.name)
    for kind in ("memory", "roofline"):
        assert_readable(present(draw(kind, source)))


@pytest.mark.parametrize("cells", [[(1, 256), (8, 256)], [(1, 2045), (8, 2047), (32, 2046)], [(1, 64), (8, 256)]])
def test_otherwise_it_is_the_batch_size(filler: Filler, cells: list[tuple[int, int]]) -> None:
    assert drawn_measurements(measured(filler, cells).table).axis == "batch"


def test_the_table_has_each_number_once_in_its_unit(filler: Filler) -> None:
    made = table(measured(filler, [(1, 256), (8, 256)]))
    assert column(made, "step ms") | SLOWER == column(made, "step ms")
    assert column(made, "weights MiB")["MQA-6"] == 4.0
    assert column(made, "decode peak MiB")["MQA-6"] == 1.0
    assert column(made, "step / MHA")["MLKV-6"] == 0.25
    cached = filler.layout("MQA-6").kv_bytes_per_token(32) * 8 * 256
    assert column(made, "GB/s")["MQA-6"] == pytest.approx((2.0**22 + cached) / 4e-3 / 1e9)
    assert column(made, "copy GB/s")["MQA-6"] == 10.0
    [row] = [row for row in made.rows if row[0].text == "MQA-6"]
    assert row[made.headers.index("step ms")].text == "4.00 ± 0.40"
    assert any(note.startswith("batch 8;") for note in made.notes)
    assert not any("formula" in note for note in made.notes)
    assert "batch that fits" not in made.headers


def test_a_variant_that_is_not_measured_says_why(filler: Filler) -> None:
    made = table(measured(filler, [(8, 256)]))
    at = made.headers.index("step ms")
    others = [row[at] for row in made.rows if row[0].text.split(" ")[0] not in SLOWER]
    assert others
    assert all(cell.number is None and cell.text for cell in others)


def test_a_cache_that_is_not_its_formulas_is_named(filler: Filler) -> None:
    made = table(measured(filler, [(8, 256)], cache_formula_bytes=1.0))
    assert [note for note in made.notes if note.startswith("the cache is not what the formula says: ")]


def test_every_context_has_a_row_and_the_largest_batch_that_fits_it(filler: Filler) -> None:
    step = filler.variant("MQA-6")["steps"]["measure"]
    rows = metrics_of(filler, "MQA-6", [(1, 256), (1, 512)])
    filler.done(step, [*rows, cell("largest_batch", 40.0, None, 256), cell("largest_batch", 20.0, None, 512)], 1.0)
    made = table(load(filler.store, filler.name))
    at = made.headers.index("batch that fits"), made.headers.index("context")
    found = [(row[at[1]].number, row[at[0]].number) for row in made.rows if row[0].text == "MQA-6"]
    assert found == [(256, 40.0), (512, 20.0)]


def test_earlier_measurements_have_no_such_table(filler: Filler) -> None:
    filler.measure("MQA-6")
    with pytest.raises(ValueError, match="table = decoding: demo has nothing of that kind"):
        table(load(filler.store, filler.name))
    assert draw("roofline", load(filler.store, filler.name)) is None
