"""The mean of imported scores: it never has other members than its heading says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.data import frame
from analysis.data.importer import import_results, read_directory
from analysis.data.published import published
from analysis.statistics.results import results
from analysis.tables import results_table
from analysis.tables.merge_published import IS_PUBLISHED, merge_published
from mlkv.files import Json
from tests.support.lm_eval_files import GSM8K, MEMBERS, MMLU, content, few_examples, means, write
from tests.support.shell import exit_status


def test_a_variant_that_lacks_a_task_has_no_mean(tmp_path: Path) -> None:
    one = content({"arc_easy": 0.8, "piqa": 0.6}, "pretrained=whole")
    found = read_directory(write(tmp_path, one, content({"arc_easy": 0.8}, "pretrained=part")))
    assert means(found) == {"whole": pytest.approx(0.7), "part": None}
    pivot = results(found.table).frame.set_index("variant")
    assert pivot.loc["part", "accuracy_missing"] == "no result of piqa.acc"
    assert "no mean of part: no result of piqa.acc" in found.notes
    assert found.averaged == ["arc_easy.acc", "piqa.acc"]
    sheet = results_table.results_table(results(found.table))
    assert "mean of 2 ↑" in sheet.headers


def group(**more: Any) -> Json:
    """A group's entry without a score."""
    return {"alias": "mmlu", " ": " ", "sample_len": 14042, **more}


@pytest.mark.parametrize(
    "found",
    [
        content(MMLU, group_subtasks=MEMBERS),
        content({**MMLU, "mmlu": group(name="mmlu")}, group_subtasks=MEMBERS),
        content({task: value for task, value in MMLU.items() if task != "mmlu"}, group_subtasks=MEMBERS),
        content({task: value for task, value in MMLU.items() if task != "mmlu"}, group_subtasks=MEMBERS)
        | {"groups": {"mmlu": {"acc,none": 0.3}}},
        content(
            {**MMLU, "mmlu_a": {"alias": " - a", "acc,none": 0.2}, "mmlu_b": {"alias": " - b", "acc,none": 0.4}},
            groups={"mmlu": {"acc,none": 0.3}},
        ),
        content({**MMLU, "mmlu_s": 0.3}, group_subtasks={"mmlu": ["mmlu_s"], "mmlu_s": ["mmlu_a", "mmlu_b"]}),
        content(
            {**MMLU, "mmlu": group(), "mmlu_s": group()},
            group_subtasks={"mmlu": ["mmlu_s"], "mmlu_s": ["mmlu_a", "mmlu_b"]},
        ),
    ],
    ids=["aggregate", "empty entry", "no entry", "in groups", "indented", "nested", "nested, empty"],
)
def test_a_group_counts_once(found: Json, tmp_path: Path) -> None:
    imported = read_directory(write(tmp_path, found))
    assert means(imported) == {"llama": pytest.approx(0.55)}
    assert imported.averaged == ["arc.acc", "mmlu.acc"]
    assert not (imported.table["metric"] == "sample_len").any()


def test_a_group_that_lacks_a_member_has_no_mean(tmp_path: Path) -> None:
    scores = {"mmlu_a": 0.2, "arc": 0.8}
    found = read_directory(write(tmp_path, content(scores, group_subtasks=MEMBERS)))
    assert means(found) == {"llama": None}
    assert "no mean of llama: mmlu.acc (0/results.json): its member mmlu_b has no value" in found.notes


def test_what_all_variants_have_is_named_where_a_mean_is_missing(tmp_path: Path) -> None:
    """Also where it is the member of a group that only some ran."""
    scores = {"arc_easy": 0.5, "piqa": 0.6}
    suite = content(scores, "pretrained=one", group_subtasks={"suite": ["arc_easy", "piqa"]})
    found = read_directory(write(tmp_path, suite, content(scores, "pretrained=other")))
    assert found.averaged == ["suite.acc"]
    assert "all variants have: --accuracy arc_easy.acc piqa.acc" in found.notes


def test_a_group_is_a_group_in_every_file_of_the_import(tmp_path: Path) -> None:
    """The members alone are not what the heading says."""
    alone = content({"mmlu_a": 0.2, "mmlu_b": 0.4, "arc": 0.8}, "pretrained=other")
    found = read_directory(write(tmp_path, content(MMLU, group_subtasks=MEMBERS), alone))
    assert means(found) == {"llama": pytest.approx(0.55), "other": None}


