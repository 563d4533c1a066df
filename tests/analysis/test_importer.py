"""What others measured, taken in: no two runs become one, and no mean has other members than its heading says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.data import frame
from analysis.data.identity import labels, short_names
from analysis.data.importer import Import, import_results, read_directory
from analysis.data.published import published
from analysis.statistics.results import results
from analysis.statistics.sources import Source, published_source
from analysis.tables import beside, results_table
from analysis.tables.paper import paper_sheets
from sweeps.cli import main

Json = dict[str, Any]
several = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def content(
    scores: Mapping[str, float | Mapping[str, Any]],
    args: str | Mapping[str, Any] = "pretrained=me/llama",
    shots: int | Mapping[str, int] = 0,
    version: float = 1.0,
    config: Mapping[str, Any] | None = None,
    **more: Any,
) -> Json:
    """A result file as lm-eval 0.4 writes it; a number is a task's acc."""
    return {
        "results": {
            task: {"alias": task, "acc,none": found, "acc_stderr,none": 0.01} if isinstance(found, float) else found
            for task, found in scores.items()
        },
        "versions": dict.fromkeys(scores, version),
        "n-shot": dict.fromkeys(scores, shots) if isinstance(shots, int) else dict(shots),
        "config": {"model": "hf", "model_args": args, "limit": None, "batch_size": 8, **(config or {})},
        **more,
    }


def write(directory: Path, *contents: Json) -> Path:
    """Each in a file `I/results.json` of its own."""
    for i, found in enumerate(contents):
        path = directory / str(i) / "results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return directory


def scores_of(table: pd.DataFrame, score: str = "arc_easy.acc") -> dict[str, float]:
    task, _, metric = score.partition(".")
    cells = table[(table["task"] == task) & (table["metric"] == metric)]
    return dict(zip(cells["variant"], cells["value"], strict=True))


def means(found: Import) -> dict[str, float | None]:
    pivot = results(found.table)
    return {row["variant"]: row["accuracy"] for row in pivot.rows()}


# Identity


@pytest.mark.parametrize(
    ("one", "other", "called"),
    [
        (
            {"args": "pretrained=runs/gqa/checkpoint-1000"},
            {"args": "pretrained=runs/mqa/checkpoint-1000"},
            ["gqa/checkpoint-1000", "mqa/checkpoint-1000"],
        ),
        (
            {"args": "pretrained=me/llama,revision=step1000"},
            {"args": "pretrained=me/llama,revision=step3000"},
            ["llama revision=step1000", "llama revision=step3000"],
        ),
        ({}, {"args": "pretrained=me/llama,load_in_4bit=True"}, ["llama", "llama load_in_4bit=True"]),
        (
            {"args": {"pretrained": "me/llama", "dtype": "float16"}},
            {"args": "pretrained=me/llama,dtype=float32"},
            ["llama dtype=float16", "llama dtype=float32"],
        ),
        ({}, {"args": "pretrained=me/llama,peft=me/lora"}, ["llama", "lora"]),
        (
            {"args": "pretrained=me/llama,peft=a/lora"},
            {"args": "pretrained=me/llama,peft=b/lora"},
            ["a/lora", "b/lora"],
        ),
        ({"shots": 0}, {"shots": 5}, ["llama n-shot=0", "llama n-shot=5"]),
        (
            {"shots": {}, "configs": {"arc_easy": {"num_fewshot": 0}}},
            {"shots": {}, "configs": {"arc_easy": {"num_fewshot": 5}}},
            ["llama n-shot=0", "llama n-shot=5"],
        ),
        ({"version": 1.0}, {"version": 2.0}, ["llama version=1", "llama version=2"]),
        ({}, {"config": {"limit": 100}}, ["llama", "llama limit=100"]),
        ({"config": {"limit": 10.0}}, {"config": {"limit": 100.0}}, ["llama limit=10", "llama limit=100"]),
        (
            {"config": {"model_dtype": "torch.float16"}},
            {"config": {"model_dtype": "torch.bfloat16"}},
            ["llama model_dtype=torch.float16", "llama model_dtype=torch.bfloat16"],
        ),
        ({}, {"config": {"model": "vllm"}}, ["llama model=hf", "llama model=vllm"]),
        (
            {"config": {"fewshot_seed": 1}},
            {"config": {"fewshot_seed": 2}},
            ["llama fewshot_seed=1", "llama fewshot_seed=2"],
        ),
        ({}, {"fewshot_as_multiturn": True}, ["llama", "llama fewshot_as_multiturn=True"]),
        (
            {"n-samples": {"arc_easy": {"original": 9, "effective": 9}}},
            {"n-samples": {"arc_easy": {"original": 9, "effective": 5}}},
            ["llama samples=all", "llama samples=5"],
        ),
    ],
)
def test_runs_that_differ_in_anything_are_two_variants(
    one: Json, other: Json, called: list[str], tmp_path: Path
) -> None:
    write(tmp_path, content({"arc_easy": 0.5}, **one), content({"arc_easy": 0.6}, **other))
    assert scores_of(import_results(tmp_path)) == dict(zip(called, (0.5, 0.6), strict=True))


