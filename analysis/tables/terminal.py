"""A table in a terminal: as many columns as fit its width; below, the reasons for missing values and the notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from analysis.data.text import one_line
from analysis.tables.table import Cell, Role, Table

if TYPE_CHECKING:
    import pandas as pd

    from analysis.data.frame import Row

_OPTIONAL: tuple[Role, ...] = ("measured", "shape", "part", "chance", "difference")
"""The columns that a narrow terminal leaves out, in this order; the standard errors go after the first two. CSV,
Markdown and the report have all of them."""
_MAIN: tuple[Role, ...] = ("score", "part")
"""The numbers that a table is made for: one of them is always shown."""
_GAP, _EDGES = 3, 2
"""Letters between two columns, and at both ends of a line."""
_MARK = "*"


class FittingTable:
    """A rich renderable that fits itself to the console. What has too many columns even without the optional ones is
    printed in blocks, one below the other, each with the names of the rows."""

    def __init__(self, printed: Table, title: str | None = None) -> None:
        self._printed, self._title = printed, title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        blocks, left_out = self._blocks(options.max_width)
        for block in blocks:
            yield block.table(None if block is not blocks[0] else self._title)
        for note in [*self._printed.missing_values, *self._printed.notes_with(_MARK)]:
            yield Text(one_line(note), style="dim")
        if left_out:
            yield Text(f"a wider terminal also shows {', '.join(left_out)}", style="dim")

    def _blocks(self, width: int) -> tuple[list[_Block], list[str]]:
        headers, names = self._printed.headers, _names_within(self._printed, width)
        for hidden, errors in _attempts(self._printed.roles):
            shown = [i for i in range(len(headers)) if i not in hidden]
            block = _Block(self._printed, names, shown, errors)
            if block.width <= width:
                left_out = [one_line(headers[i]) for i in sorted(hidden)]
                return [block], [*left_out, *([] if errors else ["standard errors"])]
        return _split(_Block(self._printed, names, list(range(len(headers))), True), width), []


def _attempts(roles: Sequence[Role]) -> Iterator[tuple[frozenset[int], bool]]:
    """Which columns to leave out, and whether to show standard errors: ever fewer."""
    hidden: frozenset[int] = frozenset()
    yield hidden, True
    for number, role in enumerate(_OPTIONAL):
        # Single scores go one by one from the right, as any of them may be what the reader looks for.
        of_role = [i for i, each in enumerate(roles) if each == role]
        steps = [[i] for i in reversed(of_role)] if role in _MAIN else [of_role]
        for step in steps:
            fewer = hidden.union(step)
            if any(i not in fewer for i, each in enumerate(roles) if each in _MAIN) or role not in _MAIN:
                hidden = fewer
                yield hidden, True
                if number > 0:
                    yield hidden, False
        if number == 1:
            yield hidden, False


def _names_within(printed: Table, width: int) -> list[str]:
    """The names of the rows; those that would leave too little room for numbers lose their middle, as both ends tell
    them apart."""
    longest = max(width * 2 // 5, 16)
    return [_without_middle(_name(row[0].text), longest) for row in printed.rows]


def _name(text: str) -> str:
    """A name keeps the space before it: a published row is written below ours, further in."""
    return f"{text[: len(text) - len(text.lstrip(' '))]}{one_line(text)}"


def _without_middle(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    end = text[-(width // 2) :]
    while cell_len(end) > width // 2:
        end = end[1:]
    return f"{set_cell_size(text, width - 1 - cell_len(end)).rstrip()}…{end}"


class _Block:
    """Some columns of a table, the names of the rows first."""

    def __init__(self, printed: Table, names: Sequence[str], shown: Sequence[int], errors: bool) -> None:
        self._printed, self._names, self._errors, self.shown = printed, names, errors, shown

    @property
    def width(self) -> int:
        return sum(map(self.column_width, self.shown)) + _GAP * (len(self.shown) - 1) + _EDGES

    def column_width(self, i: int) -> int:
        texts = [*_broken(self._printed.headers[i]).split("\n"), *(self._text(row, i) for row in self._rows)]
        return max(map(cell_len, texts))

    @property
    def _rows(self) -> range:
        return range(len(self._printed.rows))

    def columns(self, shown: Sequence[int]) -> _Block:
        return _Block(self._printed, self._names, shown, self._errors)

    def _text(self, row: int, i: int) -> str:
        cell = self._printed.rows[row][i]
        text = self._names[row] if i == 0 else one_line(cell.text)
        marked = f"{_MARK}{text}" if cell.best else text
        return marked if self._errors else marked.partition(" ±")[0]

    def table(self, title: str | None) -> RichTable:
        printed = self._printed
        table = RichTable(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for i in self.shown:
            table.add_column(_broken(printed.headers[i]), justify="right" if i else "left", no_wrap=True)
        for row, style in zip(self._rows, _styles(printed), strict=True):
            cells = (Text(self._text(row, i), style=_style(printed.rows[row][i], style)) for i in self.shown)
            table.add_row(*cells, end_section=row + 1 == printed.leading_rows)
        return table


def _split(whole: _Block, width: int) -> list[_Block]:
    """Blocks of as many columns as fit, at least one beside the names."""
    name, *others = whole.shown
    blocks: list[list[int]] = []
    for i in others:
        if blocks and whole.columns([name, *blocks[-1], i]).width <= width:
            blocks[-1].append(i)
        else:
            blocks.append([i])
    return [whole.columns([name, *block]) for block in blocks]


def _broken(header: str) -> str:
    """A long heading on two lines, so that a column is as wide as its numbers."""
    header = one_line(header)
    return header.replace(" ", "\n", 1) if len(header) > 8 else header


def _styles(printed: Table) -> list[str]:
    rows = zip(printed.published, printed.baselines, strict=True)
    return ["dim" if others else "cyan" if baseline else "" for others, baseline in rows]


def _style(cell: Cell, style: str) -> str:
    if cell.missing:
        return "red" if cell.missing.startswith(("FAILED", "LOST")) else "yellow"
    return style if not cell.best else "bold green" if style != "dim" else "bold dim"


class CellsTable:
    """The long table for a reader; `what` and `state` are cut where they do not fit."""

    def __init__(self, cells: pd.DataFrame) -> None:
        from analysis.data import frame  # loads pandas, which a table that was saved is printed without

        self._lines = [("variant", "what", "value", "state")]
        for row in frame.records(cells):
            state = " ".join(filter(None, [str(row["state"]).lower(), row["reason"]]))
            self._lines.append((one_line(str(row["variant"])), one_line(_what(row)), _value(row), one_line(state)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        name, what, value, _ = (max(map(cell_len, column)) for column in zip(*self._lines, strict=True))
        name = min(name, max(options.max_width * 2 // 5, 16))
        left = options.max_width - name - value - 6
        what = max(min(what, left * 2 // 3), 1)
        for number, line in enumerate(self._lines):
            first = set_cell_size(_without_middle(line[0], name), name)
            cells = [first, set_cell_size(_cut(line[1], what), what), line[2].rjust(value)]
            text = "  ".join([*cells, _cut(line[3], max(left - what, 1))]).rstrip()
            shown = text if cell_len(text) <= options.max_width else set_cell_size(text, options.max_width)
            yield Text(shown, style="" if number else "bold", no_wrap=True)


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def _value(row: Row) -> str:
    error = "" if row["stderr"] is None else f" ± {row['stderr']:.2g}"
    return "" if row["value"] is None else f"{row['value']:.6g}{error}"


def _what(row: Row) -> str:
    """`evaluate piqa acc`, `measure tokens_per_second, batch 8, context 2048`."""
    at = [f"{name} {row[name]}" for name in ("batch", "context") if row[name] is not None]
    return ", ".join([" ".join(filter(None, [row["kind"], row["task"], row["metric"]])), *at])
