"""The sweep grammar: Hydra's products, ranges and globs, with zipped lists and an experiment's own grid underneath."""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from fractions import Fraction
from typing import Any

from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep
from simpleeval import EvalWithCompoundTypes

from sweeps.planning.compose import Composer, parse_overrides
from sweeps.planning.config import SweepConfig
from sweeps.planning.parse import parse
from sweeps.planning.plain_config import Values
from sweeps.store.errors import UserError, choices, shown

Choice = tuple[str, ...]
"""Override lines that are set together."""


ONE_AT_A_TIME = ("name", "reports", "scale", "sweep", "cluster", "tracking", "stopping", "search", "resources")
"""Keys and groups of the sweep as a whole: they take one value."""

MAX_POINTS = 100_000
"""Points of one sweep at most. To plan one takes about 10 ms, and so many take a quarter of an hour."""

_OF_ANY_SIZE = ("layout.rule", "layout.spread", "layout.candidates")
"""Keys of an experiment's grid that a budget on the line leaves as they are: how a layout of that size is searched."""

_FUNCTIONS = {function.__name__: function for function in (int, float, str, abs, min, max, len, round)}
"""What a filter can call. Without simpleeval's random numbers, which would make another sweep of the same line."""


@dataclass(frozen=True)
class Interval:
    """All numbers from one to another, both included; `whole`: those without a fraction. `log`: their logarithms are
    what is spread evenly. `key`: as an override line begins with it."""

    key: str
    low: float
    high: float
    whole: bool = False
    log: bool = False

    def line(self, value: float) -> str:
        return f"{self.key}={int(value) if self.whole else float(value)!r}"


@dataclass(frozen=True)
class Line:
    """A swept key and the override lines it runs through; of an interval, that of its lower end."""

    key: str
    lines: tuple[str, ...]
    interval: Interval | None = None


@dataclass(frozen=True)
class Grid:
    """What a line runs through: override lines of one value, the axes of a product, and intervals."""

    fixed: list[str]
    axes: list[list[Choice]]
    intervals: list[Interval]


