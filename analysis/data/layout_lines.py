"""The lines of a `layouts.csv`: the layouts of an import's variants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analysis.data.frame import Row
from analysis.data.measurements import Line, on_line, read_lines
from analysis.data.published import identity

LAYOUTS = "layouts.csv"
_BASELINES = ("untouched", "mha")


@dataclass
class Layout:
    """A line of layouts.csv: its model, and its identity columns."""

    line: int
    model: str
    row: Row


def read_layouts(path: Path) -> list[Layout]:
    """Raises ValueError for what is wrong in the file, and for a variant or a model that has two lines."""
    try:
        lines = list(read_lines(path, {"variant"}))
    except ValueError as why:
        raise ValueError(f"{path}: {why}") from None
    layouts: list[Layout] = []
    for at, line in lines:
        try:
            layout = on_line(at, _layout, line)
        except ValueError as why:
            raise ValueError(f"{path}, {why}") from None
        layout.line = at
        for other in layouts:
            if layout.row["variant"] == other.row["variant"]:
                raise ValueError(f"{path}, line {at}: variant = {line['variant']}: is on line {other.line} too")
            if layout.model == other.model:
                raise ValueError(f"{path}, line {at}: model = {layout.model}: is on line {other.line} too")
        layouts.append(layout)
    return layouts


def _layout(line: Line) -> Layout:
    cells = {column: value.strip() for column, value in line.items()}
    if not cells["variant"]:
        raise ValueError("variant may not be empty")
    if cells.get("baseline") and cells["baseline"] not in _BASELINES:
        raise ValueError(f"baseline = {cells['baseline']}: choose from {', '.join(_BASELINES)}, or leave it empty")
    return Layout(0, cells.get("model") or cells["variant"], identity(cells))
