"""The sweep grammar: Hydra's products, ranges and globs, with zipped lists and an experiment's own grid underneath."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from hydra.core.override_parser.types import Glob, Override
from simpleeval import EvalWithCompoundTypes, InvalidExpression

from sweeps.planning.compose import Composer, Values, parse_overrides
from sweeps.planning.config import SweepConfig, parse
from sweeps.store.errors import UserError, choices

Choice = tuple[str, ...]
"""Override lines that are set together."""


ONE_AT_A_TIME = ("name", "reports", "scale")
"""Keys of the sweep as a whole: they take one value."""


@dataclass(frozen=True)
class Line:
    """A swept key and the override lines it runs through."""

    key: str
    lines: tuple[str, ...]


def points(composer: Composer, arguments: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Every point of the sweep: its override lines in all, and those of them that vary."""
    arguments = _without_replaced(arguments)
    overrides = parse_overrides(arguments)
    fixed = [line for line, o in zip(arguments, overrides, strict=True) if not o.is_sweep_override()]
    typed = [swept(composer, o) for o in overrides if o.is_sweep_override()]
    for axis in typed:
        if axis.key in ONE_AT_A_TIME:
            raise UserError(f"{axis.key}: cannot be swept; run one sweep for each of {', '.join(axis.lines)}")
    # `sweep` can only be read from a whole configuration. A key that must be set (corpus.files) and is swept has values
    # in the points alone, so it gets its first one here.
    first = [line for axis in typed if axis.key != "experiment" for line in axis.lines[:1]]
    sweep = parse(composer([line for line in [*fixed, *first] if line])).sweep
    named = {o.key_or_group for o in overrides}
    of_experiment = _grid(composer, sweep)
    _check_zip(sweep, {axis.key for axis in (*of_experiment, *typed)})
    grid = [axis for axis in of_experiment if not _overridden(axis.key, named, sweep)]
    for combination in itertools.product(*_zip(grid + typed, sweep)):
        varying = [line for choice in combination for line in choice]
        yield [*fixed, *varying], varying


def _without_replaced(arguments: Sequence[str]) -> list[str]:
    """The override lines, without those of one value that a later line for the same key replaces."""
    overrides = parse_overrides(arguments)
    last = {(o.key_or_group, o.package): i for i, o in enumerate(overrides)}
    return [
        line
        for i, (line, o) in enumerate(zip(arguments, overrides, strict=True))
        if not o.is_sweep_override() or last[o.key_or_group, o.package] == i
    ]


def swept(composer: Composer, override: Override) -> Line:
    """The plain override lines that one swept override expands to."""
    value = override.value()
    if isinstance(value, Glob):
        options = composer.options(override.key_or_group)
        matching = [name for name in options if _matches(name, value)]
        return Line(override.key_or_group, tuple(f"{override.key_or_group}={name}" for name in matching))
    values = override.sweep_string_iterator()
    return Line(override.key_or_group, tuple(f"{override.get_key_element()}={value}" for value in values))


def _matches(name: str, glob: Glob) -> bool:
    return any(fnmatch(name, p) for p in glob.include) and not any(fnmatch(name, p) for p in glob.exclude)


def _grid(composer: Composer, sweep: SweepConfig) -> list[Line]:
    """An experiment's `sweep.grid`: values in the grammar of the command line, or YAML lists."""
    lines = []
    for key, values in sweep.grid.items():
        text = ",".join(_encode(value) for value in values) if isinstance(values, list) else str(values)
        [override] = parse_overrides([f"{key}={text}"])
        lines.append(swept(composer, override) if override.is_sweep_override() else Line(key, (f"{key}={text}",)))
    return lines


def _encode(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(_encode(v) for v in value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _overridden(key: str, named: set[str], sweep: SweepConfig) -> bool:
    """Whether the command line replaces a key of the grid: it names the key, its group, a key that is zipped with it,
    or a layout's budget or share of the cache.

    Half of a zip would be a product with the other half. A group option (layout=mqa) sets all keys of its group anew,
    so the experiment's values for single ones no longer fit. A budget or a share chooses layers and heads by itself.
    """
    zipped = [] if "sweep.zip" in named else sweep.zipped
    partners = next((group for group in zipped if key in group), (key,))
    replaced = set(partners) | {key.partition(".")[0]}
    sized = bool(named & {"layout.budget", "layout.cache"})
    return bool(replaced & named) or (key.startswith("layout.") and sized)


def _check_zip(sweep: SweepConfig, swept_keys: set[str]) -> None:
    """Raises UserError for a key that is not swept, or listed twice: it would silently make a product of the others."""
    keys = [key for group in sweep.zipped for key in group]
    for key in keys:
        if key not in swept_keys:
            raise UserError(
                f"sweep.zip: {key} is not swept; {choices(key, swept_keys) if swept_keys else 'nothing is'}"
            )
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


def keeps(expression: str | None, names: Values) -> bool:
    """Whether a variant passes `sweep.filter`. Raises UserError listing the names it may use."""
    if expression is None:
        return True
    try:
        return bool(EvalWithCompoundTypes(names=names).eval(expression))
    except (InvalidExpression, SyntaxError, TypeError, AttributeError, KeyError) as error:
        known = ", ".join(sorted(names))
        raise UserError(f"sweep.filter = {expression}: {str(error).splitlines()[0]}; names: {known}") from None