def test_files_that_name_no_model_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for folder, value in (("a", 0.5), ("b", 0.6)):
        (tmp_path / folder).mkdir()
        found = {"results": {"arc_easy": {"acc": value}}, "versions": {"arc_easy": 0}}
        (tmp_path / folder / "mine_results.json").write_text(json.dumps(found))
    assert scores_of(import_results(tmp_path)) == {"a/mine": 0.5, "b/mine": 0.6}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"args": {"pretrained": "me/llama"}},
        {"args": " pretrained=./me/llama/ ,"},
        {"config": {"batch_size": "auto", "device": "cuda:1"}},
        {"model_name": "me/llama"},
        {"n-samples": {"arc_easy": {"original": 9, "effective": 9}}},
        {"config": {"model_sha": "abc"}},
    ],
)
def test_equal_runs_merge(more: Json, tmp_path: Path) -> None:
    write(tmp_path, content({"arc_easy": 0.5}), content({"arc_easy": 0.5, "piqa": 0.6}, **more))
    table = import_results(tmp_path)
    assert scores_of(table) == {"llama": 0.5}
    assert scores_of(table, "piqa.acc") == {"llama": 0.6}


def test_two_values_of_one_score_are_refused_with_both_files(tmp_path: Path) -> None:
    write(tmp_path, content({"arc_easy": 0.5}), content({"arc_easy": 0.6}))
    with pytest.raises(ValueError, match=r"llama: arc_easy.acc is 0.5 in 0/results.json and 0.6 in 1/results.json"):
        import_results(tmp_path)


def test_a_score_that_is_not_finite_is_another_value(tmp_path: Path) -> None:
    write(tmp_path, content({"arc_easy": 0.5}), content({"arc_easy": math.nan}))
    with pytest.raises(ValueError, match=r"arc_easy.acc is 0.5 in 0/results.json and not finite in 1/results.json"):
        import_results(tmp_path)


def test_a_file_for_each_task_is_one_variant_though_tasks_have_their_own_shots(tmp_path: Path) -> None:
    parts = [
        content({"arc_easy": 0.5}, shots=25),
        content({"gsm8k": 0.1}, shots=5),
        content({"piqa": 0.6}, version=2.0),
    ]
    assert means(read_directory(write(tmp_path, *parts))) == {"llama": pytest.approx(0.4)}


def test_what_only_some_runs_tell_keeps_nothing_apart(tmp_path: Path) -> None:
    newer = content({"piqa": 0.6}, config={"model_sha": "abc", "random_seed": 0})
    assert means(read_directory(write(tmp_path, content({"arc_easy": 0.5}), newer))) == {"llama": pytest.approx(0.55)}


FACTS = {
    "path": st.sampled_from(["a/gqa/last", "a/mqa/last", "b/gqa/last", "last", "gqa/last"]),
    "revision": st.sampled_from([None, "main", "step1"]),
    "dtype": st.sampled_from([None, "float16"]),
    "shots": st.sampled_from([0, 5]),
    "limit": st.sampled_from([None, 10]),
    "version": st.sampled_from([1.0, 2.0]),
    "sha": st.sampled_from([None, "x", "y"]),
}


def run_with(facts: Json, value: float) -> Json:
    args = {"pretrained": facts["path"], "revision": facts["revision"], "dtype": facts["dtype"]}
    config = {"limit": facts["limit"], **({"model_sha": facts["sha"]} if facts["sha"] else {})}
    as_dict = {name: given for name, given in args.items() if given}
    written = as_dict if value < 0.5 else ",".join(f"{name}={given}" for name, given in as_dict.items())
    return content({"arc_easy": value}, written, facts["shots"], facts["version"], config)


