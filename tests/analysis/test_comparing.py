"""Several sources as one, a selection of their rows, and the differences that figures and programs are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.figures.difference import panels
from analysis.figures.drawing import draw
from analysis.figures.spectrum import series
from analysis.statistics.combine import combine
from analysis.statistics.differences import from_baselines
from analysis.statistics.long_form import long_form
from analysis.statistics.selection import matching, select
from analysis.statistics.sources import Source, load, published_source, row_names
from analysis.tables.paper import make_tables
from analysis.tables.table import Table
from tests.support.figures import assert_readable
from tests.support.filler import FIGURES, Filler
from tests.support.read_back import present
from tests.support.seeded import answered, with_seeds

WIDE = {"MLKV-6": FIGURES["MLKV-6"], "MLKV-4": (2, 2, 2.350, (0.080, 0.420, 0.660))}
"""Without baselines, and with a variant of the other sweep."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Source]:
    root = tmp_path_factory.mktemp("both") / "store"
    demo = Filler(root, {label: FIGURES[label] for label in ("untouched", "MHA-36", "MQA-6", "MLKV-6", "MLKV-1")})
    demo.everything()
    wide = Filler(root, WIDE, name="wide")
    wide.train("MLKV-4")
    for task in ("bits_per_byte", "cloze"):
        wide.evaluate("MLKV-4", task)
    return load(demo.store, "demo"), load(wide.store, "wide")


def by_variant(source: Source) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in source.results.rows()}


def texts(table: Table, header: str) -> list[str]:
    return [row[table.headers.index(header)].text for row in table.rows]


def test_sweeps_of_one_base_share_rows_and_baselines(both: tuple[Source, Source]) -> None:
    together = combine(both)
    table = make_tables(together, ["benchmarks"])["benchmarks"]
    assert texts(table, "variant")[-3:] == ["MLKV-6", "MLKV-1", "MLKV-4"], "the same weights are one row"
    assert texts(table, "source") == ["demo", "demo", "demo", "demo + wide", "demo", "wide"]
    row = by_variant(together)["MLKV-4"]
    assert row["quality_vs_mha"] == pytest.approx(2.350 - 2.206), "of the base that both have"
    assert "differences are from untouched, MHA-36: all sources share the base" in table.notes
    assert row["accuracy"] is None


def test_results_of_other_bases_are_told_apart_and_differ_from_their_own(both: tuple[Source, Source]) -> None:
    theirs = published_source("mlkv")
    for order in ((theirs, both[0]), (both[0], theirs)):
        rows = by_variant(combine(order))
        assert {"demo/MLKV-6", "published/mlkv/MLKV-6", "MHA-36", "MHA-144"} <= set(rows)
        assert "MLKV-6" not in rows
        for name, row in by_variant(order[0]).items():
            own = rows.get(name) or rows[f"{order[0].name}/{name}"]
            assert own["quality_vs_untouched"] == row["quality_vs_untouched"]
    assert rows["published/mlkv/MLKV-6"]["quality"] is None, "a mean of other tasks is another score"
    table = make_tables(combine((both[0], theirs)), ["configuration"])["configuration"]
    smaller = dict(zip(texts(table, "variant"), texts(table, "smaller by"), strict=True))
    assert (smaller["demo/MLKV-1"], smaller["published/mlkv/MLKV-1"]) == ("36×", "144×")


def test_a_line_through_layouts_stays_on_one_base() -> None:
    theirs = published_source("mlkv")
    [alone] = series(theirs.results)
    lines = series(combine((theirs, replace(theirs, name="again"))).results)
    assert [line.name for line in lines] == [f"{name}/MHA-144: 1 head" for name in ("published/mlkv", "again")]
    assert [[len(points) for points in line.points.values()] for line in lines] == [[1] * len(alone.points)] * 2


def test_no_source_is_taken_twice(both: tuple[Source, Source]) -> None:
    with pytest.raises(ValueError, match=r"^demo: is named twice"):
        combine((both[0], both[0]))


def test_all_figures_and_tables_take_several_sources(both: tuple[Source, Source]) -> None:
    together = combine((*both, published_source("mlkv")))
    assert set(make_tables(together, [])) == {"configuration", "losses", "benchmarks", "memory", "training"}
    for kind in ("difference", "pareto"):
        assert_readable(present(draw(kind, together)))


def test_a_selection_is_compared_anew_and_keeps_its_baselines(both: tuple[Source, Source]) -> None:
    source = combine(both)
    chosen = select(source, matching(source, ["MLKV-*"]), "selected by x")
    assert row_names(chosen.table) == ["MLKV-6", "MLKV-1", "MLKV-4"]
    alone = source.results.select(["MLKV-6", "MLKV-1", "MLKV-4"])
    assert chosen.results.statistics.hypervolume == alone.statistics.hypervolume
    assert chosen.results.statistics.hypervolume != source.results.statistics.hypervolume
    assert chosen.results.frame["front_probability"].equals(alone.frame["front_probability"])
    whole, row = by_variant(source)["MLKV-6"], by_variant(chosen)["MLKV-6"]
    assert row["quality_vs_mha"] == whole["quality_vs_mha"]
    assert row["quality_vs_mha_p"] < whole["quality_vs_mha_p"], "fewer comparisons to correct for"
    table = make_tables(chosen, ["benchmarks"])["benchmarks"]
    assert len(table.rows) == 3
    assert {"differences are from untouched, MHA-36, not shown here", "selected by x"} <= set(table.notes)
    assert "untouched" not in by_variant(chosen)
    again = select(chosen, ["MLKV-1"], "y")
    assert by_variant(again)["MLKV-1"]["quality_vs_mha"] == pytest.approx(2.404 - 2.206)


