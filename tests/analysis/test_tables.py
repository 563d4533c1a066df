from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from analysis.data import frame
from analysis.data.gather import gather
from analysis.data.metrics import METRICS, metric
from analysis.data.published import SETS
from analysis.statistics.results import Results, by_layout, results
from analysis.statistics.sources import Source, load, published_source
from analysis.tables import rendering
from analysis.tables import results_table as tables
from analysis.tables.kinds import TABLES
from analysis.tables.paper import make_tables
from analysis.tables.table import Table
from analysis.tables.terminal import CellsTable
from mlkv.patterns import make
from mlkv.registry import extensions
from tests.support.filler import Filler


@pytest.fixture
def pivot(finished: Filler) -> Results:
    return results(gather(finished.store, finished.name))


ELSEWHERE = (
    "recovery",
    "equivalents",
    "options",
    "elastic",
    "stacking",
    "heads_layers",
    "rules",
    "similarity",
    "decoding",
)
SHOWN = [kind for kind in TABLES if kind not in ELSEWHERE]
"""The tables of a sweep that scores no conversion before uptraining, stacks no savings, has one layout of a size and
has timed no steps, nor its base trained for other lengths."""


def named(**cells: Any) -> Results:
    row = {"variant": "a", "kind": "evaluate", "task": "t", "metric": "acc", "in_accuracy": True, "state": "DONE"}
    return results(frame.make([{**row, "value": 0.5, "stderr": 0.01, **cells}]))


def bold_in(text: str) -> dict[str, list[str]]:
    """What is in bold in each row of a Markdown table."""
    rows = {
        re.split(r"\s*\|\s*", line)[1]: re.findall(r"\*\*(.*?)\*\*", line)
        for line in text.splitlines()[2:]
        if "|" in line
    }
    return {variant: bold for variant, bold in rows.items() if bold}


def test_the_best_is_bold_and_baselines_do_not_compete(pivot: Results) -> None:
    assert bold_in(tables.markdown(pivot)) == {"GQA-12": ["2.245 ± 0.004"]}  # no task parts them at 250 items
    assert "a column without bold: all rows are within noise of the best one" in tables.markdown(pivot)


def scored(**scores: tuple[float, float | None]) -> str:
    row = {"kind": "evaluate", "task": "t", "metric": "acc", "in_accuracy": True, "state": "DONE"}
    cells = [{**row, "variant": name, "value": value, "stderr": error} for name, (value, error) in scores.items()]
    return tables.markdown(results(frame.make(cells)))


def test_what_is_within_noise_of_the_best_shares_its_bold() -> None:
    text = scored(a=(0.50, 0.01), b=(0.49, 0.01), c=(0.40, 0.01))
    assert set(bold_in(text)) == {"a", "b"}
    assert "compared by standard errors" in text


def test_nobody_wins_where_all_are_within_noise() -> None:
    assert bold_in(scored(a=(0.50, 0.02), b=(0.49, 0.02), c=(0.48, 0.02))) == {}


def test_without_errors_the_best_number_is_bold_and_the_table_says_so() -> None:
    text = scored(a=(0.50, None), b=(0.49, None))
    assert set(bold_in(text)) == {"a"}
    assert "noise is not considered" in text


def test_both_baselines_and_the_differences_from_them_are_shown(pivot: Results) -> None:
    header, _, untouched, mha, *_ = tables.markdown(pivot).splitlines()
    assert "Δ untouched" in header
    assert "Δ mha" in header
    assert "| untouched (base) | 6 | 6 | 4,608 | 4,608 | 2.201 ± 0.004 | +0.000 | -0.005 ≈ |" in untouched
    assert "| MHA-36 (baseline) | 6 | 6 | 4,608 | 4,608 | 2.206 ± 0.004 | +0.005 ≈ | +0.000 |" in mha


