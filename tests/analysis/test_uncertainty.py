"""What is said of differences: from samples where they are kept, from several seeds, and from standard errors alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from analysis.data.gather import gather
from analysis.data.replicates import groups
from analysis.statistics.results import by_layout, results
from analysis.statistics.sources import load
from sweeps.store.schema import VariantRow
from tests.support.filler import Few, Filler
from tests.support.read_back import number, present
from tests.support.records import save_sweep, some_variant
from tests.support.seeded import TASK, answered, seeded

UNITS = 400


def sampled(few: Few, right: dict[str, NDArray[np.float64]], units: dict[str, NDArray[np.int64]] | None = None) -> Any:
    """A store whose variants answered the samples of one task as given; the axis is that task alone."""
    filler = few(right)
    plan = {**filler.plan, "accuracy": [[TASK, "acc"]], "axis": None}
    save_sweep(filler.store, filler.name, plan, filler.variants)
    for label, answers in right.items():
        answered(filler, {label: answers}, (units or {}).get(label))
    return filler


def pivot_of(filler: Filler) -> pd.DataFrame:
    return load(filler.store, filler.name).results.frame.set_index("variant")


@pytest.fixture
def answers() -> dict[str, NDArray[np.float64]]:
    """MQA-6 errs where MHA-36 errs and on 12 samples more; MLKV-6 is as good as MQA-6 but for 2 samples."""
    hardness = np.random.default_rng(0).permutation(UNITS) / UNITS
    return {
        name: (hardness < share).astype(float) for name, share in (("MHA-36", 0.5), ("MQA-6", 0.47), ("MLKV-6", 0.465))
    }


def test_on_the_same_samples_small_differences_show(few: Few, answers: dict[str, NDArray[np.float64]]) -> None:
    filler = sampled(few, answers)
    paired, apart = pivot_of(filler), results(gather(filler.store, filler.name)).frame.set_index("variant")
    assert number(paired, "MQA-6", "accuracy_vs_mha_p") < 0.01
    assert number(paired, "MQA-6", "accuracy_vs_mha_high") < 0
    assert number(apart, "MQA-6", "accuracy_vs_mha_p") > 0.3
    assert paired.loc["MLKV-6", "accuracy_tied"]
    assert load(filler.store, filler.name).results.statistics.paired


def test_other_samples_are_not_paired(few: Few, answers: dict[str, NDArray[np.float64]]) -> None:
    other = {"MHA-36": np.arange(UNITS) + 10_000}
    pivot = pivot_of(sampled(few, answers, other))
    assert number(pivot, "MQA-6", "accuracy_vs_mha_p") > 0.3


def test_intervals_hold_the_value_and_the_front_is_sure_of_what_is_far_apart(finished: Filler) -> None:
    pivot = load(finished.store, finished.name).results.frame.set_index("variant")
    assert (pivot["quality_low"] < pivot["quality"]).all()
    assert (pivot["quality_high"] > pivot["quality"]).all()
    width = (pivot["quality_high"] - pivot["quality_low"]) / pivot["quality_stderr"]
    assert width.to_numpy(float) == pytest.approx(np.full(len(width), 2 * 1.96), rel=0.06)
    assert pivot["front_probability"].isna().to_list() == [name == "untouched" for name in pivot.index]
    assert pivot.loc["MLKV-1", "front_probability"] == 1.0
    assert number(pivot, "MLKV-12", "front_probability") < 0.01  # GQA-12 has as many bytes and is better by 5 errors
    assert number(pivot, "MQA-6", "front_probability") > 0.99


def test_the_hypervolume_lies_in_its_interval(finished: Filler) -> None:
    value, low, high = present(load(finished.store, finished.name).results.statistics.hypervolume)
    assert low < value < high
    assert high - low < 0.25 * value


def test_what_all_share_is_no_noise_of_the_hypervolume(few: Few, answers: dict[str, NDArray[np.float64]]) -> None:
    filler = sampled(few, answers)
    apart = present(results(gather(filler.store, filler.name)).statistics.hypervolume)
    value, low, high = present(load(filler.store, filler.name).results.statistics.hypervolume)
    assert low < value < high
    assert high - low < (apart[2] - apart[1]) / 2


def test_the_order_of_the_variants_changes_no_judgement(finished: Filler) -> None:
    table = gather(finished.store, finished.name)
    backwards = pd.concat([rows for _, rows in sorted(table.groupby("variant"), reverse=True)], ignore_index=True)
    ours, theirs = (results(one).frame.set_index("variant").sort_index() for one in (table, backwards))
    for column in ("quality_low", "accuracy_high", "front_probability", "accuracy_vs_mha_p", "quality_tied"):
        pd.testing.assert_series_equal(ours[column], theirs[column])


def test_a_tie_is_never_a_lone_win(finished: Filler) -> None:
    pivot = results(gather(finished.store, finished.name)).frame.set_index("variant")
    assert pivot["quality_tied"].dropna().sum() == 1  # bits per byte has small errors
    assert pivot["cloze.acc_tied"].dropna().all()  # 8.5 ± 1.8 everywhere


def test_seeds_of_a_layout_are_one_row_with_students_interval() -> None:
    table = seeded({"MHA": {1: 0.50, 2: 0.54, 3: 0.52}, "MLKV": {1: 0.40, 2: 0.44, 3: 0.42}})
    pivot = by_layout(table).frame.set_index("variant")
    assert list(pivot.index) == ["MHA", "MLKV"]
    assert pivot.loc["MLKV", "accuracy"] == pytest.approx(0.42)
    assert pivot.loc["MLKV", "accuracy_stderr"] == pytest.approx(0.02 / 3**0.5)
    assert number(pivot, "MLKV", "accuracy_high") - 0.42 == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-3)
    assert pivot.loc["MLKV", "accuracy_vs_mha"] == pytest.approx(-0.10)
    assert list(pivot["seeds"]) == [3, 3]
    assert len(results(table).frame) == 6


def test_two_noisy_seeds_prove_nothing() -> None:
    pivot = by_layout(seeded({"MHA": {1: 0.50, 2: 0.56}, "MLKV": {1: 0.49, 2: 0.55}})).frame.set_index("variant")
    assert number(pivot, "MLKV", "accuracy_vs_mha_p") > 0.3


def test_a_seed_that_runs_is_counted_and_told() -> None:
    pivot = by_layout(seeded({"MHA": {1: 0.5, 2: 0.5}, "MLKV": {1: 0.4, 2: None}})).frame.set_index("variant")
    assert (pivot.loc["MLKV", "seeds"], pivot.loc["MLKV", "seeds_planned"]) == (1, 2)
    assert pivot.loc["MLKV", "accuracy"] == pytest.approx(0.4)
    assert pivot.loc["MLKV", "state"] == "RUNNING"


def test_what_differs_in_more_than_seeds_is_no_repetition() -> None:
    def variant(name: str, heads: int, **overrides: str) -> VariantRow:
        layout = {"kv_source_layers": [0, 0], "kv_heads": [heads], "heads": 2}
        return some_variant(variant=name, layout=layout, overrides=overrides)

    found = groups(
        [
            variant("A uptrain.seed=1 uptrain.lr=1", 1, **{"uptrain.seed": "1", "uptrain.lr": "1"}),
            variant("A uptrain.seed=2 uptrain.lr=1", 1, **{"uptrain.seed": "2", "uptrain.lr": "1"}),
            variant("A uptrain.seed=1 uptrain.lr=2", 1, **{"uptrain.seed": "1", "uptrain.lr": "2"}),
            variant("B uptrain.seed=1 uptrain.lr=1", 2, **{"uptrain.seed": "1", "uptrain.lr": "1"}),
        ]
    )
    assert found == {f"A uptrain.seed={seed} uptrain.lr=1": "A uptrain.lr=1" for seed in (1, 2)}


def test_variants_whose_seeds_are_the_same_are_no_repetitions() -> None:
    """What tells them apart is not among their overrides; they are not one another's noise."""
    twins = [some_variant(variant=name, overrides={"lr": 1}) for name in ("A x", "A y")]
    assert groups(twins) == {}


@pytest.mark.parametrize("states", [("RUNNING", "FAILED"), ("FAILED", "PENDING"), ("DONE", "FAILED")])
def test_a_row_is_in_the_state_of_its_worst_seed(states: tuple[str, str]) -> None:
    table = seeded({"MHA": {1: 0.5, 2: 0.5}, "MLKV": {1: None, 2: None}})
    for seed, state in enumerate(states, 1):
        own = table["variant"] == f"MLKV uptrain.seed={seed}"
        table.loc[own, ["state", "reason"]] = [state, None if state == "DONE" else f"reason of {state}"]
    row = by_layout(table).frame.set_index("variant").loc["MLKV"]
    assert row["state"] == "FAILED"
    assert "reason of FAILED" in row["reason"]
