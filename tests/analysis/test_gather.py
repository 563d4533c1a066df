from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.data import frame
from analysis.data.gather import gather
from analysis.statistics.results import results
from sweeps.store.schema import VariantRow
from sweeps.store.store import StoreError
from tests.support.filler import ACCURACY, Filler
from tests.support.read_back import number, present
from tests.support.records import save_sweep, some_variant


def cells(table: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


def test_the_schema_is_the_same_with_and_without_rows(finished: Filler) -> None:
    full = gather(finished.store, finished.name)
    assert {name: str(dtype) for name, dtype in full.dtypes.items()} == frame.COLUMNS
    empty = frame.make([])
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    assert empty.empty


def test_every_planned_task_has_a_row_before_anything_has_run(filler: Filler) -> None:
    table = gather(filler.store, filler.name)
    for variant in filler.variants:
        rows = cells(table, variant=variant["variant"])
        assert set(rows["step"]) == {step for step in flat(variant["steps"].values()) if step}
        assert set(rows["task"].dropna()) == set(variant["steps"]["evaluate"])
    assert table["value"].isna().all()
    assert set(table["state"]) == {"PENDING"}


def flat(values: Any) -> list[str]:
    return [step for value in values for step in (value.values() if isinstance(value, dict) else [value])]


def test_values_are_those_of_the_records(finished: Filler) -> None:
    table = gather(finished.store, finished.name)
    for row in frame.records(table):
        if row["value"] is None:
            continue
        metrics = present(finished.store.step(row["step"]).record()).metrics
        place = (row["metric"], row["batch"], row["context"])
        (same,) = [each for each in metrics if (each.metric, each.batch, each.context) == place]
        assert (row["value"], row["stderr"], row["n"]) == (same.value, same.stderr, same.n)
    assert cells(table, kind="evaluate")["value"].notna().all()


def test_setting_one_record_aside_empties_exactly_its_cells(filler: Filler) -> None:
    filler.everything()
    before = gather(filler.store, filler.name)
    for victim in ("MQA-6", "MLKV-2"):
        step = filler.variant(victim)["steps"]["evaluate"]["two_way"]
        filler.store.step(step).set_aside("a test")
        after = gather(filler.store, filler.name)
        changed = before["value"].fillna(-1) != after["value"].fillna(-1)
        assert set(before[changed]["step"]) == {step}
        assert after[after["step"] == step]["value"].isna().all()
        assert set(after[after["step"] == step]["state"]) == {"PENDING"}
        before = after


def test_every_score_says_how_many_examples_it_had(filler: Filler) -> None:
    [bits, task, *_] = filler.variants[0]["steps"]["evaluate"]
    for variant in filler.variants:
        variant["few_shot"] = {task: 5}
    save_sweep(filler.store, "shots", filler.plan, filler.variants)
    found = gather(filler.store, "shots")
    assert set(cells(found, task=task)["n_shot"]) == {5}
    assert cells(found, task=bits)["n_shot"].isna().all(), "it has no questions"
    assert set(results(found).frame[f"{task}.n_shot"]) == {5}
    assert set(cells(gather(filler.store, "demo"), task=task)["n_shot"]) == {2}, "a plan of before: one for all"


def test_a_failed_step_blocks_its_children_and_no_one_else(filler: Filler) -> None:
    filler.shared()
    own = filler.variant("MLKV-6")["steps"]
    filler.fail(own["convert"], "kv_heads = 4 at layer 0")
    table = gather(filler.store, filler.name)
    rows = cells(table, variant="MLKV-6")
    assert set(rows[rows["step"] == own["convert"]]["state"]) == {"FAILED"}
    blocked = cells(rows, state="BLOCKED")
    assert set(blocked["step"]) == {own["uptrain"], *own["evaluate"].values()}
    assert set(blocked["reason"]) == {f"by {own['convert']} (kv_heads = 4 at layer 0)"}
    assert rows[~rows["kind"].isin(["corpus", "base"])]["value"].isna().all()
    assert "BLOCKED" not in set(cells(table, variant="MLKV-3")["state"])


def test_a_running_step_tells_how_far_it_is(filler: Filler) -> None:
    filler.shared()
    own = filler.variant("MLKV-3")["steps"]
    filler.done(own["convert"], [])
    claim = present(filler.store.step(own["uptrain"]).claim())
    claim.attempt.metrics_file.write_text('{"step": 20, "steps": 50, "loss": 4.3}\n')
    table = gather(filler.store, filler.name)
    row = table[table["step"] == own["uptrain"]].iloc[0]
    assert (row["state"], row["reason"], row["value"]) == ("RUNNING", "step 20 of 50", pd.NA)
    waiting = table[table["step"] == own["evaluate"]["cloze"]].iloc[0]
    assert (waiting["state"], waiting["reason"]) == ("PENDING", "waits for uptrain (running)")


def test_a_recorded_failure_to_measure_is_no_number(filler: Filler) -> None:
    step = filler.variant("MHA-36")["steps"]["measure"]
    filler.done(
        step, [{"metric": "peak_bytes", "value": None, "stderr": None, "n": None, "batch": 512, "context": 256}]
    )
    row = gather(filler.store, filler.name).query("step == @step").iloc[0]
    assert row["value"] is pd.NA
    assert row["reason"] == "its step recorded no value"


def test_not_a_number_never_becomes_a_score() -> None:
    table = frame.make([{"variant": "a", "value": float("nan")}, {"variant": "b", "value": float("inf")}])
    assert table["value"].isna().all()


def test_an_unknown_sweep_lists_those_there_are(finished: Filler) -> None:
    with pytest.raises(StoreError, match="demo"):
        gather(finished.store, "typo")


def test_accuracy_is_the_mean_of_its_parts_with_the_pooled_error(finished: Filler) -> None:
    pivot = results(gather(finished.store, finished.name)).frame.set_index("variant")
    parts = pivot.loc["MLKV-3", ["cloze.acc", "four_way.acc", "two_way.acc"]]
    errors = [number(pivot, "MLKV-3", f"{task}.acc_stderr") for task in ("cloze", "four_way", "two_way")]
    assert pivot.loc["MLKV-3", "accuracy"] == pytest.approx((0.087 + 0.413 + 0.660) / 3)
    assert pivot.loc["MLKV-3", "accuracy"] == pytest.approx(parts.mean())
    assert pivot.loc["MLKV-3", "accuracy_stderr"] == pytest.approx(sum(e**2 for e in errors) ** 0.5 / 3)


def test_accuracy_with_a_part_missing_is_empty_and_says_why(filler: Filler) -> None:
    filler.shared()
    filler.train("GQA-12")
    for task in ("bits_per_byte", "cloze", "four_way"):
        filler.evaluate("GQA-12", task)
    filler.fail(filler.variant("GQA-12")["steps"]["evaluate"]["two_way"], "out of memory")
    row = results(gather(filler.store, filler.name)).frame.set_index("variant").loc["GQA-12"]
    assert row["accuracy"] is pd.NA
    assert row["accuracy_stderr"] is pd.NA
    assert row["accuracy_missing"] == "FAILED: out of memory"
    assert row["quality"] == 2.245
    assert row["quality_missing"] is pd.NA
    assert row["state"] == "FAILED"


def test_drops_are_from_the_variants_own_baselines(finished: Filler) -> None:
    row = results(gather(finished.store, finished.name)).frame.set_index("variant").loc["MLKV-1"]
    assert row["quality_vs_untouched"] == pytest.approx(2.404 - 2.201)
    assert row["quality_vs_mha"] == pytest.approx(2.404 - 2.206)


def test_two_learning_rates_are_each_compared_with_their_own_baseline() -> None:
    from analysis.data.gather import _own_baseline

    def variant(name: str, lr: str, base: str = "base-1") -> VariantRow:
        steps = {"corpus": "corpus-1", "base": base}
        return some_variant(variant=name, overrides={"uptrain.lr": lr}, steps=steps)

    slow, fast = variant("MHA slow", "1e-4"), variant("MHA fast", "1e-3")
    assert _own_baseline(variant("MLKV-6", "1e-3"), [slow, fast]) == "MHA fast"
    assert _own_baseline(variant("MLKV-6", "1e-4"), [slow, fast]) == "MHA slow"
    assert _own_baseline(variant("MLKV-6", "1e-4"), [variant("MHA slow", "1e-4", "base-2")]) is None


def test_a_score_that_no_step_evaluates_is_named_as_unplanned(filler: Filler) -> None:
    plan = {**filler.plan, "accuracy": [*ACCURACY, ["piqa", "acc"]]}
    save_sweep(filler.store, "wider", plan, filler.variants)
    pivot = results(gather(filler.store, "wider")).frame.set_index("variant")
    assert pivot.loc["MLKV-1", "piqa.acc_missing"] == "UNPLANNED: no step evaluates it"


def test_a_metric_that_its_task_did_not_record_is_missed_with_what_there_is(filler: Filler) -> None:
    filler.everything()
    plan = {**filler.plan, "accuracy": [["cloze", "acc_norm"], ["two_way", "acc"]]}
    save_sweep(filler.store, "other", plan, filler.variants)
    pivot = results(gather(filler.store, "other"))
    assert pivot.frame["accuracy"].isna().all()
    assert set(pivot.frame["accuracy_missing"]) == {"not in its record (there: acc)"}


def test_measured_bytes_stand_beside_the_formulas(filler: Filler) -> None:
    filler.measure("MLKV-3")
    filler.measure("MHA-36", batches=(), failed=(8, 64))
    filler.fail(filler.variant("MQA-6")["steps"]["measure"], "no such device")
    pivot = results(gather(filler.store, filler.name)).frame.set_index("variant")
    row = pivot.loc["MLKV-3"]
    assert row["measured_bytes_per_token"] == row["kv_bytes_per_token"] == 384
    missing = pivot["measured_bytes_per_token_missing"]
    assert missing["MHA-36"] == "OUT OF MEMORY in every cell"
    assert missing["MQA-6"] == "FAILED: no such device"
    assert missing["MLKV-1"] == "PENDING"


def test_a_table_survives_its_csv_to_the_last_bit(filler: Filler, tmp_path: Path) -> None:
    filler.shared()
    filler.train("MQA-6")
    filler.evaluate("MQA-6", "cloze")
    filler.fail(filler.variant("MLKV-6")["steps"]["convert"], 'commas, "quotes"')
    table = gather(filler.store, filler.name)
    (tmp_path / "t.csv").write_text(frame.write_csv(table), encoding="utf-8")
    pd.testing.assert_frame_equal(frame.read_csv(tmp_path / "t.csv"), table, check_exact=True)


def member(name: str, value: float | None, n: int | None = 100) -> dict[str, Any]:
    stderr = None if value is None else 0.03
    return {"metric": "acc", "value": value, "stderr": stderr, "n": n, "subtask": name}


def test_a_group_without_an_aggregate_counts_as_the_mean_of_its_members(filler: Filler) -> None:
    """As for imported results; a group in the group has no samples of its own, and its tasks are counted already."""
    members = [member("suite_a", 0.2), member("suite_b", 0.6), member("suite_inner", 0.9, n=None)]
    filler.done(filler.variant("MQA-6")["steps"]["evaluate"]["cloze"], members)
    table = gather(filler.store, filler.name)
    row = cells(table, variant="MQA-6", task="cloze").iloc[0]
    assert (row["metric"], row["value"], row["n"]) == ("acc", pytest.approx(0.4), 200)
    assert row["stderr"] == pytest.approx(0.03 / 2**0.5)
    assert row["reason"] == "mean of its 2 members"
    assert row["in_accuracy"]
    assert results(table).frame.set_index("variant").loc["MQA-6", "cloze.acc"] == pytest.approx(0.4)


def test_a_group_with_a_member_without_a_value_stays_empty_and_names_it(filler: Filler) -> None:
    filler.done(
        filler.variant("MQA-6")["steps"]["evaluate"]["cloze"], [member("suite_a", 0.2), member("suite_b", None)]
    )
    row = cells(gather(filler.store, filler.name), variant="MQA-6", task="cloze").iloc[0]
    assert row["value"] is pd.NA
    assert row["reason"] == "its member suite_b has no acc"


def test_a_row_says_what_its_variant_was_trained_with(finished: Filler) -> None:
    rows = frame.records(gather(finished.store, finished.name))
    row = next(row for row in rows if row["variant"] == "MLKV-3")
    assert (row["lr"], row["seed"], row["overrides"]) == (1e-3, 42, "layout.budget=3")
    assert row["sources"] == "0 0 2 2 4 4"
    untouched = next(row for row in rows if row["variant"] == "untouched")
    assert (untouched["lr"], untouched["seed"]) == (None, None)
