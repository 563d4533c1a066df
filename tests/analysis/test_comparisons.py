"""What the pivot says of differences, ties and fronts: right for seeds, and the same whatever variants are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.data import frame
from analysis.data.replicates import mean_of
from analysis.statistics.estimate import Estimate, borrow, difference, holm, of_seeds
from analysis.statistics.results import Results, by_layout, results
from analysis.statistics.sources import load
from tests.support.filler import Filler
from tests.support.read_back import number
from tests.support.seeded import answered, seeded, with_seeds

JUDGED = ("accuracy_vs_mha_p", "accuracy_vs_mha_low", "accuracy_tied", "accuracy_low", "front_probability")
NAMES = ("MLKV-12", "a", "zz top", "GQA")


def test_six_combined_errors_of_five_seeds_are_four_in_a_thousand() -> None:
    runs = [0.50, 0.51, 0.52, 0.53, 0.54]
    error = float(np.std(runs, ddof=1)) / 5**0.5
    for stderr in (None, 0.0):
        table = seeded({"MHA": {1: 0.52 + 6 * error}, "MLKV": dict(enumerate(runs, 1))}, stderr=stderr)
        pivot = by_layout(table).frame.set_index("variant")
        assert (
            pivot.loc["MLKV", "accuracy_vs_mha_p"]
            == pytest.approx(2 * stats.t.sf(6, 4))
            == pytest.approx(0.00388, abs=1e-5)
        )


@pytest.mark.parametrize("name", NAMES)
def test_two_and_three_seeds_are_compared_as_welch_does_under_every_name(name: str) -> None:
    ours, theirs = [0.41, 0.45, 0.43], [0.50, 0.52]
    table = seeded({"MHA": dict(enumerate(theirs)), name: dict(enumerate(ours))})
    pivot = by_layout(table).frame.set_index("variant")
    expected = stats.ttest_ind(ours, theirs, equal_var=False)
    assert pivot.loc[name, "accuracy_vs_mha_p"] == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert pivot.loc[name, "accuracy_vs_mha_low"] == pytest.approx(low)
    assert pivot.loc[name, "accuracy_vs_mha_high"] == pytest.approx(high)


@pytest.mark.parametrize("stderr", [None, 1e-6])
@pytest.mark.parametrize("name", NAMES)
def test_one_seed_of_several_varies_as_the_others_do(name: str, stderr: float | None) -> None:
    """The t-test of a single value: what that seed's training adds is not nothing because it stands alone."""
    theirs, ours = [0.50, 0.52, 0.51], 0.55
    pivot = by_layout(seeded({"MHA": dict(enumerate(theirs)), name: {0: None, 1: ours, 2: None}}, stderr=stderr))
    row = pivot.frame.set_index("variant").loc[name]
    assert row["seeds"] == 1
    expected = stats.ttest_ind([ours], theirs)
    assert row["accuracy_vs_mha_p"] == pytest.approx(expected.pvalue)
    assert row["accuracy_vs_mha_low"] == pytest.approx(expected.confidence_interval(0.95).low)


def test_one_seed_of_several_is_not_told_from_the_best_by_its_evaluation_alone() -> None:
    best, other = {0: 0.50, 1: 0.53, 2: 0.51}, [0.49, 0.48, 0.52]
    alone, whole = (
        by_layout(seeded({"MHA": {0: 0.6, 1: 0.61, 2: 0.6}, "A": best, "B": dict(enumerate(own))}, stderr=1e-6))
        .frame.set_index("variant")
        .loc["B"]
        for own in ([sum(other) / 3, None, None], other)
    )
    assert alone["accuracy"] == pytest.approx(whole["accuracy"])
    assert alone["accuracy_tied"]
    assert whole["accuracy_tied"]
    assert alone["front_probability"] == pytest.approx(whole["front_probability"], abs=0.1)
    assert alone["front_probability"] > 0.1


def test_single_seeds_are_of_the_right_size_beside_several() -> None:
    """At 5 %, one seed of a layout against three of another, with the seeds of a third to learn from."""
    random, found = np.random.default_rng(3), 0
    for runs in random.normal(0.5, 0.01, (2000, 7)):
        several = [of_seeds(*mean_of(own), [Estimate(one) for one in own]) for own in (runs[1:4], runs[4:])]
        p = difference(borrow(Estimate(runs[0], 1e-6), several), several[0]).p
        found += p is not None and p <= 0.05
    assert 10 <= found <= 120


def test_the_best_is_told_from_the_others_by_welch_and_holm() -> None:
    runs = {"A": [0.50, 0.51, 0.52], "B": [0.45, 0.46, 0.44], "C": [0.49, 0.53, 0.48], "D": [0.40, 0.47, 0.44]}
    pivot = by_layout(seeded({name: dict(enumerate(own)) for name, own in {"MHA": [0.6, 0.61], **runs}.items()}))
    p = [stats.ttest_ind(runs["A"], runs[name], equal_var=False).pvalue for name in "BCD"]
    expected = [True, *(corrected > 0.05 for corrected in holm(p))]
    assert pivot.frame.set_index("variant")["accuracy_tied"].dropna().to_list() == expected
    assert expected == [True, False, True, True]


