"""What a test reads out of a table or a figure, with the type that it has there; the stubs of pandas and matplotlib
allow many more."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.lines import Line2D

Value = TypeVar("Value")


def number(table: pd.DataFrame, row: str, column: str) -> float:
    """The number in one cell of a table whose index is text."""
    value = table.at[row, column]
    assert isinstance(value, int | float | np.integer | np.floating), f"{row}, {column}: {value!r} is no number"
    return float(value)


def present(value: Value | None) -> Value:
    """A value that must be there."""
    assert value is not None
    return value


def points(line: Line2D) -> list[tuple[float, float]]:
    """The points of a line, in the units of its data."""
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]