@pytest.mark.parametrize("glob", ["MLKV-6", "demo/MLKV-6", "wide/MLKV-6", "*/MLKV-6", "[M]LKV-6"])
def test_a_row_is_found_by_every_name_that_it_has(both: tuple[Source, Source], glob: str) -> None:
    assert matching(combine(both), [glob]) == ["MLKV-6"]
    with pytest.raises(ValueError, match="variants = MLKV-7: matches no variant of demo; did you mean MLKV-6"):
        matching(both[0], ["MLKV-7"])


def test_the_differences_are_those_of_the_table(both: tuple[Source, Source]) -> None:
    results = both[0].results
    found = from_baselines(results, "quality")
    rows = by_variant(both[0])
    assert set(found) == set(rows) - {"MHA-36"}
    for name, each in found.items():
        numbers = [rows[name][f"quality_vs_mha{end}"] for end in ("", "_low", "_high", "_p")]
        assert [each.value, each.low, each.high, each.p] == numbers
    of_task = from_baselines(results, "cloze.acc")["MQA-6"]
    assert of_task.value == pytest.approx(0.0)
    assert not of_task.beyond_noise


def test_the_figure_tells_noise_from_differences(both: tuple[Source, Source]) -> None:
    quality, accuracy = panels(both[0].results)
    filled = {point.variant: point.beyond_noise for point in quality.points}
    assert filled == {"untouched": False, "MQA-6": True, "MLKV-6": True, "MLKV-1": True}
    assert not any(point.beyond_noise for point in accuracy.points)
    assert quality.axis_label == "Δ bits per byte (lower is better)"
    figure = present(draw("difference", both[0]))
    lines = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "o"]
    assert sorted(str(line.get_markerfacecolor()) == "white" for line in lines) == [False, True], "MLKV by panel"


def test_without_a_baseline_there_is_no_figure(both: tuple[Source, Source], few: Callable[..., Filler]) -> None:
    assert draw("difference", both[1]) is None
    one = select(both[0], ["MQA-6"], "")
    assert [point.variant for panel in panels(one.results) for point in panel.points] == ["MQA-6", "MQA-6"]
    assert_readable(present(draw("difference", one)))


def test_the_long_form_has_a_row_for_each_variant_and_score(both: tuple[Source, Source]) -> None:
    rows = long_form(combine(both))
    assert len({(row["variant"], row["metric"]) for row in rows}) == len(rows)
    chosen = {row["metric"]: row for row in rows if row["variant"] == "MLKV-4"}
    bits = chosen["bits_per_byte.bits_per_byte"]
    assert (bits["source"], bits["difference_from"], bits["reason"]) == ("wide", "MHA-36", None)
    assert bits["difference_interval"][0] < bits["difference"] < bits["difference_interval"][1]
    assert chosen["accuracy"]["value"] is None
    assert chosen["accuracy"]["reason"].startswith("PENDING")


@given(split=st.lists(st.sampled_from(["a", "b", "both"]), min_size=9, max_size=9))
@settings(max_examples=6)
def test_a_sweep_in_two_parts_is_the_sweep(finished: Filler, split: list[str]) -> None:
    """Whichever part has the baselines, and whatever is in both."""
    whole = load(finished.store, finished.name)
    names = row_names(whole.table)
    parts = [
        replace(select(whole, [n for n, of in zip(names, split, strict=True) if of in (part, "both")], ""), name=part)
        for part in ("a", "b")
    ]
    parts = [replace(part, whole=None, remarks=()) for part in parts if len(part.table)]
    results, expected = combine(parts).results, whole.results
    columns = list(expected.frame)
    found = results.frame.set_index("variant").loc[names].reset_index()[columns]
    pd.testing.assert_frame_equal(found, expected.frame)
    assert results.statistics == expected.statistics


def test_seeds_that_two_sweeps_share_are_one_row(filler: Filler, tmp_path: Path) -> None:
    sweep = with_seeds(filler, tmp_path / "seeds", ("MHA-36", "MLKV-6", "MQA-6"))
    names = [variant["variant"] for variant in sweep.variants]
    answered(sweep, {name: (np.arange(20) % (i + 2) == 0).astype(float) for i, name in enumerate(names)})
    whole = load(sweep.store, sweep.name)
    parts = [("a", ["MHA-36", "MLKV-6"]), ("b", ["MHA-36", "MQA-6"])]
    together = combine([replace(select(whole, rows, ""), name=name, whole=None) for name, rows in parts])
    assert row_names(together.table) == ["MHA-36", "MLKV-6", "MQA-6"]
    assert [row["seeds"] for row in together.results.rows()] == [row["seeds"] for row in whole.results.rows()]
    assert by_variant(together)["MQA-6"]["accuracy_vs_mha_p"] == by_variant(whole)["MQA-6"]["accuracy_vs_mha_p"]
