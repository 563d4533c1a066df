from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis.data import frame
from analysis.data.importer import import_results, variant_name
from analysis.data.published import SETS, published
from analysis.data.reference import read
from analysis.statistics.results import results
from analysis.statistics.sources import load
from analysis.tables import results_table as tables
from mlkv.layout import KVLayout
from mlkv.patterns import PATTERNS, make
from sweeps.store.store import Store, StoreError
from tests.support.read_back import number
from tests.support.records import save_sweep

ROOT = Path(__file__).resolve().parents[2]
RAW = Path(os.environ.get("MLKV_PUBLISHED", ROOT.parent / "shared" / "data" / "pythia-mlkv"))
raw_files = pytest.mark.skipif(not RAW.is_dir(), reason="the authors' raw files are not here (MLKV_PUBLISHED)")
MEANS = {
    "MHA-144": 52.79,
    "GQA-48": 50.17,
    "MLKV-48": 49.29,
    "MQA-12": 49.43,
    "MLKV-12": 48.78,
    "MLKV-6": 49.06,
    "MLKV-4": 47.31,
    "MLKV-2": 46.78,
    "MLKV-1": 41.12,
    "Random init": 25.10,
}
DROPS = {
    "GQA-48": "-2.62",
    "MLKV-48": "-3.49",
    "MQA-12": "-3.35",
    "MLKV-12": "-4.01",
    "MLKV-6": "-3.73",
    "MLKV-4": "-5.48",
    "MLKV-2": "-6.01",
    "MLKV-1": "-11.67",
}
LAYOUTS = [row for row in read("layouts") if row["layers"]]
PRINTED = [row for row in read("figures") if row["set"] == "mlkv" and row["value"] and row["metric"] != "accuracy"]


def layout_of(row: dict[str, str]) -> KVLayout:
    """The published layout; one that reads upwards (not expressible) stands in with as many ordinary owners."""
    layers, heads, kv_layers, kv_heads = (int(row[key]) for key in ("layers", "heads", "kv_layers", "kv_heads"))
    return make(row["pattern"] or "even", layers, heads, kv_layers, kv_heads)


@pytest.mark.parametrize("row", LAYOUTS, ids=lambda row: f"{row['set']}/{row['variant']}")
def test_the_formula_gives_every_published_size(row: dict[str, str]) -> None:
    element_bytes = int(row["element_bytes"])
    ours = layout_of(row).kv_bytes_per_token(int(row["head_dim"]), element_bytes)
    assert ours == int(row["kv_bytes_per_token"])


def test_every_pattern_of_a_published_layout_is_one_of_ours() -> None:
    assert {row["pattern"] for row in LAYOUTS} - {""} <= set(PATTERNS)


@pytest.mark.parametrize("name", SETS)
def test_a_published_set_has_the_schema_and_a_source_for_every_cell(name: str) -> None:
    table = published(name)
    assert {column: str(dtype) for column, dtype in table.dtypes.items()} == frame.COLUMNS
    assert set(table["state"]) == {"PUBLISHED"}
    assert table["reason"].notna().all()
    assert not results(table).frame.empty


def test_an_unknown_set_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="published set = mlvk: choose from mlkv, cla-1b"):
        published("mlvk")


def test_means_are_those_that_were_printed_and_their_printed_parts_agree() -> None:
    table = published("mlkv")
    pivot, recomputed = (results(t).frame.set_index("variant") for t in (table, table[table["metric"] != "accuracy"]))
    for variant, mean in MEANS.items():
        assert f"{100 * number(pivot, variant, 'accuracy'):.2f}" == f"{mean:.2f}"
        assert 100 * number(recomputed, variant, "accuracy") == pytest.approx(mean, abs=0.0101)  # parts are rounded
        assert number(pivot, variant, "accuracy_stderr") == number(recomputed, variant, "accuracy_stderr")