def test_a_cell_without_a_number_says_why(filler: Filler) -> None:
    filler.shared()
    filler.fail(filler.variant("MLKV-6")["steps"]["convert"], "heads | do not <b>divide</b>")
    text = tables.markdown(results(gather(filler.store, filler.name)))
    assert "| MLKV-6 | 3 | 2 | 768 | *pending* | *blocked* | *blocked* |" in text
    assert r"(heads \| do not \<b\>divide\</b\>): MLKV-6" in text
    assert "PENDING: waits for convert (pending): MHA-36 (baseline), GQA-12, MLKV-12" in text


def test_latex_is_booktabs_with_every_special_character_escaped() -> None:
    text = tables.latex(named(variant=r"50%_a&b#{x}~^\$", state="FAILED", reason="x_y"))
    for wanted in (r"\toprule", r"\midrule", r"\bottomrule", r"50\%\_a\&b\#\{x\}\textasciitilde{}\textasciicircum{}"):
        assert wanted in text
    assert r"\textbackslash{}\$" in text
    assert r"\emph{failed}" in text
    assert r"FAILED: x\_y" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in body}) == 1


def test_csv_holds_the_pivot_at_full_precision(pivot: Results) -> None:
    read = pd.read_csv(io.StringIO(tables.csv(pivot)), dtype=str)
    assert list(map(float, read["quality"])) == list(pivot.frame["quality"])
    assert list(map(float, read["accuracy_stderr"])) == list(pivot.frame["accuracy_stderr"])
    assert list(read["variant"]) == list(pivot.frame["variant"])


def test_the_terminal_shows_every_row_and_reason(filler: Filler) -> None:
    filler.shared()
    filler.fail(filler.variant("MQA-6")["steps"]["uptrain"], "loss [red]exploded")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables.render_terminal(results(gather(filler.store, filler.name)), "demo"))
    text = console.export_text()
    assert all(label in text for label in filler.figures)
    assert "loss [red]exploded" in text


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_a_narrow_terminal_gets_fewer_columns_and_never_half_a_number(pivot: Results, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables.render_terminal(pivot))
    text = console.export_text()
    for line in text.splitlines():
        assert len(line) <= width
        assert "…" not in line
    for row in pivot.rows():
        assert any(row["variant"] in line and f"{row['quality']:.3f}" in line for line in text.splitlines())
    assert ("a wider terminal also shows" in text) == (width < 200)


def test_a_running_cell_shows_its_progress() -> None:
    sheet = tables.results_table(named(state="RUNNING", reason="step 40 of 300", value=None))
    assert [cell.text for cell in sheet.rows[0]][-1] == "running 40/300"


def test_an_unknown_metric_is_printed_without_a_winner_and_refused_as_an_axis() -> None:
    sheet = tables.results_table(named(metric="glorp"))
    assert not any(cell.best for row in sheet.rows for cell in row if cell.text == "0.500 ± 0.010")
    with pytest.raises(ValueError, match="metric = glorp: direction unknown; choose from accuracy"):
        metric("glorp")


@pytest.mark.parametrize(
    ("name", "value", "stderr", "text"),
    [
        ("acc", 0.43939, 0.01018, "43.94 ± 1.02"),
        ("bits_per_byte", 2.2, None, "2.200"),
        ("perplexity", 3386411.392, None, "3,386,411.39"),
    ],
)
def test_numbers_are_printed_as_papers_print_them(name: str, value: float, stderr: float | None, text: str) -> None:
    assert METRICS[name].text(value, stderr) == text


def test_a_difference_of_nothing_has_no_minus() -> None:
    assert METRICS["loss"].difference(-1e-9) == "+0.000"
    assert METRICS["acc"].difference(-0.0262) == "-2.62"


def drawn(console: Console) -> str:
    text = console.export_text()
    assert all(len(line) <= console.width for line in text.splitlines())
    return text


@pytest.mark.parametrize("width", [80, 140])
def test_the_long_table_for_a_person_keeps_names_and_values_whole(filler: Filler, width: int) -> None:
    filler.shared()
    filler.train("MQA-6")
    filler.evaluate("MQA-6", "cloze")
    filler.fail(filler.variant("MLKV-6")["steps"]["convert"], "a reason as long as the table is wide " * 3)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(CellsTable(gather(filler.store, filler.name)))
    text = drawn(console)
    assert re.search(r"MQA-6 +evaluate cloze acc +0.088 ± 0.018 +done", text)
    assert re.search(r"MLKV-6 +convert +failed a reason", text)


