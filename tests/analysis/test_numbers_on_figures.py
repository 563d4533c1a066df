"""Any number on a figure is that of one layout, or of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.data import frame
from analysis.data.gather import gather
from analysis.data.importer import import_results
from analysis.data.published import published
from analysis.figures.drawing import draw_all
from analysis.figures.memory import lines, memory_figure
from analysis.figures.throughput import speed_lines, throughput_figure
from analysis.statistics.results import results
from analysis.statistics.sources import Source
from tests.support.figures import main_figure, source_of
from tests.support.filler import Filler
from tests.support.read_back import points, present


def label(table: Any) -> str:
    return " ".join(present(memory_figure(source_of(table))).axes[0].get_ylabel().split())


def test_the_cache_on_the_axis_is_that_of_every_layout(finished: Filler) -> None:
    """256 tokens and 16 decoded after them, whichever layout comes last in the table."""
    table = gather(finished.store, finished.name)
    assert label(table) == "KV cache of 272 tokens"
    for name in ("untouched", "MQA-6", "MLKV-1"):
        rest, own = table[table["variant"] != name], table[table["variant"] == name]
        assert label(frame.make([*frame.records(rest), *frame.records(own)])) == "KV cache of 272 tokens"


def cells(layout: str, size: int, tokens: int, context: int, batches: list[int]) -> list[dict[str, Any]]:
    same = {"variant": layout, "family": layout, "budget": 4, "kv_bytes_per_token": size, "step": layout}
    same |= {"kind": "measure", "state": "DONE", "context": context}
    values = {"cache_bytes": size * tokens, "cache_bytes_per_token": size, "tokens_per_second": 10.0}
    return [
        {**same, "batch": batch, "metric": name, "value": float(value * (batch if name == "cache_bytes" else 1))}
        for batch in batches
        for name, value in values.items()
    ]


MEASURED = st.tuples(
    st.integers(1, 64),
    st.integers(0, 512),
    st.lists(st.sampled_from([1, 2, 8, 32]), min_size=2, max_size=3, unique=True),
)


@settings(max_examples=10)
@given(st.lists(MEASURED, min_size=1, max_size=4), st.integers(64, 2048), st.randoms())
def test_a_figure_of_caches_never_gives_a_number_that_no_layout_has(
    layouts: list[tuple[int, int, list[int]]], context: int, random: Any
) -> None:
    rows = [
        row
        for i, (size, decoded, batches) in enumerate(layouts)
        for row in cells(f"L{i}", 64 * size, context + decoded, context, batches)
    ]
    random.shuffle(rows)
    table = frame.make(rows)
    held = {context + decoded for _, decoded, _ in layouts}
    assert {line.fixed for line in lines(table)} == held
    found = label(table)
    names = {text.get_text() for text in present(memory_figure(source_of(table))).axes[0].texts if text.get_text()}
    if len(held) == 1:
        assert found == f"KV cache of {held.pop():,} tokens"
        assert not any("@" in name for name in names)
    else:
        assert found == "KV cache (tokens: number after @)"
        assert {int(name.split("@")[1].replace(",", "")) for name in names} <= held


def test_at_one_batch_size_the_axis_has_the_number_of_sequences() -> None:
    rows = [row for context in (64, 256) for row in cells("A", 64, context + 16, context, [8])]
    assert label(frame.make(rows)) == "KV cache of 8 sequences"
    one = [row for context in (64, 256) for row in cells("A", 64, context + 16, context, [1])]
    assert label(frame.make(one)) == "KV cache of 1 sequence"


def test_layouts_of_one_cache_keep_peaks_of_their_own() -> None:
    rows = [*cells("A", 64, 272, 256, [1, 8]), *cells("B", 64, 272, 256, [1, 8])]
    peaks = [{**row, "family": "A", "metric": "peak_bytes"} for row in rows if row["metric"] == "cache_bytes"]
    for row in peaks:
        row["value"] *= 3 if row["variant"] == "A" else 2
    table = frame.make([*({**row, "family": "A"} for row in rows), *peaks])
    (line,) = lines(table)
    size = 64 * 272.0
    assert line.peaks == {"A": [(1, 2 * size), (1, 3 * size), (8, 16 * size), (8, 24 * size)]}
    dashes = [mark for mark in present(memory_figure(source_of(table))).axes[0].lines if mark.get_marker() == "_"]
    assert [len(points(mark)) for mark in dashes] == [4]


def test_the_published_cache_is_that_of_the_published_runs() -> None:
    assert label(published("mlkv")) == "KV cache of 2,047 tokens"


@pytest.mark.parametrize("draw", [memory_figure, throughput_figure])
def test_layouts_that_are_left_out_are_counted(draw: Any) -> None:
    """A layout that was measured at shorter contexts alone has no place on the axes of the longest."""
    rows = [*cells("A", 64, 272, 256, [1, 8]), *cells("B", 128, 80, 64, [1, 8])]
    assert "1 measured at other contexts: not drawn" in draw(source_of(frame.make(rows))).get_supxlabel()
    assert "not drawn" not in draw(source_of(frame.make(rows[:6]))).get_supxlabel()


def test_a_line_of_one_of_several_baselines_has_its_name() -> None:
    same = {"kind": "evaluate", "task": "t", "metric": "acc", "state": "DONE", "in_axis": True, "stderr": 0.01}
    values = {"MHA lr=1": (0.50, 64, "mha"), "MHA lr=2": (0.60, 64, "mha"), "A lr=1": (0.45, 8, None)}
    table = frame.make(
        {**same, "variant": name, "value": value, "kv_bytes_per_token": size, "baseline": kind}
        for name, (value, size, kind) in values.items()
    )
    names = [text.get_text() for text in main_figure(results(table)).axes[0].texts]
    assert "base, trained equally" not in names
    assert names.count("MHA lr=1") >= 1


IMPORTED = "variant,batch,context,metric,value\n"


@pytest.mark.parametrize(
    ("measured", "caches", "speeds"),
    [
        (["A,1,,tokens_per_second,9", "A,1,,cache_bytes,96", "A,2,,cache_bytes,192"], 0, 1),
        (["A,1,0,tokens_per_second,9", "A,1,0,cache_bytes,96"], 0, 1),
        (["A,1,,tokens_per_second,9", "A,1,128,cache_bytes,3072", "A,2,128,tokens_per_second,12"], 1, 1),
        (["A,1,8,tokens_per_second,0", "A,1,8,cache_bytes,0", "A,2,8,tokens_per_second,-3"], 0, 0),
        (["A,1,8,tokens_per_second,1e308", "A,1,8,cache_bytes,1e308"], 0, 0),
        (["A,1,8,tokens_per_second,1e-308"], 0, 1),
        (["A,1,8,tokens_per_second,nan", "A,1,8,cache_bytes,inf"], 0, 0),
        (["A,1,0,cache_bytes,96", "A,1,64,cache_bytes,1536", "A,1,128,cache_bytes,3072"], 1, 0),
    ],
)
def test_measurements_of_others_are_drawn_as_far_as_they_tell(
    measured: list[str], caches: int, speeds: int, tmp_path: Path
) -> None:
    """Without a context no formula says what a cache should take; nothing takes no memory or stands still."""
    (tmp_path / "layouts.csv").write_text("variant,family,kv_layers,kv_heads,kv_bytes_per_token\nA,mha,2,2,24\n")
    (tmp_path / "speed.csv").write_text(IMPORTED + "\n".join(measured))
    source = Source("theirs", import_results(tmp_path))
    assert len(lines(source.table)) == caches
    assert len(speed_lines(source.table)) == speeds
    draw_all(source)