@few_examples
@given(
    st.lists(st.dictionaries(st.sampled_from("abcde"), st.sampled_from([0.25, 0.5, math.nan]), min_size=1), min_size=1)
)
def test_a_mean_never_has_fewer_members_than_its_heading(
    tmp_path_factory: pytest.TempPathFactory, runs: list[dict[str, float]]
) -> None:
    directory = tmp_path_factory.mktemp("means")
    found = read_directory(write(directory, *(content(run, f"pretrained=m{i}") for i, run in enumerate(runs))))
    pivot = results(found.table).frame.set_index("variant")
    heading = sorted({task for run in runs for task in run})
    assert found.averaged == [f"{task}.acc" for task in heading]
    for i, run in enumerate(runs):
        members = [run.get(task, math.nan) for task in heading]
        mean = math.fsum(members) / len(members)
        ours = pivot.loc[f"m{i}", "accuracy"]
        assert ours is pd.NA if math.isnan(mean) else ours == pytest.approx(mean)
    assert pivot["accuracy_parts"].nunique() == 1


def test_a_table_with_a_row_too_few_has_no_mean_either() -> None:
    """Whoever made the table."""
    cell = {"kind": "evaluate", "metric": "acc", "state": "DONE", "in_axis": False, "in_accuracy": True, "value": 0.5}
    rows = [("a", "x"), ("b", "x"), ("b", "y")]
    pivot = results(frame.make({**cell, "variant": variant, "task": task} for variant, task in rows))
    assert frame.records(pivot.frame[["accuracy", "accuracy_parts", "accuracy_missing"]]) == [
        {"accuracy": None, "accuracy_parts": "x.acc y.acc", "accuracy_missing": "no y.acc"},
        {"accuracy": 0.5, "accuracy_parts": "x.acc y.acc", "accuracy_missing": None},
    ]


def test_a_variant_without_the_main_axis_has_no_accuracy_under_its_heading() -> None:
    cell = {"kind": "evaluate", "metric": "acc", "state": "DONE", "in_axis": False, "in_accuracy": True, "value": 0.5}
    axis = {**cell, "variant": "a", "task": "bits", "metric": "loss", "in_axis": True, "in_accuracy": False}
    pivot = results(frame.make([axis, *({**cell, "variant": name, "task": "x"} for name in "ab")]))
    assert frame.records(pivot.frame[["quality_score", "quality", "quality_missing"]]) == [
        {"quality_score": "bits.loss", "quality": 0.5, "quality_missing": None},
        {"quality_score": "bits.loss", "quality": None, "quality_missing": "no bits.loss"},
    ]


def test_a_tasks_own_accuracy_is_no_mean(tmp_path: Path) -> None:
    found = content({"arc_easy": 0.5, "mine": {"accuracy,none": 0.9}})
    assert means(read_directory(write(tmp_path, found))) == {"llama": 0.5}


def test_the_papers_four_are_averaged_where_they_are_all_there(tmp_path: Path) -> None:
    four = {"arc_easy": 0.1, "lambada_openai": 0.2, "piqa": 0.3, "sciq": 0.4}
    lacking = content({"arc_easy": 0.1, "boolq": 0.9}, "pretrained=part")
    found = read_directory(write(tmp_path, content({**four, "boolq": 0.9}, "pretrained=whole"), lacking))
    assert means(found) == {"whole": pytest.approx(0.25), "part": None}


def test_a_mean_of_the_same_scores_stands_beside_the_published_one_in_any_order(tmp_path: Path) -> None:
    four = {"sciq": 0.4, "piqa": 0.3, "lambada_openai": 0.2, "arc_easy": 0.1}
    ours = results(import_results(write(tmp_path, content(four))))
    theirs = [row for row in merge_published(ours, results(published("mlkv"))) if row[IS_PUBLISHED]]
    assert {row["accuracy"] for row in theirs} == set(results(published("mlkv")).frame["accuracy"])