# The kinds of tables


@pytest.fixture(scope="module")
def source(finished: Filler) -> Source:
    return load(finished.store, finished.name)


def column(made: Table, header: str) -> list[str]:
    at = made.headers.index(header)
    return [row[at].text for row in made.rows]


def test_all_kinds_are_made_where_none_is_named(source: Source) -> None:
    assert list(make_tables(source, [])) == SHOWN


def test_configurations_name_the_owners_and_what_they_save(source: Source) -> None:
    made = make_tables(source, ["configuration"])["configuration"]
    owners = dict(zip(column(made, "variant"), column(made, "KV layers (0-based)"), strict=True))
    assert (owners["MLKV-3"], owners["MLKV-2"], owners["MQA-6"]) == ("0, 2, 4", "0, 3", "all")
    assert column(made, "smaller by")[-1] == "36×"
    assert column(made, "KV heads")[:3] == ["36", "36", "12"]


def test_losses_say_what_is_still_to_come(filler: Filler) -> None:
    filler.shared()
    for label in ("MHA-36", "MQA-6"):
        filler.train(label)
    made = make_tables(load(filler.store, filler.name), ["losses"])["losses"]
    losses = dict(zip(column(made, "variant"), column(made, "uptrain loss ↓"), strict=True))
    assert losses["MQA-6"] == "4.361"
    assert losses["MLKV-6"] == "pending"
    assert losses["untouched (base)"] == "–"  # never to be uptrained
    assert any("waits for convert (pending)" in reason for reason in made.missing_values)


def test_memory_has_the_columns_of_the_paper_and_says_where_it_ran_out(filler: Filler) -> None:
    filler.measure("MQA-6", batches=(1, 8, 64), failed=(128,))
    filler.measure("MHA-36", batches=(1, 8), failed=(64, 128))
    made = make_tables(load(filler.store, filler.name), ["memory"])["memory"]
    rows = {row[0].text: tuple(cell.text for cell in row[2:]) for row in made.rows}
    assert made.headers[2:] == ["cache KiB @1", "largest batch", "no memory at"]
    assert rows["MQA-6"] == ("204.0", "64", "128")
    assert rows["MHA-36 (baseline)"] == ("1,224.0", "8", "64")
    assert rows["MLKV-1"] == ("pending", "pending", "pending")


def test_what_is_not_there_is_said(source: Source) -> None:
    with pytest.raises(ValueError, match="table = speed: must be one of configuration, losses, benchmarks, memory"):
        make_tables(source, ["speed"])
    with pytest.raises(ValueError, match="table = memory: published/study-1b has nothing of that kind"):
        make_tables(published_source("study-1b"), ["memory"])


@pytest.mark.parametrize("name", SETS)
def test_every_published_set_has_its_tables(name: str) -> None:
    made = make_tables(published_source(name), [])
    assert {"configuration", "benchmarks"} <= set(made)
    assert all(rendering.latex(one).count(r"\midrule") >= 1 for one in made.values())


@pytest.mark.parametrize("name", SETS)
def test_every_table_is_made_beside_every_published_set(source: Source, name: str) -> None:
    """Also those of scores that only the published set has."""
    made = make_tables(source, [], published_source(name))
    assert list(made) == SHOWN
    assert all(rendering.markdown(one) for one in made.values())


def test_tables_are_made_before_anything_is_measured(filler: Filler) -> None:
    made = make_tables(load(filler.store, filler.name), [])
    assert list(made) == SHOWN
    assert made["memory"].headers[2:4] == ["cache MiB", "memory MiB"]
    assert made["memory"].rows[0][2].missing == "PENDING"