def test_what_nobody_published_is_empty_and_says_so() -> None:
    pivot = results(published("study-1b")).frame.set_index("variant")
    assert pivot.loc["sandwich-middle", "quality"] == pytest.approx(0.4929)
    assert pivot.loc["sandwich-middle", "accuracy"] is pd.NA
    assert pivot.loc["sandwich-middle", "accuracy_missing"] == "not published in any source we found"
    recomputed, printed = pivot["accuracy"].drop("sandwich-middle"), pivot["quality"].drop("sandwich-middle")
    assert (abs(recomputed - printed) < 0.00006).all()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mlkv_12_results.json", "MLKV-12"),
        ("faridlazuarda/pythia-160m-gqa-48-b12-g2-v2", "GQA-48"),
        ("../pythia-160m-deduped", "MHA-144"),
        ("base_results.json", "MHA-144"),
        ("random_results.json", "Random init"),
    ],
)
def test_the_authors_names(text: str, name: str) -> None:
    assert variant_name(text) == name


def test_a_directory_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has neither lm-eval's JSON results nor"):
        import_results(tmp_path)


@pytest.fixture(scope="module")
def imported() -> pd.DataFrame:
    return import_results(RAW)


@raw_files
@pytest.mark.parametrize(
    "row", [r for r in PRINTED if r["kind"] != "uptrain"], ids=lambda row: " ".join(row.values())[:60]
)
def test_raw_files_give_every_published_figure_to_the_printed_digit(
    row: dict[str, str], imported: pd.DataFrame
) -> None:
    same = imported[(imported["variant"] == row["variant"]) & (imported["metric"] == row["metric"])]
    for key in ("task", "batch", "context"):
        same = same[same[key].astype("string") == row[key]] if row[key] else same
    assert len(same) == 1
    scale = {"%": 100, "MiB": 2**-20, "": 1}[row["unit"]]
    for key in ("value", "stderr"):
        if row[key]:
            digits = len(row[key].partition(".")[2])
            assert f"{same[key].iloc[0] * scale:.{digits}f}" == row[key]


@raw_files
def test_raw_files_give_the_printed_means_and_drops(imported: pd.DataFrame) -> None:
    sheet = tables.results_table(results(imported))
    mean, drop = sheet.headers.index("mean of 4 ↑"), sheet.headers.index("Δ untouched")
    cells = {row[0].text.removesuffix(" (base)"): row for row in sheet.rows}
    assert {name: row[mean].text.partition(" ±")[0] for name, row in cells.items()} == {
        name: f"{value:.2f}" for name, value in MEANS.items()
    }
    assert {name: cells[name][drop].text for name in DROPS} == DROPS