RUNS = st.lists(st.integers(0, 100), min_size=1, max_size=4)


@settings(max_examples=15)
@given(st.lists(RUNS, min_size=2, max_size=4), st.sampled_from([None, 0.0, 0.02]), st.data())
def test_neither_names_nor_order_change_a_judgement(runs: list[list[int]], stderr: float | None, data: Any) -> None:
    names = ["MHA", *(f"L{i}" for i in range(len(runs) - 1))]
    order = data.draw(st.permutations(range(len(runs))))
    new_names = data.draw(st.lists(st.text("xyz", min_size=1, max_size=3), unique=True, min_size=3, max_size=3))
    called = {name: name if name == "MHA" else new_names[i - 1] for i, name in enumerate(names)}
    values = {
        name: {seed: 0.4 + run / 1000 for seed, run in enumerate(own)} for name, own in zip(names, runs, strict=True)
    }
    again = {called[names[i]]: dict(reversed(values[names[i]].items())) for i in order}

    def renamed(row: str) -> str:
        layout, *seed = row.split(" ", 1)
        return " ".join([called[layout], *seed])

    one, other = by_layout(seeded(values, stderr=stderr)), by_layout(seeded(again, stderr=stderr))
    first, second = (each.frame.set_index("variant") for each in (one, other))
    for column in JUDGED:
        assert column in first
        found = second[column].loc[[renamed(name) for name in first.index]]
        pd.testing.assert_series_equal(first[column], found.set_axis(first.index))
    assert one.statistics.hypervolume == pytest.approx(other.statistics.hypervolume)


def test_equal_rows_have_one_chance() -> None:
    values = {"MHA": [0.5, 0.6], "A": [0.4, 0.5], "B": [0.4, 0.5], "C": [0.4, 0.5]}
    pivot = by_layout(seeded({name: dict(enumerate(runs)) for name, runs in values.items()})).frame.set_index("variant")
    assert len(set(pivot.loc[["A", "B", "C"], "front_probability"])) == 1
    assert pivot.loc["A", "front_probability"] == pytest.approx(1 / 3, abs=0.02)


def test_few_seeds_make_a_front_less_sure_than_many() -> None:
    def chance(n: int) -> float:
        spread = np.linspace(-1, 1, n) / np.linspace(-1, 1, n).std(ddof=1) * 0.01 * n**0.5
        values = {"MHA": 0.52 + spread, "A": 0.50 + 0.0 * spread + spread, "B": 0.45 + spread}
        pivot = by_layout(seeded({name: dict(enumerate(own.tolist())) for name, own in values.items()}))
        return number(pivot.frame.set_index("variant"), "A", "front_probability")

    # A is 5 errors of 0.01 above B, each error known with 1 degree of freedom or with 19.
    assert chance(2) < 0.95 < chance(20)


def test_seeds_that_agree_to_the_last_digit_are_not_certain() -> None:
    table = seeded({"MHA": {1: 0.52, 2: 0.52}, "MLKV": {1: 0.50, 2: 0.50}}, stderr=0.02)
    pivot = by_layout(table).frame.set_index("variant")
    assert pivot.loc["MLKV", "accuracy_stderr"] == 0.02
    assert pivot.loc["MLKV", "accuracy_vs_mha_p"] == pytest.approx(2 * stats.norm.sf(0.02 / 0.02 / 2**0.5))
    unknown = by_layout(seeded({"MHA": {1: 0.52, 2: 0.52}, "MLKV": {1: 0.50, 2: 0.50}}, stderr=None)).frame
    assert unknown["accuracy_vs_mha_p"].isna().all()
    assert unknown["front_probability"].isna().all()


def test_rounding_is_no_spread() -> None:
    values = {"MHA": {1: 0.3, 2: 0.1 + 0.2}, "MLKV": {1: 0.28, 2: 0.28}}
    pivot = by_layout(seeded(values, stderr=0.02)).frame.set_index("variant")
    assert pivot.loc["MLKV", "accuracy_vs_mha_p"] == pytest.approx(2 * stats.norm.sf(0.02 / 0.02 / 2**0.5))
    assert pivot.loc["MHA", "accuracy_stderr"] == 0.02


def test_equal_scores_of_other_answers_count_all_of_them(filler: Filler, tmp_path: Path) -> None:
    """Both seeds of MLKV-6 have half of the samples right, but not the same half."""
    crowd = with_seeds(filler, tmp_path / "crowd", seeds=2)
    even = (np.arange(100) % 2 == 0).astype(float)
    right = (np.arange(100) < 70).astype(float)
    answered(crowd, {f"MHA-36 uptrain.seed={seed}": right for seed in (1, 2)})
    answered(crowd, {"MLKV-6 uptrain.seed=1": even, "MLKV-6 uptrain.seed=2": 1 - even})
    pivot = load(crowd.store, crowd.name).results.frame.set_index("variant")
    expected = stats.ttest_rel(np.full(100, 0.5), right)
    assert pivot.loc["MLKV-6", "accuracy_vs_mha_p"] == pytest.approx(expected.pvalue)