def test_published_rows_stand_beside_those_of_the_same_layout() -> None:
    ours, theirs = published_source("cla-1b"), published_source("cla-1b-tuned")
    made = make_tables(ours, ["benchmarks"], theirs)["benchmarks"]
    names = column(made, "variant")
    for name in ("H128-MQA", "H64-MQA", "H128-MQA-CLA2"):
        assert names[names.index(name) + 1] == "  published"
    assert sum(made.published) == 3
    assert column(made, "validation perplexity ↓")[names.index("H64-MQA") + 1] == "12.74"
    assert column(made, "HellaSwag ↑")[names.index("H64-MQA")] == "–"  # a score that ours have not
    read = rendering.csv(made).splitlines()
    assert read[0].startswith("published,variant")
    assert sum(line.startswith("1,") for line in read) == 3


def test_a_published_score_of_other_tasks_is_not_put_under_ours(source: Source) -> None:
    made = make_tables(source, ["benchmarks"], published_source("mlkv"))["benchmarks"]
    matched = [row for row, others in zip(made.rows, made.published, strict=True) if others]
    at = [made.headers.index(header) for header in ("bits per byte ↓", "mean of 3 ↑")]
    assert {row[i].text for row in matched for i in at} == {"–"}
    assert {row[made.headers.index("P(front)")].text for row in matched} == {""}
    assert "43.94 ± 1.02" in column(made, "ARC-e ↑")


def test_csv_has_numbers_errors_and_reasons_in_columns_of_their_own(filler: Filler) -> None:
    filler.shared()
    filler.train("MQA-6")
    filler.evaluate("MQA-6", "bits_per_byte")
    made = make_tables(load(filler.store, filler.name), ["benchmarks"])["benchmarks"]
    read = pd.read_csv(io.StringIO(rendering.csv(made)))
    row = read.set_index("variant").loc["MQA-6"]
    assert (row["bits per byte"], row["bits per byte stderr"]) == (2.295, 0.004)
    assert read.set_index("variant").loc["MLKV-6", "bits per byte missing"] == "PENDING: waits for convert (pending)"


def test_seeds_are_told_with_their_interval() -> None:
    row = {"replicate_of": "A", "kind": "evaluate", "task": "t", "metric": "acc", "in_accuracy": True, "state": "DONE"}
    seeds = enumerate((0.40, 0.44, 0.42))
    cells = [{**row, "variant": f"A {seed}", "value": value, "stderr": 0.1} for seed, value in seeds]
    made = tables.results_table(by_layout(frame.make(cells)))
    assert column(made, "variant") == ["A (n=3)"]
    assert column(made, "mean of 1 ↑") == ["42.00 ± 4.97"]  # 4.303 · 2 / √3
    assert any("Student" in note for note in made.notes)


def test_a_small_twin_finds_its_published_rows_at_its_own_scale() -> None:
    theirs = published_source("cla-1b")
    rows = theirs.table[theirs.table["variant"].isin(["H128-MQA", "H128-MQA-CLA2", "H128-MQA-CLA4"])]
    small = rows.assign(
        variant=rows["variant"].map({"H128-MQA": "MQA-20", "H128-MQA-CLA2": "CLA-10", "H128-MQA-CLA4": "CLA-5"}),
        kv_bytes_per_token=rows["kv_bytes_per_token"] // 8,
    )
    names = column(make_tables(Source("twin", small), ["benchmarks"], theirs)["benchmarks"], "variant")
    assert names[:6] == [
        "MQA-20",
        "  published H128-MQA",
        "CLA-10",
        "  published H128-MQA-CLA2",
        "CLA-5",
        "  published H128-MQA-CLA4",
    ]
    assert len(names) == 3 + 20


EXTENSION = """
from analysis.tables.columns import count, shape_columns, table_of
from analysis.tables.kinds import TABLES, TableKind
from analysis.tables.merge_published import merge_published
from analysis.tables.table import Column

def owners(source, published):
    rows = merge_published(source.results)
    return table_of(rows, [*shape_columns(rows), Column("owners", "score", [count(row["kv_layers"]) for row in rows])])

TABLES["owners"] = TableKind("layers that own keys and values", owners)
"""


