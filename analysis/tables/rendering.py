"""A table as Markdown, as LaTeX (latex.py) and as CSV."""

from __future__ import annotations

import csv as csv_module
import io
import re
from collections.abc import Sequence

from analysis.data.text import one_line
from analysis.tables.latex import latex as latex
from analysis.tables.table import Cell, Table


def markdown(printed: Table, title: str | None = None) -> str:
    lines = [
        *([f"### {_markdown_text(title)}", ""] if title else []),
        _markdown_line([_markdown_text(header) for header in printed.headers]),
        _markdown_line(["---", *["---:"] * (len(printed.headers) - 1)]),
        *(_markdown_line([_markdown_cell(cell) for cell in row]) for row in printed.rows),
    ]
    missing = [f"- {_markdown_text(note)}" for note in printed.missing_values]
    notes = [f"- {_markdown_text(note)}" for note in printed.notes_with("bold")]
    return "\n".join([*lines, *_section("Missing values:", missing), *_section("Notes:", notes), ""])


def _section(heading: str, lines: list[str]) -> list[str]:
    return ["", heading, "", *lines] if lines else []


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: Cell) -> str:
    text = _markdown_text(cell.text)
    return f"**{text}**" if cell.best else f"*{text}*" if cell.missing else text


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\|*_<>`\[\]&$~])", r"\\\1", one_line(text))


def csv(printed: Table) -> str:
    """Numbers at full precision in the printed table's columns, each followed by its standard errors and by why one is
    missing, where any row has them, and 1 where it is the best (in bold elsewhere) or has collapsed; `published` is 1
    in published rows."""
    columns = (
        {"published": [str(int(is_published)) for is_published in printed.published]} if any(printed.published) else {}
    )
    headers = [header.rstrip(" ↑↓") for header in printed.headers]
    for header, cells in zip(headers, zip(*printed.rows, strict=True), strict=True):
        columns[header] = [_csv_cell(cell) for cell in cells]
        if any(cell.stderr is not None for cell in cells):
            columns[f"{header} stderr"] = ["" if cell.stderr is None else repr(cell.stderr) for cell in cells]
        if any(cell.best for cell in cells):
            columns[f"{header} best"] = ["1" if cell.best else "" for cell in cells]
        if any(cell.chance for cell in cells):
            columns[f"{header} collapsed"] = ["1" if cell.chance else "" for cell in cells]
        if any(cell.signs for cell in cells):
            columns[f"{header} signatures"] = [cell.signs or "" for cell in cells]
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
    return (cell.plain or cell.text) if cell.number is None else repr(cell.number)