def single(rows: Sequence[tuple[str, float, float | None]]) -> Results:
    same = {"kind": "evaluate", "task": "t", "metric": "acc", "state": "DONE", "in_axis": True}
    return results(
        frame.make(
            {**same, "variant": name, "kv_bytes_per_token": 2**i, "value": value, "stderr": stderr}
            for i, (name, value, stderr) in enumerate(rows)
        )
    )


def test_without_every_error_no_chance_is_claimed() -> None:
    assert single([("A", 0.5, 0.01), ("B", 0.6, 0.01)]).frame["front_probability"].to_list() == [1.0, 1.0]
    for errors in ((0.01, None), (None, None), (0.0, 0.0)):
        pivot = single([("A", 0.5, errors[0]), ("B", 0.6, errors[1])])
        assert pivot.frame["front_probability"].isna().all()


def test_of_several_that_are_best_a_row_has_to_differ_from_each() -> None:
    for order in (1, -1):
        rows = [("sharp", 0.60, 0.001), ("blunt", 0.60, 0.2), ("C", 0.55, 0.01)][::order]
        tied = single(rows).frame.set_index("variant")["quality_tied"]
        assert tied.to_dict() == {"sharp": True, "blunt": True, "C": True}


def test_seeds_on_the_same_samples_keep_the_spread_between_them(filler: Filler, tmp_path: Path) -> None:
    """MLKV-6 is worse by as much on every sample of a run; the runs differ. Pairing alone would be certain."""
    crowd = with_seeds(filler, tmp_path / "crowd")
    base = np.zeros(200)
    base[::2] = 1.0
    shift = {1: 0.0, 2: -0.2, 3: -0.4}
    runs = {f"MHA-36 uptrain.seed={seed}": base + 0.01 * seed for seed in shift}
    runs |= {f"MLKV-6 uptrain.seed={seed}": base + by for seed, by in shift.items()}
    answered(crowd, runs)
    pivot = load(crowd.store, crowd.name).results.frame.set_index("variant")
    ours, theirs = ([runs[f"{name} uptrain.seed={seed}"].mean() for seed in shift] for name in ("MLKV-6", "MHA-36"))
    assert pivot.loc["MLKV-6", "accuracy_vs_mha_p"] == pytest.approx(
        stats.ttest_ind(ours, theirs, equal_var=False).pvalue
    )
    assert number(pivot, "MLKV-6", "accuracy_vs_mha_p") > 0.1


def test_a_cell_of_fewer_seeds_than_its_row_says_so(filler: Filler, tmp_path: Path) -> None:
    crowd = with_seeds(filler, tmp_path / "crowd")
    for i, variant in enumerate(crowd.variants):
        crowd.done(variant["steps"]["uptrain"], [{"metric": "loss", "value": 3.0 + i / 10, "stderr": None, "n": 50}])
    random = np.random.default_rng(0)
    names = [v["variant"] for v in crowd.variants if not v["variant"].endswith("=3")]
    answered(crowd, {name: random.integers(0, 2, 50).astype(float) for name in names})
    source = load(crowd.store, crowd.name)
    assert list(source.results.frame["seeds"]) == [2, 2]
    assert list(source.results.frame["uptrain.loss_seeds"]) == [3, 3]
    from analysis.tables.paper import make_tables

    sheet = make_tables(source, ["losses"])["losses"]
    texts = [cell.text for cell in sheet.rows[1]]
    assert texts[0] == "MLKV-6 (n=2 of 3)"
    assert any(text.startswith("3.400 ±") and text.endswith("(n=3)") for text in texts)


def test_a_variant_of_two_sweeps_is_refused() -> None:
    """One of them would be compared with the other's baseline."""
    one, two = seeded({"MHA": {0: 0.5}, "A": {0: 0.4}}), seeded({"MHA": {0: 0.9}, "B": {0: 0.8}})
    both = pd.concat([one.assign(sweep="one"), two.assign(sweep="two")])
    for pivot in (results, by_layout):
        with pytest.raises(ValueError, match=r"variant = MHA uptrain.seed=0: is in one and two"):
            pivot(both)


def test_two_values_of_one_cell_are_refused_and_equal_ones_are_one() -> None:
    table = seeded({"MHA": {0: 0.5}, "A": {0: 0.4}})
    twice = pd.concat([table, table])
    pd.testing.assert_frame_equal(results(twice).frame, results(table).frame)
    for order in ([twice, table.assign(value=0.7)], [table.assign(value=0.7), twice]):
        with pytest.raises(ValueError, match=r"evaluate t acc is (0.5 and 0.7|0.7 and 0.5)"):
            by_layout(pd.concat(order))