@several
@given(
    st.lists(
        st.fixed_dictionaries(FACTS), min_size=1, max_size=7, unique_by=lambda facts: json.dumps(facts, sort_keys=True)
    )
)
def test_any_two_distinct_runs_stay_distinct(tmp_path_factory: pytest.TempPathFactory, runs: list[Json]) -> None:
    """Or, where one does not tell what the others differ in, are refused; none takes another's place."""
    values = [(i + 1) / 10 for i in range(len(runs))]
    directory = write(tmp_path_factory.mktemp("runs"), *map(run_with, runs, values))
    bare = {json.dumps({**facts, "sha": None}, sort_keys=True) for facts in runs}
    found = taken(directory)
    if isinstance(found, str):
        assert len(bare) < len(runs)
        return
    assert sorted(found.table["value"]) == values
    assert found.table["variant"].nunique() == len(runs)


@several
@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3), max_size=6), st.data())
def test_labels_are_never_the_same(facts: list[dict[str, str]], data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(["a", "a b=c", "a\n", ""]), min_size=len(facts), max_size=len(facts)))
    assert len(set(labels(names, facts))) == len(facts)


@several
@given(st.sets(st.from_regex(r"\A(/|\.\./)?([ab]{1,2}/){0,3}[ab]\Z"), max_size=6))
def test_short_names_are_ends_that_tell_paths_apart(paths: set[str]) -> None:
    found = short_names(paths)
    assert len(set(found.values())) == len(paths)
    assert all(path.endswith(end) for path, end in found.items())


# The mean


def test_a_variant_that_lacks_a_task_has_no_mean(tmp_path: Path) -> None:
    one = content({"arc_easy": 0.8, "piqa": 0.6}, "pretrained=whole")
    found = read_directory(write(tmp_path, one, content({"arc_easy": 0.8}, "pretrained=part")))
    assert means(found) == {"whole": pytest.approx(0.7), "part": None}
    pivot = results(found.table).frame.set_index("variant")
    assert pivot.loc["part", "accuracy_missing"] == "no result of piqa.acc"
    assert "no mean of part: no result of piqa.acc" in found.notes
    assert found.averaged == ["arc_easy.acc", "piqa.acc"]
    sheet = results_table.sheet(results(found.table))
    assert "mean of 2 ↑" in sheet.headers


MMLU = {"mmlu": 0.3, "mmlu_a": 0.2, "mmlu_b": 0.4, "arc": 0.8}
MEMBERS = {"mmlu": ["mmlu_a", "mmlu_b"], "arc": []}


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
    taken = read_directory(write(tmp_path, found))
    assert means(taken) == {"llama": pytest.approx(0.55)}
    assert taken.averaged == ["arc.acc", "mmlu.acc"]
    assert not (taken.table["metric"] == "sample_len").any()


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


@several
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
    theirs = [row for row in beside.lines(ours, results(published("mlkv"))) if row[beside.PUBLISHED]]
    assert {row["accuracy"] for row in theirs} == set(results(published("mlkv")).frame["accuracy"])


GSM8K = {"exact_match,strict-match": 0.2, "exact_match_stderr,strict-match": 0.02, "exact_match,flexible-extract": 0.3}


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
    ("word", "told"),
    [
        (("arc_easy", "accc"), "no such score; did you mean arc_easy.acc.*; there: arc_easy.acc, gsm8k.exact_match"),
        (("gsm8k", "exact_match"), "several scores?; there: gsm8k.exact_match,flexible-extract, gsm8k.exact_match,str"),
        (("lambada", "perplexity"), "is better when lower"),
    ],
)
def test_a_choice_that_matches_nothing_lists_what_there_is(word: tuple[str, str], told: str, tmp_path: Path) -> None:
    found = content({"arc_easy": 0.5, "gsm8k": GSM8K, "lambada": {"perplexity,none": 5.0}})
    with pytest.raises(ValueError, match=f"accuracy = {'.'.join(word)}: {told}"):
        read_directory(write(tmp_path, found), "x", [("arc_easy", "acc"), word])


def test_without_any_acc_it_is_said_what_could_be_averaged(tmp_path: Path) -> None:
    found = read_directory(write(tmp_path, content({"gsm8k": GSM8K})))
    assert found.averaged == []
    assert found.notes[0].startswith("no mean: no task has acc; --accuracy chooses among gsm8k.exact_match,flexible")