def points(composer: Composer, arguments: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Every point of the sweep: its override lines in all, and those of them that vary."""
    grid = grid_of(composer, arguments)
    for combination in itertools.product(*grid.axes):
        varying = [line for choice in combination for line in choice]
        yield [*grid.fixed, *varying], varying


def grid_of(composer: Composer, arguments: Sequence[str], *, search: bool = False) -> Grid:
    """What the swept keys of a line and of its experiment run through. `search`: it may have intervals, and any number
    of points. Raises UserError."""
    arguments = _without_replaced(arguments)
    overrides = parse_overrides(arguments)
    fixed = [line for line, o in zip(arguments, overrides, strict=True) if not o.is_sweep_override()]
    typed = [swept(composer, o, search=search) for o in overrides if o.is_sweep_override()]
    _check_sweepable(typed)
    # `sweep` can only be read from a whole configuration. A key that must be set (corpus.files) and is swept has values
    # in the points alone, so it gets its first one here.
    first = [line for axis in typed if axis.key != "experiment" for line in axis.lines[:1]]
    sweep = parse(composer([line for line in [*fixed, *first] if line])).sweep
    named = {o.key_or_group for o in overrides}
    of_experiment = _grid(composer, sweep, search)
    _check_sweepable(of_experiment)
    lines = (*of_experiment, *typed)
    _check_zip(sweep, {axis.key for axis in lines}, [axis.key for axis in lines if axis.interval])
    grid = [axis for axis in of_experiment if not _overridden(axis.key, named, sweep)]
    intervals = [axis.interval for axis in grid + typed if axis.interval]
    axes = _zip([axis for axis in grid + typed if not axis.interval], sweep)
    if not search:
        _check_number(math.prod(map(len, axes)), {axis.key: len(axis.lines) for axis in grid + typed})
    return Grid(fixed, axes, intervals)


def _without_replaced(arguments: Sequence[str]) -> list[str]:
    """The override lines, without those of one value that a later line for the same key replaces."""
    overrides = parse_overrides(arguments)
    last = {(o.key_or_group, o.package): i for i, o in enumerate(overrides)}
    return [
        line
        for i, (line, o) in enumerate(zip(arguments, overrides, strict=True))
        if not o.is_sweep_override() or last[o.key_or_group, o.package] == i
    ]


def _check_sweepable(axes: Sequence[Line]) -> None:
    for axis in axes:
        if len(axis.lines) > 1 and axis.key.partition(".")[0] in ONE_AT_A_TIME:
            listed = shown(", ".join(axis.lines))
            raise UserError(f"{axis.key}: cannot be swept; run one sweep for each of {listed}")


def _check_number(points: int, of_keys: dict[str, int]) -> None:
    if points > MAX_POINTS:
        numbers = ", ".join(f"{key} has {_count(number)}" for key, number in of_keys.items())
        raise UserError(
            f"the sweep has {_count(points)} points ({numbers}): at most {MAX_POINTS:,} are planned together"
        )


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**18 else "more than 10^18"


def swept(composer: Composer, override: Override, *, search: bool = False) -> Line:
    """The plain override lines that one swept override expands to. Raises UserError where it is no list of values, nor
    an interval of a search."""
    value, key = override.value(), override.key_or_group
    if isinstance(value, Glob):
        options = composer.options(key)
        matching = [name for name in options if _matches(name, value)]
        if not matching:
            fault = f"matches nothing; {choices('', options)}" if options else "is for groups of configurations"
            raise UserError(f"{override.input_line}: glob {fault}")
        return Line(key, tuple(f"{key}={name}" for name in matching))
    if isinstance(value, IntervalSweep):
        if not search:
            raise UserError(
                f"{override.input_line}: an interval has no end of values; list them (1,2,3), use range(), or have "
                "`mlkv search` choose"
            )
        interval = _interval(value, override)
        return Line(key, (interval.line(interval.low),), interval)
    if isinstance(value, RangeSweep):
        _check_range(value, override)
    values = override.sweep_string_iterator()
    return Line(key, tuple(f"{override.get_key_element()}={value}" for value in values))


def _interval(given: IntervalSweep, override: Override) -> Interval:
    """Raises UserError for one without values, and for a tag that is not `log`."""
    low, high, tags = given.start or 0, given.end or 0, {str(tag) for tag in given.tags}
    if unknown := next(iter(sorted(tags - {"log"})), None):
        raise UserError(f"{override.input_line}: tag {unknown}: {choices(unknown, ['log'])}")
    if not -math.inf < low < high < math.inf:
        raise UserError(f"{override.input_line}: has no values; interval(LOW,HIGH) needs numbers with LOW < HIGH")
    if "log" in tags and low <= 0:
        raise UserError(f"{override.input_line}: tag log: needs LOW > 0, as smaller numbers have no logarithm")
    whole = isinstance(low, int) and isinstance(high, int)
    return Interval(str(override.get_key_element()), low, high, whole, "log" in tags)


def _check_range(given: RangeSweep, override: Override) -> None:
    """Counts before anything is listed. Raises UserError for a range without values, and for one with too many."""
    try:
        start, stop, step = (Fraction(number or 0) for number in (given.start, given.stop, given.step))
        number = math.ceil((stop - start) / step)
    except (ArithmeticError, ValueError):  # infinite, not a number, or a step of 0
        number = 0
    if number < 1:
        raise UserError(f"{override.input_line}: has no values; range(START,STOP,STEP) runs from START to below STOP")
    _check_number(number, {override.key_or_group: number})


def _matches(name: str, glob: Glob) -> bool:
    return any(fnmatch(name, p) for p in glob.include) and not any(fnmatch(name, p) for p in glob.exclude)


def _grid(composer: Composer, sweep: SweepConfig, search: bool) -> list[Line]:
    """An experiment's `sweep.grid`: values in the grammar of the command line, or YAML lists."""
    lines = []
    for key, values in sweep.grid.items():
        if values == []:
            raise UserError(f"sweep.grid.{key} = []: has no values")
        text = ",".join(_encode(value) for value in values) if isinstance(values, list) else _encode(values)
        try:
            [override] = parse_overrides([f"{key}={text}"])
        except UserError as error:
            raise UserError(f"sweep.grid: {error}") from None
        lines.append(
            swept(composer, override, search=search) if override.is_sweep_override() else Line(key, (f"{key}={text}",))
        )
    return lines


def _encode(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(_encode(v) for v in value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _overridden(key: str, named: set[str], sweep: SweepConfig) -> bool:
    """Whether the command line replaces a key of the grid: it names the key, its group, a key that is zipped with it,
    or a layout's budget or share of the cache.

    Half of a zip would be a product with the other half. A group option (layout=mqa) sets all keys of its group anew,
    so the experiment's values for single ones no longer fit. A budget or a share chooses layers and heads by itself, or
    by the rule of a searched layout.
    """
    zipped = [] if "sweep.zip" in named else sweep.zipped
    partners = next((group for group in zipped if key in group), (key,))
    replaced = set(partners) | {key.partition(".")[0]}
    sized = bool(named & {"layout.budget", "layout.cache"})
    return bool(replaced & named) or (key.startswith("layout.") and sized and key not in _OF_ANY_SIZE)


def _check_zip(sweep: SweepConfig, swept_keys: set[str], intervals: Collection[str]) -> None:
    """Raises UserError for a key that is not swept, is an interval or is listed twice: it would silently make a product
    of the others."""
    keys = [key for group in sweep.zipped for key in group]
    for key in keys:
        if key not in swept_keys:
            raise UserError(
                f"sweep.zip: {key} is not swept; {choices(key, swept_keys) if swept_keys else 'nothing is'}"
            )
        if key in intervals:
            raise UserError(f"sweep.zip: {key} is an interval; only lists of values advance together")
        if keys.count(key) > 1:
            raise UserError(f"sweep.zip: {key} is listed {keys.count(key)} times; list it once")


def _zip(axes: list[Line], sweep: SweepConfig) -> list[list[Choice]]:
    """Axes with the zipped ones merged into one, each a list of choices."""
    merged: dict[str, list[Choice]] = {axis.key: [(line,) for line in axis.lines] for axis in axes}
    for group in sweep.zipped:
        present = [key for key in group if key in merged]
        lengths = {key: len(merged[key]) for key in present}
        if len(set(lengths.values())) > 1:
            numbers = ", ".join(f"{key} has {n}" for key, n in lengths.items())
            raise UserError(f"sweep.zip: keys that advance together need equally many values ({numbers})")
        if present:
            columns = [merged.pop(key) for key in present]
            merged[present[0]] = [tuple(itertools.chain(*row)) for row in zip(*columns, strict=True)]
    return list(merged.values())


def keeps(expression: str | None, names: Values, option: str = "sweep.filter") -> bool:
    """Whether a variant passes `option`. Raises UserError listing the names it may use, also where the expression is
    neither true nor false: `12` would keep every variant."""
    if expression is None:
        return True
    try:
        ast.parse(expression.strip(), mode="eval")  # simpleeval alone would pass over `budget = 6`
        passes = EvalWithCompoundTypes(names=names, functions=_FUNCTIONS).eval(expression)
        if not isinstance(passes, bool):
            raise TypeError(f"is {passes!r}, neither true nor false; compare it, as in `budget > 6`")
        return passes
    except Exception as error:  # whatever the expression raises is the expression's own fault
        reason = f"no key {error}" if isinstance(error, KeyError) else (str(error).splitlines() or [""])[0]
        known = ", ".join(sorted(names))
        raise UserError(
            f"{option} = {shown(expression)}: {shown(reason) or type(error).__name__}; names: {known}"
        ) from None
