"""A table in a terminal: as many columns as fit its width; below, the reasons for missing values and the notes."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from analysis.data import frame
from analysis.data.frame import Row
from analysis.tables.table import Cell, Role, Table

_OPTIONAL: tuple[Role, ...] = ("measured", "shape", "part", "chance", "difference")
"""The columns that a narrow terminal leaves out, in this order. CSV, Markdown and the report have all of them."""
_COUNTS = range(len(_OPTIONAL) + 1)
_ATTEMPTS = [(hidden, errors) for hidden in _COUNTS for errors in (True, False) if errors or hidden > 1]
"""How many of them to leave out, and whether to show standard errors: these go after the first two."""


class FittingTable:
    """A rich renderable that fits itself to the console."""

    def __init__(self, printed: Table, title: str | None = None) -> None:
        self._printed, self._title = printed, title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        table, left_out = self._fitting(console, options)
        yield table
        for note in [*self._printed.missing_values, *self._printed.notes]:
            yield Text(note, style="dim")
        if left_out:
            yield Text(f"a wider terminal also shows {', '.join(left_out)}", style="dim")

    def _fitting(self, console: Console, options: ConsoleOptions) -> tuple[RichTable, list[str]]:
        unlimited = options.update(max_width=10_000)
        for hidden, errors in _ATTEMPTS:
            table, left_out = self._table(frozenset(_OPTIONAL[:hidden]), errors)
            if Measurement.get(console, unlimited, table).maximum <= options.max_width:
                return table, left_out
        return table, left_out

    def _table(self, hidden: frozenset[Role], errors: bool) -> tuple[RichTable, list[str]]:
        printed = self._printed
        shown = [i for i, role in enumerate(printed.roles) if role not in hidden]
        left_out = [header for header, role in zip(printed.headers, printed.roles, strict=True) if role in hidden]
        table = RichTable(
            title=self._title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
        )
        for i in shown:
            table.add_column(_broken(printed.headers[i]), justify="right" if i else "left", no_wrap=True)
        for number, (row, style) in enumerate(zip(printed.rows, _styles(printed), strict=True), start=1):
            table.add_row(*(_text(row[i], style, errors) for i in shown), end_section=number == printed.leading_rows)
        return table, [*left_out, *([] if errors else ["standard errors"])]


def _broken(header: str) -> str:
    """A long heading on two lines, so that a column is as wide as its numbers."""
    return header.replace(" ", "\n", 1) if len(header) > 8 else header


def _styles(printed: Table) -> list[str]:
    rows = zip(printed.published, printed.baselines, strict=True)
    return ["dim" if others else "cyan" if baseline else "" for others, baseline in rows]


def _text(cell: Cell, style: str, errors: bool) -> Text:
    if cell.missing:
        style = "red" if cell.missing.startswith(("FAILED", "LOST")) else "yellow"
    elif cell.best:
        style = "bold green" if style != "dim" else "bold dim"
    return Text(cell.text if errors else cell.text.partition(" ±")[0], style=style)


class CellsTable:
    """The long table for a reader; `what` and `state` are cut where they do not fit."""

    def __init__(self, cells: pd.DataFrame) -> None:
        self._lines = [("variant", "what", "value", "state")]
        for row in frame.records(cells):
            state = " ".join(filter(None, [str(row["state"]).lower(), row["reason"]]))
            self._lines.append((row["variant"], _what(row), _value(row), state))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        name, what, value, _ = (max(map(len, column)) for column in zip(*self._lines, strict=True))
        left = options.max_width - name - value - 6
        what = max(min(what, left * 2 // 3), 1)
        for number, line in enumerate(self._lines):
            cells = [line[0].ljust(name), _cut(line[1], what).ljust(what), line[2].rjust(value)]
            text = "  ".join([*cells, _cut(line[3], max(left - what, 1))])
            yield Text(text.rstrip()[: options.max_width], style="" if number else "bold", no_wrap=True)


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _value(row: Row) -> str:
    error = "" if row["stderr"] is None else f" ± {row['stderr']:.2g}"
    return "" if row["value"] is None else f"{row['value']:.6g}{error}"


def _what(row: Row) -> str:
    """`evaluate piqa acc`, `measure tokens_per_second, batch 8, context 2048`."""
    at = [f"{name} {row[name]}" for name in ("batch", "context") if row[name] is not None]
    return ", ".join([" ".join(filter(None, [row["kind"], row["task"], row["metric"]])), *at])
