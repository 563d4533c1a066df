"""A table as Markdown, as LaTeX (booktabs) and as CSV."""

from __future__ import annotations

import csv as csv_module
import io
import re
from collections.abc import Sequence

from analysis.tables.table import Cell, Table


def markdown(printed: Table, title: str | None = None) -> str:
    lines = [
        *([f"### {_markdown_text(title)}", ""] if title else []),
        _markdown_line([_markdown_text(header) for header in printed.headers]),
        _markdown_line(["---", *["---:"] * (len(printed.headers) - 1)]),
        *(_markdown_line([_markdown_cell(cell) for cell in row]) for row in printed.rows),
    ]
    missing = [f"- {_markdown_text(note)}" for note in printed.missing_values]
    notes = [f"- {_markdown_text(note)}" for note in printed.notes]
    return "\n".join([*lines, *_section("Missing values:", missing), *_section("Notes:", notes), ""])


def _section(heading: str, lines: list[str]) -> list[str]:
    return ["", heading, "", *lines] if lines else []


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: Cell) -> str:
    text = _markdown_text(cell.text)
    return f"**{text}**" if cell.best else f"*{text}*" if cell.missing else text


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", " ".join(text.split()))


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "←": r"$\leftarrow$",
    "→": r"$\rightarrow$",
    "≈": r"$\approx$",
    "×": r"$\times$",
    "√": r"$\surd$",
    "–": "--",
    "…": r"\ldots{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def latex(printed: Table) -> str:
    """A booktabs `tabular`; needs \\usepackage{booktabs} and nothing else. Leading baselines stand above a rule."""
    body = [_latex_line([_latex_cell(cell) for cell in row]) for row in printed.rows]
    if printed.leading_rows:
        body.insert(printed.leading_rows, r"\midrule")
    return "\n".join(
        [
            r"\begin{tabular}{l" + "r" * (len(printed.headers) - 1) + "}",
            r"\toprule",
            _latex_line([_latex_text(header) for header in printed.headers]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par{{\footnotesize {_latex_text(note)}}}" for note in [*printed.notes, *printed.missing_values]),
            "",
        ]
    )


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = _latex_text(cell.text)
    if not cell.missing and (found := re.fullmatch(r"([+-][\d.,]+)(.*)", cell.text)):
        text = f"${found[1]}${_latex_text(found[2]) and ' ' + _latex_text(found[2])}"  # a hyphen is no minus sign
    return rf"\textbf{{{text}}}" if cell.best else rf"\emph{{{text}}}" if cell.missing else text


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in " ".join(text.split()))


def csv(printed: Table) -> str:
    """Numbers at full precision in the printed table's columns, each followed by its standard errors and by why one is
    missing, where any row has them; `published` is 1 in published rows."""
    columns = (
        {"published": [str(int(is_published)) for is_published in printed.published]} if any(printed.published) else {}
    )
    headers = [header.rstrip(" ↑↓") for header in printed.headers]
    for header, cells in zip(headers, zip(*printed.rows, strict=True), strict=True):
        columns[header] = [_csv_cell(cell) for cell in cells]
        if any(cell.stderr is not None for cell in cells):
            columns[f"{header} stderr"] = ["" if cell.stderr is None else repr(cell.stderr) for cell in cells]
        if any(cell.missing for cell in cells):
            columns[f"{header} missing"] = [cell.missing or "" for cell in cells]
    text = io.StringIO()
    writer = csv_module.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _csv_cell(cell: Cell) -> str:
    if cell.missing:
        return ""
    return cell.text if cell.number is None else repr(cell.number)
