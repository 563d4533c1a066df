"""The space of a search: what a line leaves open, each swept key (or keys that are zipped) a dimension. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from sweeps.planning.grammar import Choice, Grid, Interval
from sweeps.store.errors import UserError

Value = str | int | float
Point = tuple[float, ...]
"""A number for each dimension: of a list, which of its choices; of an interval, the number itself."""
LAYOUT_NUMBER = "layout number"
"""The last dimension of a space in which some points leave several layouts: which of them."""
DIGITS = 4
"""Significant digits of a number from an interval."""
MAX_LISTED = 10_000
"""Points of a space at most that are listed to find those that were not tried."""


@dataclass(frozen=True)
class Listed:
    """Choices of some override lines each. `ordered`: they are numbers that rise, or fall, from one to the next."""

    choices: tuple[Choice, ...]

    @property
    def name(self) -> str:
        return " ".join(key for key, _ in map(_parts, self.choices[0]))

    @property
    def ordered(self) -> bool:
        columns = [[_number(_parts(choice[i])[1]) for choice in self.choices] for i in range(len(self.choices[0]))]
        return all(None not in column for column in columns) and _is_monotonic([*zip(*columns, strict=True)])

    @property
    def size(self) -> int:
        return len(self.choices)

    def texts(self, value: float) -> dict[str, Value]:
        return dict(map(_parts, self.choices[int(value)]))

    def read(self, texts: Mapping[str, Value]) -> float | None:
        """The value that some keys have in a journal; None where it is none of this dimension."""
        for i in range(self.size):
            if all(str(texts.get(key)) == text for key, text in self.texts(i).items()):
                return i
        return None

    def lines(self, value: float) -> Choice:
        return self.choices[int(value)]


@dataclass(frozen=True)
class Range:
    """All numbers of an interval."""

    interval: Interval

    @property
    def name(self) -> str:
        return self.interval.key

    @property
    def size(self) -> int | None:
        """None: without end."""
        return int(self.interval.high - self.interval.low) + 1 if self.interval.whole else None

    def texts(self, value: float) -> dict[str, Value]:
        return {self.name: int(value) if self.interval.whole else float(value)}

    def read(self, texts: Mapping[str, Value]) -> float | None:
        value = _number(texts.get(self.name))
        if value is None or not self.interval.low <= value <= self.interval.high:
            return None
        return None if self.interval.whole and value != int(value) else value

    def lines(self, value: float) -> Choice:
        return (self.interval.line(value),)

    def rounded(self, value: float) -> float:
        """With as many digits as a person would write: what a table and a label show is then the number itself."""
        short = float(f"{value:.{DIGITS}g}")
        return value if self.interval.whole else min(max(short, self.interval.low), self.interval.high)


@dataclass(frozen=True)
class LayoutNumber:
    """Which layout, of the several that the keys of a point leave: from the first to the last of them, in shares, as
    not all points leave equally many."""

    size: int
    name: str = LAYOUT_NUMBER

    def texts(self, value: float) -> dict[str, Value]:
        return {self.name: int(value)}

    def read(self, texts: Mapping[str, Value]) -> float | None:
        value = _number(texts.get(self.name, 0))
        return value if value is not None and value in range(self.size) else None

    def lines(self, _value: float) -> Choice:
        return ()

    def chosen(self, value: float, layouts: int) -> int:
        return int(value) * layouts // self.size


Dimension = Listed | Range | LayoutNumber


@dataclass(frozen=True)
class Space:
    """All points that a line leaves open. `fixed`: override lines that they share."""

    fixed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]

    @classmethod
    def of(cls, grid: Grid, layouts: int = 1) -> Space:
        """The space of a line. `layouts`: how many a point leaves at most. Raises UserError for a dimension that nobody
        can learn from."""
        for key, _ in (_parts(axis[0][i]) for axis in grid.axes if len(axis) > 1 for i in range(len(axis[0]))):
            if key.endswith(".seed"):
                raise UserError(
                    f"{key}: is not searched: the luckiest seed would win; set one, and run what a search found "
                    "again with others by `mlkv sweep`"
                )
        listed = [Listed(tuple(axis)) for axis in grid.axes]
        several = [LayoutNumber(layouts)] if layouts > 1 else []
        return cls(tuple(grid.fixed), (*listed, *map(Range, grid.intervals), *several))

    @property
    def size(self) -> int | None:
        """How many points there are; None: without end."""
        sizes = [dimension.size for dimension in self.dimensions]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def check_listed(self, option: str) -> None:
        """Raises UserError where an interval has no end of points."""
        for dimension in self.dimensions:
            if dimension.size is None:
                raise UserError(
                    f"{option}: {dimension.name} is an interval, which has no end of values; list them, or take "
                    "search.sampler=tpe, nsga2, gp or random"
                )

    def varying(self, point: Point) -> list[str]:
        """The override lines of a point in which points differ."""
        return [line for d, value in zip(self.dimensions, point, strict=True) for line in d.lines(value)]

    def texts(self, point: Point) -> dict[str, Value]:
        """What a journal holds of a point: the same whatever else the lists of a later line have."""
        return {key: text for d, v in zip(self.dimensions, point, strict=True) for key, text in d.texts(v).items()}

    def read(self, texts: Mapping[str, Value]) -> Point | None:
        """The point that a journal holds; None where this space has none of that kind."""
        keys = {key for d in self.dimensions for key in d.texts(0 if not isinstance(d, Range) else d.interval.low)}
        values = [dimension.read(texts) for dimension in self.dimensions]
        if texts.keys() - keys - {LAYOUT_NUMBER} or any(value is None for value in values):
            return None
        return tuple(value for value in values if value is not None)

    def points(self) -> Iterator[Point]:
        """Every point of a finite space, in order."""
        return itertools.product(*(_values(dimension) for dimension in self.dimensions))

    def distance(self, one: Point, other: Point) -> float:
        """How far apart two points are: in each dimension from 0 to 1, summed."""
        return sum(map(_distance, self.dimensions, one, other))


def _values(dimension: Dimension) -> Iterator[float]:
    first = int(dimension.interval.low) if isinstance(dimension, Range) else 0
    yield from range(first, first + (dimension.size or 0))


def _distance(dimension: Dimension, one: float, other: float) -> float:
    if isinstance(dimension, Listed) and not dimension.ordered:
        return float(one != other)
    if isinstance(dimension, Range):
        scale = math.log if dimension.interval.log else float
        extent = scale(dimension.interval.high) - scale(dimension.interval.low)
        return abs(scale(one) - scale(other)) / extent
    return abs(one - other) / max(1, (dimension.size or 1) - 1)


def _parts(line: str) -> tuple[str, str]:
    key, _, text = line.partition("=")
    return key, text


def _number(text: Value | None) -> float | None:
    """What is a number, or a share such as 1/4."""
    try:
        return None if text is None or isinstance(text, bool) else float(Fraction(str(text)))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _is_monotonic(rows: Sequence[tuple[float | None, ...]]) -> bool:
    """Whether no column turns back, and each row differs from the one before it."""
    columns = list(zip(*rows, strict=True))
    steady = all([*column] in (sorted(column), sorted(column, reverse=True)) for column in columns)
    return steady and all(a != b for a, b in itertools.pairwise(rows))