def test_an_extension_adds_a_table(source: Source, tmp_path: Path) -> None:
    (tmp_path / "owners.py").write_text(EXTENSION)
    with extensions(lambda: [tmp_path / "owners.py"]):
        assert list(make_tables(source, [])) == [
            "configuration",
            "losses",
            "benchmarks",
            "memory",
            "training",
            "owners",
        ]
        assert column(make_tables(source, ["owners"])["owners"], "owners")[0] == "6"
    with pytest.raises(ValueError, match="table = owners: must be one of"):
        make_tables(source, ["owners"])


METRIC = """
from analysis.data.metrics import METRICS, Metric

def bits_per_owner(cells):
    bits = {cell["metric"]: cell for cell in cells}.get("bits_per_byte")
    return bits and (bits["value"] / bits["kv_layers"], bits["stderr"] / bits["kv_layers"])

METRICS["bits_per_owner"] = Metric("bits per KV layer", higher_is_better=False, compute=bits_per_owner)
"""


def test_an_extension_computes_a_metric_of_each_variants_results(filler: Filler, tmp_path: Path) -> None:
    filler.shared()
    for label in ("MHA-36", "GQA-12", "MQA-6"):
        filler.train(label)
        filler.evaluate(label, "bits_per_byte")
    (tmp_path / "metric.py").write_text(METRIC)
    with extensions(lambda: [tmp_path / "metric.py"]):
        source = load(filler.store, filler.name)
        made = make_tables(source, ["benchmarks"])["benchmarks"]
        values = dict(zip(column(made, "variant"), column(made, "bits per KV layer ↓"), strict=True))
        assert values["MQA-6"] == "0.383 ± 0.001"
        assert values["MLKV-6"] == "cannot be computed from its results"
        assert [row[0].text for row in made.rows if row[made.headers.index("bits per KV layer ↓")].best] == ["GQA-12"]
        assert "computed.bits_per_owner" in source.results.select(["MQA-6"]).frame
    assert "computed.bits_per_owner" not in load(filler.store, filler.name).results.frame


def test_a_metric_that_fails_is_named_in_one_line(source: Source, tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text(METRIC.replace('bits["value"]', 'bits["valeu"]'))
    with extensions(lambda: [tmp_path / "metric.py"]):
        fault = r"^metric = bits_per_owner: variant untouched: KeyError: 'valeu'$"
        with pytest.raises(ValueError, match=fault):
            make_tables(Source("x", source.table), ["benchmarks"])


def test_what_passes_cost_is_said_below_the_table(filler: Filler) -> None:
    filler.shared()
    made = results(gather(filler.store, filler.name))
    assert not any("passes" in note for note in tables.results_table(made).notes)
    cost = make("sandwich", 6, 6, 3, 1, position="top").cost_of_passes
    assert cost == "7 + 2 passes over a text: a training step costs 3.2 times, a prompt 6.3 times as much"
    changed = made.frame.assign(passes=made.frame["passes"].mask(made.frame["variant"] == "MLKV-3", cost))
    assert f"MLKV-3: {cost}" in tables.results_table(Results.from_frame(changed)).notes


def test_conversions_that_are_approximate_are_named_with_the_reason(filler: Filler) -> None:
    filler.shared()
    reason = "keys merge as they are"
    for label in ("MLKV-6", "MQA-6", "GQA-12"):
        facts = {"approximate": reason} if label != "GQA-12" else {}
        filler.done(filler.variant(label)["steps"]["convert"], [], facts=facts)
    made = results(gather(filler.store, filler.name))
    approximate = {row["variant"]: row["approximate"] for row in made.rows() if row["approximate"]}
    assert approximate == {"MQA-6": reason, "MLKV-6": reason}
    assert f"approximate (MQA-6, MLKV-6): {reason}" in tables.results_table(made).notes
    earlier = Results.from_frame(made.frame.drop(columns="approximate"))
    assert not any("approximate" in note for note in tables.results_table(earlier).notes)
