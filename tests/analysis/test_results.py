"""Results keep together what belongs together: a selection, several frames or a file are compared anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.data.gather import gather
from analysis.figures.tasks import panels
from analysis.statistics.columns import join_parts, split_parts
from analysis.statistics.results import Results, by_layout, results
from analysis.statistics.scores import other_scores, shown_scores
from analysis.statistics.sources import load
from analysis.tables import results_table
from tests.support.figures import main_data
from tests.support.filler import Filler
from tests.support.seeded import answered, seeded, with_seeds

THREE = ["MQA-6", "MLKV-1", "MHA-36"]


@pytest.fixture
def nine(finished: Filler) -> Results:
    return load(finished.store, finished.name).results


@pytest.fixture
def crowd(filler: Filler, tmp_path: Path) -> Results:
    """Three seeds of three layouts, with samples; of the last one seed is not finished."""
    crowd = with_seeds(filler, tmp_path / "crowd", ("MHA-36", "MLKV-6", "MQA-6"))
    random = np.random.default_rng(0)
    names = [variant["variant"] for variant in crowd.variants][:-2]
    answered(crowd, {name: (random.random(200) < 0.5 + 0.02 * i).astype(float) for i, name in enumerate(names)})
    return load(crowd.store, crowd.name).results


def assert_equal(one: Results, other: Results) -> None:
    pd.testing.assert_frame_equal(one.frame, other.frame)
    assert one.statistics == other.statistics
    assert results_table.markdown(one) == results_table.markdown(other)


def test_a_selection_is_judged_as_if_nothing_else_were_there(finished: Filler, nine: Results) -> None:
    table = gather(finished.store, finished.name)
    alone = by_layout(table[table["variant"].isin(THREE)])
    three = nine.select(THREE)
    assert_equal(three, alone)
    assert three.statistics.hypervolume != nine.statistics.hypervolume
    assert three.statistics.comparisons < nine.statistics.comparisons
    assert list(three.frame["variant"]) == ["MHA-36", "MQA-6", "MLKV-1"]  # in the table's order


def test_a_selection_keeps_its_seeds_and_samples(crowd: Results) -> None:
    two = crowd.select(["MHA-36", "MLKV-6"])
    whole, part = (each.frame.set_index("variant").loc["MLKV-6"] for each in (crowd, two))
    assert two.statistics.paired
    assert part["accuracy_vs_mha_low"] == whole["accuracy_vs_mha_low"]
    assert part["accuracy_vs_mha_p"] < whole["accuracy_vs_mha_p"]  # one comparison instead of two


def test_a_lone_seed_borrows_from_no_row_that_was_left_out(crowd: Results) -> None:
    lone = crowd.select(["MQA-6"])
    assert crowd.estimates.of(crowd.rows()[2], "accuracy").borrowed  # type: ignore[union-attr]
    assert not lone.estimates.of(lone.rows()[0], "accuracy").borrowed  # type: ignore[union-attr]


def test_all_rows_selected_are_the_same_results(nine: Results, crowd: Results) -> None:
    for whole in (nine, crowd):
        assert_equal(whole.select(whole.frame["variant"]), whole)


def test_a_difference_from_a_baseline_that_is_left_out_is_empty(nine: Results) -> None:
    (row,) = nine.select(["MQA-6"]).rows()
    assert row["quality"] == 2.295
    assert (row["quality_vs_mha"], row["quality_vs_mha_p"]) == (None, None)


@pytest.mark.parametrize("names", [[], ["MQA-6"]])
def test_no_row_and_one_row_are_printed_and_drawn(nine: Results, names: list[str]) -> None:
    part = nine.select(names)
    assert len(part.frame) == len(names)
    assert [score.label for score in shown_scores(part)] == [score.label for score in shown_scores(nine)]
    assert other_scores(part) == other_scores(nine)
    assert "hypervolume" not in results_table.markdown(part)
    assert results_table.latex(part)
    assert results_table.csv(part).splitlines()[0] == results_table.csv(nine).splitlines()[0]
    assert [point.variant for point in main_data(part).points] == names
    assert panels(part) == []


def test_a_name_that_is_not_there_is_refused(nine: Results) -> None:
    with pytest.raises(ValueError, match=r"^variant = MQA-7: not in these results \(there are untouched, MHA-36, "):
        nine.select(["MQA-7"])


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_results_that_are_read_again_are_the_same(nine: Results, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"results.{form}"
    if form == "csv":
        path.write_text(results_table.csv(nine))
        assert_equal(Results.from_frame(pd.read_csv(path)), nine)
    else:
        nine.frame.to_parquet(path)
        assert_equal(Results.from_frame(pd.read_parquet(path)), nine)


def test_merged_seeds_that_are_read_again_have_their_degrees_of_freedom(tmp_path: Path) -> None:
    ours = by_layout(seeded({"MHA": {1: 0.50, 2: 0.54, 3: 0.52}, "MLKV": {1: 0.40, 2: 0.44, 3: 0.42}}))
    (tmp_path / "results.csv").write_text(results_table.csv(ours))
    assert_equal(Results.from_frame(pd.read_csv(tmp_path / "results.csv")), ours)


def test_an_empty_selection_is_read_again(nine: Results, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(results_table.csv(nine.select([])))
    again = Results.from_frame(pd.read_csv(tmp_path / "results.csv"))
    assert results_table.csv(again) == results_table.csv(nine.select([]))


def test_frames_that_are_put_together_are_judged_together(nine: Results) -> None:
    one, other = nine.select(["MHA-36", "MQA-6"]), nine.select(["untouched", "MLKV-1"])
    both = Results.from_frame(pd.concat([one.frame, other.frame]))
    assert both.statistics == nine.select(["untouched", "MHA-36", "MQA-6", "MLKV-1"]).statistics
    assert both.frame.set_index("variant").loc["MLKV-1", "quality_vs_mha"] == pytest.approx(2.404 - 2.206)


def test_what_cannot_stand_in_one_table_is_refused(nine: Results) -> None:
    with pytest.raises(ValueError, match=r"^variant = MHA-36: has two rows; give one of them another name"):
        Results.from_frame(pd.concat([nine.frame, nine.frame[1:2]]))
    other = nine.frame.assign(quality_score="wikitext.word_perplexity", variant=[f"other {i}" for i in range(9)])
    with pytest.raises(ValueError, match=r"^quality_score = bits_per_byte.bits_per_byte and wikitext.word_perplexity"):
        Results.from_frame(pd.concat([nine.frame, other]))
    with pytest.raises(ValueError, match=r"^results: no column quality_stderr"):
        Results.from_frame(nine.frame.drop(columns="quality_stderr"))


def test_nothing_is_kept_beside_the_frame(nine: Results) -> None:
    assert nine.frame.attrs == {}
    assert results(pd.DataFrame(gather_columns())).frame.empty


def gather_columns() -> dict[str, pd.Series]:
    from analysis.data.frame import COLUMNS

    return {name: pd.Series([], dtype=dtype) for name, dtype in COLUMNS.items()}


def test_names_of_scores_are_joined_and_split_whatever_is_in_them() -> None:
    parts = ["arc_easy.acc", "my own task.acc,none", "it's.f1"]
    assert split_parts(join_parts(parts)) == parts
    assert (join_parts([]), split_parts(None)) == (None, [])
    assert join_parts(["x.acc", "y.acc"]) == "x.acc y.acc", "as in tables that exist"