def command(*words: str) -> str:
    """What `mlkv WORDS` prints. Raises AssertionError where it fails."""
    run = subprocess.run([sys.executable, "-m", "sweeps.cli", *words], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@raw_files
def test_the_commands_tables_of_the_raw_files_are_the_published_ones(tmp_path: Path) -> None:
    """But for what follows from figures that are not rounded, and KV layers, which results do not tell."""
    store = ["--store", str(tmp_path / "store")]
    printed = command("import-results", str(RAW), "--name", "theirs", *store)
    assert "438 results of 10 variants" in printed
    for name, folder in (("theirs", "ours"), ("published/mlkv", "printed")):
        command("table", name, "configuration", "benchmarks", "memory", "-o", str(tmp_path / folder), *store)
    for kind in ("configuration", "benchmarks", "memory"):
        ours, theirs = (read_markdown((tmp_path / folder / f"{kind}.md").read_text()) for folder in ("ours", "printed"))
        assert ours == theirs
        assert len(ours) == 2 + 10


LEFT_OUT = {"P(front)", "KV layers (0-based)"}


def read_markdown(text: str) -> list[tuple[str, ...]]:
    """The cells of a Markdown table; values as they are printed, without the standard errors, which were rounded."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    columns = [i for i, header in enumerate(lines[0]) if header not in LEFT_OUT]
    return [tuple(re.sub(r" ± [\d.]+", "", line[i]) for i in columns) for line in lines]


def test_taking_in_again_replaces_the_whole(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    for scores in ({"arc_easy": 0.5, "piqa": 0.6}, {"arc_easy": 0.4}):
        lm_eval_file(tmp_path / "in" / "results.json", "me/llama", scores)
        store.save_import("mine", frame.write_csv(import_results(tmp_path / "in", "mine")))
    table = load(store, "mine").table
    assert list(zip(table["task"], table["value"], strict=True)) == [("arc_easy", 0.4)]
    assert {str(dtype) for dtype in table.dtypes} == set(frame.COLUMNS.values())


@pytest.mark.parametrize(
    ("name", "message"), [("a/b", "make a name"), (".x", "make a name"), ("sweep", "is a sweep's")]
)
def test_an_import_has_a_name_of_its_own(name: str, message: str, tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    save_sweep(store, "sweep", {"steps": {}})
    with pytest.raises(StoreError, match=message):
        store.save_import(name, "")


def test_a_sweep_does_not_take_the_name_of_an_import(tmp_path: Path) -> None:
    """Its tables would be those of the import."""
    store = Store.open(tmp_path)
    store.save_import("theirs", frame.write_csv(frame.make([])))
    with pytest.raises(StoreError, match="name = theirs: is that of imported results"):
        save_sweep(store, "theirs", {"steps": {}})


def test_a_name_that_two_things_have_shows_neither(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    save_sweep(store, "theirs", {"steps": {}})
    store.imported("theirs").parent.mkdir()
    store.imported("theirs").write_text(frame.write_csv(frame.make([])))
    with pytest.raises(StoreError, match="theirs: is a sweep and an import"):
        load(store, "theirs")


def test_a_name_that_is_nowhere_lists_those_there_are(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.save_import("theirs", frame.write_csv(frame.make([])))
    with pytest.raises(StoreError, match="imports: theirs; published: published/mlkv, published/cla-1b"):
        load(store, "thiers")


def lm_eval_file(path: Path, model: str, scores: dict[str, float], date: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {task: {"acc,none": value, "acc_stderr,none": 0.01, "alias": task} for task, value in scores.items()}
    path.write_text(json.dumps({"results": results, "date": date, "config": {"model_args": f"pretrained={model},x=1"}}))


def test_anybodys_results_are_taken_in_and_told_apart_by_their_models(tmp_path: Path) -> None:
    lm_eval_file(tmp_path / "a" / "results_1.json", "me/llama-gqa", {"arc_easy": 0.5, "piqa": 0.7}, date=1)
    lm_eval_file(tmp_path / "a" / "results_2.json", "me/llama-gqa", {"piqa": 0.7}, date=2)
    lm_eval_file(tmp_path / "b" / "results_1.json", "me/llama", {"arc_easy": 0.4, "piqa": 0.5})
    (tmp_path / "layouts.csv").write_text(
        "model,variant,baseline,family,pattern,kv_layers,kv_heads,kv_bytes_per_token,parameters\n"
        "llama,MHA-8,untouched,MHA,even,2,4,4096,\nllama-gqa,GQA-2,,GQA,even,2,1,1024,\n"
    )
    (tmp_path / "speed.csv").write_text("variant,batch,metric,value\nllama-gqa,8,tokens_per_second,12.5\n")
    pivot = results(import_results(tmp_path, "mine")).frame.set_index("variant")
    assert list(pivot.index) == ["MHA-8", "GQA-2"]
    assert pivot.loc["GQA-2", "accuracy"] == pytest.approx((0.5 + 0.7) / 2)  # equal results are one
    assert pivot.loc["GQA-2", "accuracy_vs_untouched"] == pytest.approx(0.6 - 0.45)
    assert pivot.loc["GQA-2", "kv_bytes_per_token"] == 1024
    assert pivot.loc["GQA-2", "tokens_per_second"] == 12.5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("results.json", "{not json", "results.json: is not JSON"),
        ("speed.csv", "variant,batch,metric,value\nx,eight,loss,1\n", "speed.csv, line 2: batch = eight: is no number"),
        ("speed.csv", "a,b\n1,2\n", "speed.csv: columns a, b: wanted batch, metric, value, variant or batch_size"),
        ("layouts.csv", "a\n1\n", "has neither"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        import_results(tmp_path)
