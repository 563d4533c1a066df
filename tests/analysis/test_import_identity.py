"""Which imported runs are one variant: no two runs become one, and no run becomes two."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.data.identity import labels, short_names
from analysis.data.importer import import_results, read_directory
from mlkv.files import Json
from tests.support.lm_eval_files import content, few_examples, means, read_or_refusal, scores_of, write


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


@few_examples
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
    found = read_or_refusal(directory)
    if isinstance(found, str):
        assert len(bare) < len(runs)
        return
    assert sorted(found.table["value"]) == values
    assert found.table["variant"].nunique() == len(runs)


@few_examples
@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3), max_size=6), st.data())
def test_labels_are_never_the_same(facts: list[dict[str, str]], data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(["a", "a b=c", "a\n", ""]), min_size=len(facts), max_size=len(facts)))
    assert len(set(labels(names, facts))) == len(facts)


@few_examples
@given(st.sets(st.from_regex(r"\A(/|\.\./)?([ab]{1,2}/){0,3}[ab]\Z"), max_size=6))
def test_short_names_are_ends_that_tell_paths_apart(paths: set[str]) -> None:
    found = short_names(paths)
    assert len(set(found.values())) == len(paths)
    assert all(path.endswith(end) for path, end in found.items())
