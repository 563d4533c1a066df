"""The layouts and measurements that stand beside imported results: each belongs to one variant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.data.importer import import_results, read_directory
from analysis.statistics.results import results
from tests.support.lm_eval_files import content, write


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
    assert found.notes == ["skipped below/layouts.csv: is read only from the directory itself"]


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
    ("layouts", "message"),
    [
        ("last,GQA-2,,2,1\n", r"line 2: model = last: may be a/gqa/last or a/mqa/last"),
        ("gqa/last,X,,2,1\nmqa/last,X,,2,1\n", "line 3: variant = X: is on line 2 too"),
        ("gqa/last,X,,2,1\ngqa/last,Y,,2,1\n", "line 3: model = gqa/last: is on line 2 too"),
        ("gqa/last,X,base,2,1\n", "line 2: baseline = base: choose from untouched, mha"),
        ("gqa/last,X,,two,1\n", "line 2: kv_layers = two: is no whole number"),
        ("gqa/last,X,,2,one\n", "line 2: kv_heads = one: is no whole number"),
        ("gqa/last,X,,4,2 1\n", "line 2: kv_heads = 2 1: are 2 KV layers, not 4"),
        ("gqa/last,,,2,1\n", "line 2: variant may not be empty"),
    ],
)
def test_a_layout_that_may_be_of_several_models_is_refused(layouts: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, *(content({"arc_easy": 0.5}, f"pretrained=a/{name}/last") for name in ("gqa", "mqa")))
    (tmp_path / "layouts.csv").write_text(LAYOUTS + layouts)
    with pytest.raises(ValueError, match=message):
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