def test_scores_behind_a_filter_are_shown_as_what_they_are(tmp_path: Path) -> None:
    table = import_results(write(tmp_path, content({"gsm8k": GSM8K})), "x", [("gsm8k", "exact_match,strict-match")])
    sheet = results_table.sheet(results(table))
    column = sheet.headers.index("gsm8k exact match (strict-match) ↑")
    assert sheet.rows[0][column].text == "20.00 ± 2.00"


# Files


def test_old_formats_are_read(tmp_path: Path) -> None:
    old: Json = {
        "results": {
            "lambada": {"ppl": 5.5, "ppl_stderr": 0.1, "acc": 0.6, "acc_stderr": 0.01},
            "coqa": {"em": 0.1, "f1": 0.2},
            "wikitext": {"word_perplexity": 20.0, "byte_perplexity": 1.5, "bits_per_byte": 0.9},
        },
        "versions": {"lambada": 0},
        "config": {"model": "hf-causal", "model_args": "pretrained=me/llama", "num_fewshot": 5, "limit": None},
    }
    other = {**old, "config": {**old["config"], "num_fewshot": 0}}
    table = import_results(write(tmp_path, old, other))
    assert scores_of(table, "lambada.perplexity") == {"llama n-shot=5": 5.5, "llama n-shot=0": 5.5}
    assert set(table["metric"]) == {
        "perplexity", "acc", "exact_match", "f1", "word_perplexity", "byte_perplexity", "bits_per_byte"
    }  # fmt: skip
    assert table.loc[table["metric"] == "perplexity", "stderr"].tolist() == [0.1, 0.1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "NaN", 10**400])
def test_a_score_that_is_not_finite_says_so(value: Any, tmp_path: Path) -> None:
    found = read_directory(write(tmp_path, content({"arc_easy": {"acc,none": value}, "piqa": 0.5})))
    pivot = results(found.table)
    assert pivot.frame["accuracy"].isna().all()
    assert pivot.frame["arc_easy.acc_missing"].tolist() == pivot.frame["accuracy_missing"].tolist() == ["not finite"]
    assert any("arc_easy.acc" in note and "not finite" in note for note in found.notes)


LIGHTEVAL = {
    "config_general": {"model_name": "me/llama", "num_few_shot_default": 0},
    "results": {"leaderboard|arc:easy|0": {"acc": 0.5, "acc_stderr": 0.01}, "all": {"acc": 0.9, "acc_stderr": 0.01}},
    "versions": {"all": 0, "leaderboard|arc:easy|0": 0},
}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (json.dumps(LIGHTEVAL), "lighteval"),
        (json.dumps({"results": {"arc": {"acc": 0.5}, "all": {"acc": 0.9}}, "versions": {}}), "a summary"),
        (json.dumps({"results": {"harness|arc:challenge|25": {"acc": 0.5}}, "versions": {}}), "leaderboard"),
        (json.dumps({"results": {"arc": {"accuracy": 0.5}}}), "is no result file of lm-eval"),
        (json.dumps({"results": [1, 2]}), "is no result file of lm-eval"),
        (json.dumps({"architectures": ["LlamaForCausalLM"]}), "is no result file of lm-eval"),
        (json.dumps(content({"arc_easy": {"alias": "x"}})), "has no scores"),
        (json.dumps(content({"arc_easy": 0.5}))[:-40], "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("", "is not JSON"),
    ],
)
def test_what_is_no_result_of_lm_eval_is_skipped_and_listed(text: str, told: str, tmp_path: Path) -> None:
    write(tmp_path, content({"arc_easy": 0.5}))
    (tmp_path / "other.json").write_text(text)
    found = read_directory(tmp_path)
    assert means(found) == {"llama": 0.5}
    assert any(note.startswith("skipped other.json: ") and told in note for note in found.notes)


def test_files_that_cannot_be_read_are_skipped_and_listed(tmp_path: Path) -> None:
    write(tmp_path, content({"arc_easy": 0.5}))
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xff"}')
    (tmp_path / "speed.csv").write_bytes(b"variant,batch,metric,value\nllama,1,tokens_per_second,3\nllama,2,tok")
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.csv").write_bytes(b'variant,batch,metric,value\n"' + b"x" * 200_000)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "nowhere.json").symlink_to(tmp_path / "gone")
    found = read_directory(tmp_path)
    skipped = [note for note in found.notes if note.startswith("skipped")]
    assert [note.split()[1].rstrip(",:") for note in skipped] == ["latin.json", "broken.csv", "notes.csv", "speed.csv"]
    assert "skipped speed.csv, line 3: value = : is no number" in skipped
    assert found.table["value"].tolist() == [0.5]


