from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from analysis import frame, tables
from analysis.importer import import_results, variant_name
from analysis.published import SETS, published, read
from analysis.results import results
from mlkv.layout import PATTERNS, KVLayout, make

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
PRINTED = [row for row in read("figures") if row["set"] == "mlkv" and row["value"]]


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
    assert not results(table).empty


def test_an_unknown_set_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="published set = mlvk: choose from mlkv, cla-1b"):
        published("mlvk")


def test_means_of_the_printed_parts_are_the_printed_means() -> None:
    pivot = results(published("mlkv")).set_index("variant")
    for variant, mean in MEANS.items():
        assert 100 * pivot.loc[variant, "accuracy"] == pytest.approx(mean, abs=0.0101)  # parts are rounded


def test_what_nobody_published_is_empty_and_says_so() -> None:
    pivot = results(published("study-1b")).set_index("variant")
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
    sheet = tables.sheet(results(imported))
    mean, drop = sheet.headers.index("mean of 4 ↑"), sheet.headers.index("Δ untouched")
    cells = {row[0].text.removesuffix(" (base)"): row for row in sheet.rows}
    assert {name: row[mean].text.partition(" ±")[0] for name, row in cells.items()} == {
        name: f"{value:.2f}" for name, value in MEANS.items()
    }
    assert {name: cells[name][drop].text for name in DROPS} == DROPS


@raw_files
def test_the_regenerated_table_is_the_published_one(imported: pd.DataFrame) -> None:
    regenerated = tables.sheet(results(imported))
    printed = tables.sheet(results(published("mlkv")))
    assert regenerated.headers == printed.headers
    shown = [i for i, header in enumerate(printed.headers) if not header.startswith(("mean", "Δ"))]
    for ours, theirs in zip(regenerated.rows, printed.rows, strict=True):
        values = [(a.text.partition(" ±")[0], b.text.partition(" ±")[0]) for a, b in zip(ours, theirs, strict=True)]
        assert all(values[i][0] == values[i][1] for i in shown)
        assert all(a.best == b.best for a, b in zip(ours, theirs, strict=True))
