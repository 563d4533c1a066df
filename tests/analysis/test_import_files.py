"""Which files of a directory are imported, and which are skipped and listed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from analysis.data.importer import import_results, read_directory
from analysis.statistics.results import results
from analysis.statistics.sources import Source, published_source
from analysis.tables.paper import make_tables
from mlkv.files import Json
from tests.support.lm_eval_files import content, means, scores_of, write


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
    ("text", "message"),
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
def test_what_is_no_result_of_lm_eval_is_skipped_and_listed(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, content({"arc_easy": 0.5}))
    (tmp_path / "other.json").write_text(text)
    found = read_directory(tmp_path)
    assert means(found) == {"llama": 0.5}
    assert any(note.startswith("skipped other.json: ") and message in note for note in found.notes)


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
    table = make_tables(ours, ["losses"], published_source("mlkv"))["losses"]
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
    assert "skipped more.json.gz: is compressed; decompress it" in found.notes