def test_losses_that_only_the_published_have_stand_beside_ours(tmp_path: Path) -> None:
    write(tmp_path, content({"wikitext": {"word_perplexity,none": 20.0}, "arc_easy": 0.5}))
    ours = Source("ours", import_results(tmp_path))
    table = paper_sheets(ours, ["losses"], published_source("mlkv"))["losses"]
    assert "20.00" in [cell.text for cell in table.rows[0]]
    assert "training loss" in " ".join(table.headers)


@pytest.mark.parametrize(
    ("metric", "value"), [("acc", 56.3), ("f1", 52.5), ("exact_match,strict-match", 40), ("mcc", -7)]
)
def test_a_percentage_is_not_taken_for_a_share(metric: str, value: float, tmp_path: Path) -> None:
    """It would be printed, and averaged, as a hundred times what it is."""
    key = metric if "," in metric else f"{metric},none"
    write(tmp_path, content({"squad": {key: value}, "arc_easy": 0.5}))
    pivot = results(import_results(tmp_path, accuracy=[("arc_easy", "acc"), ("squad", metric)]))
    assert pivot.frame["accuracy"].isna().all()
    assert pivot.frame["accuracy_missing"].tolist() == [f"{value:g} is no share of 1 (a percentage?)"]


def test_what_a_file_calls_better_when_lower_is_in_no_mean(tmp_path: Path) -> None:
    directions = {"arc_easy": {"brier_score": False}}
    write(tmp_path, content({"arc_easy": {"brier_score,none": 0.6}}, higher_is_better=directions))
    with pytest.raises(ValueError, match=r"accuracy = arc_easy.brier_score: is better when lower"):
        import_results(tmp_path, accuracy=[("arc_easy", "brier_score")])


def test_files_are_found_by_their_endings_and_behind_links(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", content({"arc_easy": 0.5}))
    here = tmp_path / "here"
    here.mkdir()
    (here / "linked").symlink_to(elsewhere)
    (here / "round").symlink_to(here)
    (here / "UPPER.JSON").write_text(json.dumps(content({"arc_easy": 0.6}, "pretrained=me/other")))
    (here / "more.json.gz").write_bytes(b"\x1f\x8b")
    found = read_directory(here)
    assert means(found) == {"llama": 0.5, "other": 0.6}
    assert "skipped more.json.gz: is compressed; unpack it" in found.notes


# What the variants are


def test_layouts_that_are_not_there_are_missed(tmp_path: Path) -> None:
    found = read_directory(write(tmp_path, content({"arc_easy": 0.5})))
    assert any(note.startswith("layouts.csv: not there") for note in found.notes)
    (tmp_path / "layouts.csv").write_text("variant,kv_layers\nother,2\n")
    notes = read_directory(tmp_path).notes
    assert "layouts.csv: has no line for llama" in notes
    assert "layouts.csv: no results of other" in notes


def test_files_that_other_systems_wrote_are_read(tmp_path: Path) -> None:
    """With a mark before the text, and lines that end otherwise."""
    (tmp_path / "run.json").write_text(json.dumps(content({"arc_easy": 0.5})), encoding="utf-8-sig")
    (tmp_path / "layouts.csv").write_text("variant,kv_heads\r\nllama,2\r\n", encoding="utf-8-sig", newline="")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "layouts.csv").write_text("variant,kv_heads\nllama,4\n")
    found = read_directory(tmp_path)
    assert found.table["kv_heads"].tolist() == ["2"]
    assert found.notes == ["skipped below/layouts.csv: is read only where it lies in the directory itself"]


LAYOUTS = "model,variant,baseline,kv_layers,kv_heads\n"


