"""The figures of layouts: the spectrum of KV layers, and the drawings of the layouts themselves."""

from __future__ import annotations

from analysis.figures.layouts import layouts_of
from analysis.figures.spectrum import series
from analysis.statistics.sources import load, published_source
from tests.support.filler import Filler


def test_the_spectrum_holds_heads_and_pattern_fixed(finished: Filler) -> None:
    found = series(load(finished.store, finished.name).results)
    points = {line.name: sorted(line.points) for line in found}
    assert points == {"6 heads": [2, 6], "2 heads": [3, 6], "1 head": [1, 2, 3, 6]}


def test_equal_layouts_are_drawn_once_under_the_first_name(finished: Filler) -> None:
    names = [layout.name for layout in layouts_of(load(finished.store, finished.name))]
    assert names == ["MHA-36", "GQA-12", "MLKV-12", "MQA-6", "MLKV-6", "MLKV-3", "MLKV-2", "MLKV-1"]
    assert [layout.name for layout in layouts_of(published_source("study-1b"))] == [
        "baseline", "sandwich-top (LCKV)", "pizza-bottom", "sandwich-middle", "lasagna-bottom (CLA2)"
    ]  # fmt: skip
