"""Labels are names and no markup: whatever they hold, every figure, every table and the page can be made, and shows
them."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import warnings
from pathlib import Path
from shutil import which

import pytest
from rich.console import Console

from analysis.data.text import one_line
from analysis.figures.drawing import draw, render_bytes
from analysis.figures.kinds import FIGURES
from analysis.page.page import page
from analysis.page.report import render
from analysis.statistics.sources import PUBLISHED, Source, load, published_source
from analysis.tables import latex, rendering
from analysis.tables.paper import make_tables, select_columns
from analysis.tables.table import BEST, Table
from analysis.tables.terminal import CellsTable, FittingTable
from tests.support.filler import FIGURES as VALUES
from tests.support.filler import Filler

LABELS = (
    "a$b$c",
    "x_y^{2}",
    "back\\slash",
    "<script>alert(1)</script>",
    "a&b",
    "line\nbreak\tand tab",
    "emoji 🚀",
    "עברית \u202eשלום",
    "[red]|pipe|`code`",
    "*{x}% #h ~t--u\x1b[31m",
    "中文",
    "=1+1",
    "L" * 300,
    "uptrain.lr=0.001," * 12,
)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Filler:
    values = list(VALUES.values())
    rows = dict(zip(("untouched", "MHA-36"), values, strict=False))
    rows |= {label: values[2 + i % 7] for i, label in enumerate(LABELS)}
    filler = Filler(tmp_path_factory.mktemp("labels") / "store", rows)
    filler.everything()
    return filler


@pytest.fixture(scope="module")
def source(labelled: Filler) -> Source:
    return load(labelled.store, labelled.name)


def printed(renderable: object, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True, markup=False, emoji=False, soft_wrap=False)
    console.print(renderable)
    return console.export_text()


@pytest.mark.parametrize(
    "kind", ["pareto", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("tasks", "layouts"))]
)
def test_figures_show_any_label(source: Source, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(kind, source)
        assert figure is not None
        svg = render_bytes(figure, "svg").decode()
    for text in ("a$b$c", "x_y^{2}", "back\\slash", "&lt;script&gt;alert(1)&lt;/script&gt;", "line break and tab"):
        assert text in svg


@pytest.mark.long
@pytest.mark.parametrize("kind", list(FIGURES))
@pytest.mark.parametrize("form", ["png", "pdf"])
def test_every_figure_is_written_with_any_label(source: Source, kind: str, form: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if figure := draw(kind, source):
            assert render_bytes(figure, form)


def test_markdown_escapes_what_it_reads_as_its_own(source: Source) -> None:
    lines = rendering.markdown(make_tables(source, ["benchmarks"])["benchmarks"]).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    names = [row.split(" | ")[0] for row in rows]
    for name in (
        r"a\$b\$c",
        r"\<script\>alert(1)\</script\>",
        r"a\&b",
        "line break and tab",
        r"\[red\]\|pipe\|\`code\`",
    ):
        assert f"| {name}" in names


def test_csv_holds_labels_as_they_are(source: Source) -> None:
    read = list(csv.DictReader(io.StringIO(rendering.csv(make_tables(source, ["losses"])["losses"]))))
    assert set(LABELS) <= {row["variant"] for row in read}


@pytest.mark.parametrize("width", [40, 80])
def test_a_terminal_shows_a_line_for_each_label_and_obeys_none(source: Source, width: int) -> None:
    for kind in make_tables(source, []):
        text = printed(FittingTable(make_tables(source, [kind])[kind]), width) if kind != "memory" else ""
        assert "\x1b" not in text
        assert "\u202e" not in text
    text = printed(CellsTable(source.table), width)
    assert "line break and tab" in printed(CellsTable(source.table), 200)
    assert "\x1b" not in text


def test_the_page_holds_labels_as_text(labelled: Filler, source: Source, tmp_path: Path) -> None:
    text = render(page(labelled.store, source, tmp_path), {})
    assert "<script>alert(1)" not in text
    assert r"\u003cscript\u003ealert(1)" in text
    assert "bold: the best row" in text
    assert BEST not in text


def test_one_line_keeps_what_can_be_read() -> None:
    assert one_line("a  b\n\tc") == "a b c"
    assert one_line("x\x1b[31my\u202e") == "x[31my"
    assert one_line("\ud800") == "�"
    assert one_line("MHA-36 עברית 🚀") == "MHA-36 עברית 🚀"


# LaTeX


def tabulars(text: str) -> list[str]:
    return re.findall(r"\\begin{tabular}.*?\\end{tabular}", text, re.DOTALL)


def assert_is_latex(text: str) -> None:
    """Braces close, every row has as many cells as the table has columns, and only ASCII and Latin letters occur."""
    unescaped = re.sub(r"\\[\\{}%&$#_]", "", text)
    assert unescaped.count("{") == unescaped.count("}")
    assert unescaped.count("$") % 2 == 0
    assert all(letter < "\u0180" for letter in text if not text.startswith("%"))
    for tabular in tabulars(text):
        columns = len(re.findall(r"[lr]|p\{", tabular.partition("}{")[2].partition("\n")[0]))
        rows = [line for line in tabular.splitlines() if line.endswith(r" \\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}
        assert not any(row.lstrip().startswith(("[", "*")) for row in rows)


def test_latex_escapes_every_label(source: Source) -> None:
    text = latex.latex(make_tables(source, ["benchmarks"])["benchmarks"])
    assert_is_latex(text)
    for name in (r"a\$b\$c", r"x\_y\textasciicircum{}\{2\}", r"a\&b", "line break and tab", "U+1F680", "{[}red]"):
        assert name in re.sub(r"\\allowbreak{}", "", text)


@pytest.mark.parametrize("name", ["mlkv", "cla-3b-tuned", "study-1b"])
def test_latex_tables_fit_a_page(name: str) -> None:
    for made in make_tables(published_source(name), []).values():
        assert_is_latex(latex.latex(made))
        for compact in (True, False):
            shown = latex.shown_columns(made, compact=compact)
            blocks = latex.blocks(made, shown)
            assert all(latex.width(made, block) <= latex.TEXT_WIDTH for block in blocks)
            assert sorted({i for block in blocks for i in block}) == shown


def test_errors_are_in_small_type_and_what_is_left_out_is_named() -> None:
    made = make_tables(published_source("cla-1b"), ["benchmarks"])["benchmarks"]
    text = latex.latex(made)
    assert text.startswith("% left out, as a page is too narrow: Δ mha\n")
    assert r"Δ" not in latex.latex(made, compact=False)
    assert r"$\Delta$" in latex.latex(made, compact=False)
    own = latex.latex(make_tables(published_source("mlkv"), ["benchmarks"])["benchmarks"])
    assert r"43.94 {\tiny $\pm$ 1.02}" in own


@pytest.mark.skipif(not which("pdflatex"), reason="no LaTeX here")
@pytest.mark.parametrize("name", ["mlkv", "cla-1b", "study-1b"])
def test_latex_compiles_without_an_overfull_line(name: str, tmp_path: Path) -> None:
    tables = "\n\n".join(map(latex.latex, make_tables(published_source(name), []).values()))
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{tables}\end{{document}}"
    (tmp_path / "t.tex").write_text(document)
    ran = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert "Overfull" not in ran.stdout


# Columns


def benchmarks() -> dict[str, Table]:
    return make_tables(published_source("mlkv"), ["benchmarks", "configuration"])


def test_chosen_columns_stand_beside_the_names_in_the_table_that_has_them() -> None:
    chosen = select_columns(benchmarks(), ["arc-e", "Mean of 4"])
    assert {kind: made.headers for kind, made in chosen.items()} == {
        "benchmarks": ["variant", "mean of 4 ↑", "ARC-e ↑"]
    }
    assert select_columns(benchmarks(), ["all"]) == benchmarks()


def test_an_unknown_column_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"columns = ARC: did you mean ARC-e\? valid: ARC-e, .*variant"):
        select_columns(benchmarks(), ["ARC"])


@pytest.mark.parametrize("name", ["mlkv", "study-1b"])
@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal_has_a_number_in_every_table(name: str, width: int) -> None:
    """Whole: cut columns show nothing."""
    for made in make_tables(published_source(PUBLISHED + name), []).values():
        text = printed(FittingTable(made), width)
        body = text.partition("─")[2].partition("wider terminal")[0]
        assert not re.search(r"[\d.,]…", body)
        numbers = [cell.text.partition(" ±")[0] for row in made.rows for cell in row[1:] if cell.number is not None]
        assert any(number in body for number in numbers)
        assert all(len(line) <= width for line in text.splitlines())


def test_the_best_is_marked_where_there_is_no_bold() -> None:
    made = make_tables(published_source("mlkv"), ["benchmarks"])["benchmarks"]
    text = printed(FittingTable(made), 200)
    assert "*50.17 ± 0.56" in text
    assert "*: the best row and all rows within noise of it" in text
    assert "bold" not in text
    assert "bold: the best row" in rendering.markdown(made)
    best = [row["mean of 4 best"] for row in csv.DictReader(io.StringIO(rendering.csv(made)))]
    assert best[:3] == ["", "1", "1"]


def test_a_sweep_without_a_variant_says_that_there_is_nothing(tmp_path: Path) -> None:
    empty = Filler(tmp_path / "store", {}, name="empty")
    with pytest.raises(ValueError, match="empty: there is nothing to show in a table, as it has no variants"):
        make_tables(load(empty.store, empty.name), [])