def test_a_layout_is_of_every_run_of_its_model_and_of_no_other(tmp_path: Path) -> None:
    runs = [("a/gqa/last", 0, 0.4), ("a/gqa/last", 5, 0.5), ("a/mha/last", 0, 0.6), ("a/mha/last", 5, 0.8)]
    write(tmp_path, *(content({"arc_easy": value}, f"pretrained={path}", shots) for path, shots, value in runs))
    (tmp_path / "layouts.csv").write_text(f"{LAYOUTS}gqa/last,GQA-2,,2,1\na/mha/last,MHA-8,mha,2,4\n")
    (tmp_path / "speed.csv").write_text("variant,batch,metric,value\nGQA-2 n-shot=5,1,tokens_per_second,7\n")
    pivot = results(import_results(tmp_path)).frame.set_index("variant")
    assert pivot["kv_heads"].to_dict() == {
        "GQA-2 n-shot=0": "1", "GQA-2 n-shot=5": "1", "MHA-8 n-shot=0": "4", "MHA-8 n-shot=5": "4"
    }  # fmt: skip
    assert pivot.loc["GQA-2 n-shot=5", "accuracy_vs_mha"] == pytest.approx(-0.3)
    assert pivot.loc["GQA-2 n-shot=0", "accuracy_vs_mha"] == pytest.approx(-0.2)
    assert pivot["tokens_per_second"].notna().tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("layouts", "told"),
    [
        ("last,GQA-2,,2,1\n", r"line 2: model = last: may be a/gqa/last or a/mqa/last"),
        ("gqa/last,X,,2,1\nmqa/last,X,,2,1\n", "line 3: variant = X: stands on line 2 too"),
        ("gqa/last,X,,2,1\ngqa/last,Y,,2,1\n", "line 3: model = gqa/last: stands on line 2 too"),
        ("gqa/last,X,base,2,1\n", "line 2: baseline = base: choose from untouched, mha"),
        ("gqa/last,X,,two,1\n", "line 2: kv_layers = two: is no whole number"),
        ("gqa/last,X,,2,one\n", "line 2: kv_heads = one: is no whole number"),
        ("gqa/last,X,,4,2 1\n", "line 2: kv_heads = 2 1: are of 2 KV layers, not of 4"),
        ("gqa/last,,,2,1\n", "line 2: variant may not be empty"),
    ],
)
def test_a_layout_that_may_be_of_several_models_is_refused(layouts: str, told: str, tmp_path: Path) -> None:
    write(tmp_path, *(content({"arc_easy": 0.5}, f"pretrained=a/{name}/last") for name in ("gqa", "mqa")))
    (tmp_path / "layouts.csv").write_text(LAYOUTS + layouts)
    with pytest.raises(ValueError, match=told):
        import_results(tmp_path)


def test_measurements_of_models_with_one_last_name_stay_apart(tmp_path: Path) -> None:
    write(tmp_path, content({"arc_easy": 0.5}, "pretrained=a/gqa/last"))
    lines = "".join(f"{path},1,cache_bytes,{i}\n" for i, path in enumerate(["gqa/last", "a/mqa/last", "b/gqa/last"], 1))
    (tmp_path / "speed.csv").write_text(f"variant,batch,metric,value\n{lines}gqa/last,1,cache_bytes,1\n")
    table = import_results(tmp_path)
    assert sorted(table["variant"].unique()) == ["a/gqa/last", "b/gqa/last", "mqa/last"]
    assert len(table[table["kind"] == "measure"]) == 3
    with (tmp_path / "speed.csv").open("a") as file:
        file.write("gqa/last,1,cache_bytes,9\n")
    with pytest.raises(ValueError, match=r"cache_bytes at batch 1 is 1.0 in speed.csv and 9.0 in speed.csv"):
        import_results(tmp_path)


def test_a_measurement_that_may_be_of_several_variants_is_refused(tmp_path: Path) -> None:
    write(tmp_path, *(content({"arc_easy": 0.5}, f"pretrained=a/{name}/last") for name in ("gqa", "mqa")))
    (tmp_path / "speed.csv").write_text("variant,batch,metric,value\nlast,1,cache_bytes,1\n")
    with pytest.raises(ValueError, match=r"speed.csv: variant = last: may be gqa/last or mqa/last"):
        import_results(tmp_path)


def test_a_strangers_file_is_not_taken_for_the_authors(tmp_path: Path) -> None:
    """By its name alone: their layouts would be another model's."""
    for name, model in (("mlkv_6", "me/llama-mlkv-6"), ("gqa_48", "x/pythia-160m-mqa-12-b12-g2-v1")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}_results.json").write_text(json.dumps(content({"arc_easy": 0.5}, f"pretrained={model}")))
        assert import_results(folder)["kv_bytes_per_token"].isna().all()