@pytest.mark.parametrize(
    ("pair", "mean"),
    [
        (("gsm8k", "exact_match,strict-match"), 0.2),
        (("gsm8k", "exact_match,flexible-extract"), 0.3),
        (("bbh", "exact_match"), 0.6),
        (("arc_easy", "acc"), 0.5),
        (("arc_easy", "acc,none"), 0.5),
    ],
)
def test_what_is_averaged_can_be_chosen(pair: tuple[str, str], mean: float, tmp_path: Path) -> None:
    found = content({"arc_easy": 0.5, "gsm8k": GSM8K, "bbh": {"exact_match,get-answer": 0.6}})
    assert means(read_directory(write(tmp_path, found), "x", [pair, pair])) == {"llama": pytest.approx(mean)}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (("arc_easy", "accc"), "no such score; did you mean arc_easy.acc.*; there: arc_easy.acc, gsm8k.exact_match"),
        (("gsm8k", "exact_match"), "several scores?; there: gsm8k.exact_match,flexible-extract, gsm8k.exact_match,str"),
        (("lambada", "perplexity"), "is better when lower"),
    ],
)
def test_a_choice_that_matches_nothing_lists_what_there_is(word: tuple[str, str], message: str, tmp_path: Path) -> None:
    found = content({"arc_easy": 0.5, "gsm8k": GSM8K, "lambada": {"perplexity,none": 5.0}})
    with pytest.raises(ValueError, match=f"accuracy = {'.'.join(word)}: {message}"):
        read_directory(write(tmp_path, found), "x", [("arc_easy", "acc"), word])


def test_without_any_acc_it_is_said_what_could_be_averaged(tmp_path: Path) -> None:
    found = read_directory(write(tmp_path, content({"gsm8k": GSM8K})))
    assert found.averaged == []
    assert found.notes[0].startswith("no mean: no task has acc; --accuracy chooses among gsm8k.exact_match,flexible")


def test_scores_behind_a_filter_are_shown_as_what_they_are(tmp_path: Path) -> None:
    table = import_results(write(tmp_path, content({"gsm8k": GSM8K})), "x", [("gsm8k", "exact_match,strict-match")])
    sheet = results_table.results_table(results(table))
    column = sheet.headers.index("gsm8k exact match (strict-match) ↑")
    assert sheet.rows[0][column].text == "20.00 ± 2.00"


def test_the_command_says_what_is_averaged_and_what_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = content({"arc_easy": 0.8, "piqa": 0.6}, "pretrained=whole"), content({"arc_easy": 0.8}, "pretrained=part")
    write(tmp_path / "in", *parts)
    (tmp_path / "in" / "torn.json").write_text('{"results": {')
    line = ["import-results", str(tmp_path / "in"), "--name", "theirs", "--store", str(tmp_path / "store")]
    assert exit_status(*line) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:4] == [
        "theirs: 3 results of 2 variants; `mlkv table theirs` shows them",
        "mean of 2: arc_easy.acc, piqa.acc",
        "no mean of part: no result of piqa.acc",
        "all variants have: --accuracy arc_easy.acc",
    ]
    assert printed[4].startswith("layouts.csv: not there")
    assert printed[5].startswith("skipped torn.json: is not JSON")
    assert exit_status(*line, "--accuracy", "arc_easy.accc") == 2
    refused = capsys.readouterr().err
    assert "there: arc_easy.acc, piqa.acc" in refused
    assert "Traceback" not in refused
    assert exit_status("table", "theirs", "benchmarks", "--store", str(tmp_path / "store")) == 0
    shown = capsys.readouterr().out
    assert "70.00" in shown
    assert "no result of piqa.acc: part" in shown


def test_a_score_says_how_many_examples_it_had_where_its_file_does(tmp_path: Path) -> None:
    """The mean of a group has the number that its tasks share."""
    own = {task: value for task, value in MMLU.items() if task != "mmlu"}
    shots = {"mmlu_a": 5, "mmlu_b": 5, "arc": 25}
    one, other = content(own, "pretrained=one", shots, group_subtasks=MEMBERS), content({"arc": 0.5}, "pretrained=two")
    del other["n-shot"]
    table = read_directory(write(tmp_path, one, other)).table
    found = {(row["variant"], row["task"]): row["n_shot"] for row in frame.records(table) if row["value"] is not None}
    assert found == {
        ("one", "mmlu_a"): 5,
        ("one", "mmlu_b"): 5,
        ("one", "mmlu"): 5,
        ("one", "arc"): 25,
        ("two", "arc"): None,
    }
    assert set(results(table).frame["mmlu.n_shot"].dropna()) == {5}


def test_groups_of_tasks_with_different_examples_have_no_number(tmp_path: Path) -> None:
    own = {task: value for task, value in MMLU.items() if task != "mmlu"}
    table = read_directory(
        write(tmp_path, content(own, shots={"mmlu_a": 0, "mmlu_b": 5}, group_subtasks=MEMBERS))
    ).table
    assert table[table["task"] == "mmlu"]["n_shot"].isna().all()
