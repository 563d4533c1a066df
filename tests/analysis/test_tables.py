from __future__ import annotations

import io
import re
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from analysis import frame, tables
from analysis.gather import gather
from analysis.metrics import METRICS, metric
from analysis.results import results


@pytest.fixture
def pivot(finished: Any) -> pd.DataFrame:
    return results(gather(finished.store, finished.name))


def named(**cells: Any) -> pd.DataFrame:
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


def test_the_best_is_bold_and_baselines_do_not_compete(pivot: pd.DataFrame) -> None:
    assert bold_in(tables.markdown(pivot)) == {"GQA-12": ["2.245 ± 0.004"]}  # no task parts them at 250 items
    assert "a column without bold: all are within noise of the best" in tables.markdown(pivot)


def scored(**scores: tuple[float, float | None]) -> str:
    row = {"kind": "evaluate", "task": "t", "metric": "acc", "in_accuracy": True, "state": "DONE"}
    cells = [{**row, "variant": name, "value": value, "stderr": error} for name, (value, error) in scores.items()]
    return tables.markdown(results(frame.make(cells)))


def test_what_is_within_noise_of_the_best_shares_its_bold() -> None:
    text = scored(a=(0.50, 0.01), b=(0.49, 0.01), c=(0.40, 0.01))
    assert set(bold_in(text)) == {"a", "b"}
    assert "judged from standard errors" in text


def test_nobody_wins_where_all_are_within_noise() -> None:
    assert bold_in(scored(a=(0.50, 0.02), b=(0.49, 0.02), c=(0.48, 0.02))) == {}


def test_without_errors_the_best_number_is_bold_and_the_table_says_so() -> None:
    text = scored(a=(0.50, None), b=(0.49, None))
    assert set(bold_in(text)) == {"a"}
    assert "whatever its noise" in text


def test_both_baselines_and_the_differences_from_them_are_shown(pivot: pd.DataFrame) -> None:
    header, _, untouched, mha, *_ = tables.markdown(pivot).splitlines()
    assert "Δ untouched" in header
    assert "Δ mha" in header
    assert "| untouched (base) | 6 | 6 | 4,608 | 4,608 | 2.201 ± 0.004 | +0.000 | -0.005 ≈ |" in untouched
    assert "| MHA-36 (baseline) | 6 | 6 | 4,608 | 4,608 | 2.206 ± 0.004 | +0.005 ≈ | +0.000 |" in mha


def test_a_cell_without_a_number_says_why(filler: Any) -> None:
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


def test_csv_holds_the_pivot_at_full_precision(pivot: pd.DataFrame) -> None:
    read = pd.read_csv(io.StringIO(tables.csv(pivot)), dtype=str)
    assert list(map(float, read["quality"])) == list(pivot["quality"])
    assert list(map(float, read["accuracy_stderr"])) == list(pivot["accuracy_stderr"])
    assert list(read["variant"]) == list(pivot["variant"])


def test_the_terminal_shows_every_row_and_reason(filler: Any) -> None:
    filler.shared()
    filler.fail(filler.variant("MQA-6")["steps"]["uptrain"], "loss [red]exploded")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables.render_terminal(results(gather(filler.store, filler.name)), "demo"))
    text = console.export_text()
    assert all(label in text for label in filler.figures)
    assert "loss [red]exploded" in text


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_a_narrow_terminal_gets_fewer_columns_and_never_half_a_number(pivot: pd.DataFrame, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables.render_terminal(pivot))
    text = console.export_text()
    for line in text.splitlines():
        assert len(line) <= width
        assert "…" not in line
    for row in frame.records(pivot):
        assert any(row["variant"] in line and f"{row['quality']:.3f}" in line for line in text.splitlines())
    assert ("a wider terminal also shows" in text) == (width < 200)


def test_a_running_cell_shows_its_progress() -> None:
    sheet = tables.sheet(named(state="RUNNING", reason="step 40 of 300", value=None))
    assert [cell.text for cell in sheet.rows[0]][-1] == "running 40/300"


def test_an_unknown_metric_is_printed_without_a_winner_and_refused_as_an_axis() -> None:
    sheet = tables.sheet(named(metric="glorp"))
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