def test_other_settings_of_the_same_task_are_told(tmp_path: Path) -> None:
    one = content({"arc_easy": 0.5}, "pretrained=a", shots=25, config={"limit": 10})
    notes = read_directory(write(tmp_path, one, content({"arc_easy": 0.5}, "pretrained=b", shots=0))).notes
    assert "not the same n-shot in all results: arc_easy (25, 0)" in notes
    assert "not the same limit in all results: 10, none" in notes


# Never a traceback


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.just(math.nan) | st.just(10**400)
    | st.text(max_size=8) | st.sampled_from(["\ud800", "\x00", "a b", "acc,none", "mmlu", "../x", ","]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["acc,none", "mmlu", "acc", ""]) | st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
SAMPLES: Json = {"n-samples": {"arc": {"original": 10, "effective": 5}}}
WHOLE = content(
    {**MMLU, "gsm8k": GSM8K},
    group_subtasks=MEMBERS,
    groups={"mmlu": {"acc,none": 0.3}},
    configs={"arc": {"task": "arc"}},
    higher_is_better={"arc": {"acc": True}},
    model_name="me/llama",
    model_source="hf",
    chat_template="{{x}}",
    date=1.5,
    **SAMPLES,
)


def taken(directory: Path) -> Import | str:
    """What a directory holds, or why it is refused."""
    try:
        return read_directory(directory)
    except ValueError as refused:
        return str(refused)


def places(value: Any, before: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    yield before
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*before, key))


def replaced(value: Any, place: tuple[str, ...], other: Any) -> Any:
    if not place:
        return other
    return {key: replaced(inner, place[1:], other) if key == place[0] else inner for key, inner in value.items()}


@settings(several, max_examples=60)
@given(st.sampled_from(sorted(places(WHOLE))), anything, anything)
def test_whatever_stands_in_a_file_it_is_read_or_refused_in_a_line(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[str, ...], other: Any, whole: Any
) -> None:
    directory = write(tmp_path_factory.mktemp("any"), replaced(WHOLE, place, other), WHOLE, whole)
    found = taken(directory)
    if isinstance(found, str):
        assert "\n" not in found
        return
    path = directory / "out.csv"
    path.write_text(frame.write_csv(found.table), encoding="utf-8")
    again = frame.read_csv(path)
    pd.testing.assert_frame_equal(again, found.table)
    results_table.markdown(results(again))
    assert "llama" in " ".join(found.table["variant"])


@several
@given(st.lists(st.lists(st.text(max_size=6), max_size=6), max_size=4), st.booleans())
def test_whatever_stands_in_a_table_it_is_read_or_refused_in_a_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[list[str]], layouts: bool
) -> None:
    directory = write(tmp_path_factory.mktemp("any"), WHOLE)
    heading = "variant,baseline,kv_layers,kv_heads" if layouts else "variant,batch,metric,value,context"
    text = "\n".join([heading, *map(",".join, lines)])
    (directory / ("layouts.csv" if layouts else "speed.csv")).write_text(text, encoding="utf-8", newline="")
    found = taken(directory)
    assert "csv" in found if isinstance(found, str) else not results(found.table).frame.empty


def command(*words: str) -> int:
    """`mlkv` in this process; its exit status."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(str(ended.value.code))


def test_the_command_says_what_is_averaged_and_what_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = content({"arc_easy": 0.8, "piqa": 0.6}, "pretrained=whole"), content({"arc_easy": 0.8}, "pretrained=part")
    write(tmp_path / "in", *parts)
    (tmp_path / "in" / "torn.json").write_text('{"results": {')
    line = ["import-results", str(tmp_path / "in"), "--name", "theirs", "--store", str(tmp_path / "store")]
    assert command(*line) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:4] == [
        "theirs: 3 results of 2 variants; `mlkv table theirs` shows them",
        "mean of 2: arc_easy.acc, piqa.acc",
        "no mean of part: no result of piqa.acc",
        "all variants have: --accuracy arc_easy.acc",
    ]
    assert printed[4].startswith("layouts.csv: not there")
    assert printed[5].startswith("skipped torn.json: is not JSON")
    assert command(*line, "--accuracy", "arc_easy.accc") == 2
    refused = capsys.readouterr().err
    assert "there: arc_easy.acc, piqa.acc" in refused
    assert "Traceback" not in refused
    assert command("table", "theirs", "benchmarks", "--store", str(tmp_path / "store")) == 0
    shown = capsys.readouterr().out
    assert "70.00" in shown
    assert "no result of piqa.acc: part" in shown
