"""The results table in a terminal: as much of it as the width takes, reasons for empty cells below."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from analysis.tables import Cell, Role, Sheet, sheet

_GIVES_WAY: tuple[Role, ...] = ("measured", "shape", "part", "difference")
"""What a narrow terminal leaves out, first things first; the CSV, the Markdown and the report keep everything."""


class ResultsTable:
    """A rich renderable that fits itself to the console."""

    def __init__(self, pivot: pd.DataFrame, title: str | None = None) -> None:
        self._sheet, self._title = sheet(pivot), title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        table, left_out = self._fitting(console, options)
        yield table
        for note in self._sheet.notes:
            yield Text(note, style="dim")
        if left_out:
            yield Text(f"a wider terminal also shows {', '.join(left_out)}", style="dim")

    def _fitting(self, console: Console, options: ConsoleOptions) -> tuple[Table, list[str]]:
        unlimited = options.update(max_width=10_000)
        for hidden in range(len(_GIVES_WAY) + 1):
            for errors in (True, False):
                table, left_out = self._table(frozenset(_GIVES_WAY[:hidden]), errors)
                if Measurement.get(console, unlimited, table).maximum <= options.max_width:
                    return table, left_out
        return table, left_out

    def _table(self, hidden: frozenset[Role], errors: bool) -> tuple[Table, list[str]]:
        printed = self._sheet
        shown = [i for i, role in enumerate(printed.roles) if role not in hidden]
        left_out = [header for header, role in zip(printed.headers, printed.roles, strict=True) if role in hidden]
        table = Table(title=self._title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for i in shown:
            table.add_column(_broken(printed.headers[i]), justify="right" if i else "left", no_wrap=True)
        for row, baseline, ends in zip(printed.rows, printed.baselines, _section_ends(printed), strict=True):
            table.add_row(*(_text(row[i], baseline, errors) for i in shown), end_section=ends)
        return table, [*left_out, *([] if errors else ["standard errors"])]


def _broken(header: str) -> str:
    """Long headings on two lines: columns are as wide as their numbers."""
    return header.replace(" ", "\n", 1) if len(header) > 8 else header


def _section_ends(printed: Sheet) -> list[bool]:
    """Whether a rule follows the row: after the leading baselines."""
    following = [*printed.baselines[1:], None]
    return [this is not None and after is None for this, after in zip(printed.baselines, following, strict=True)]


def _text(cell: Cell, baseline: str | None, errors: bool) -> Text:
    if cell.missing:
        style = "red" if cell.missing.startswith(("FAILED", "LOST")) else "yellow"
    else:
        style = "bold green" if cell.best else "cyan" if baseline else ""
    return Text(cell.text if errors else cell.text.partition(" ±")[0], style=style)
