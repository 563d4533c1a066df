"""What each swept option of a recipe does, and whether all layouts want the same of it.

An option is a swept key that is neither of the layout nor a seed; keys that were only varied together (`sweep.zip`) are
one option. Values are compared where everything else is equal: over the groups of rows that differ in nothing but this
option and have all of its values. Legend: `R` repetitions, `V` rows, `L` layouts, `O` values of an option.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from analysis.data.frame import Row
from analysis.data.numbers import on_axis
from analysis.data.replicates import SEEDS
from analysis.statistics import bootstrap
from analysis.statistics.elastic import Interval
from analysis.statistics.estimate import Difference, Estimate, Floats, contrast, mean_of, with_pooled_spread
from analysis.statistics.landscape import base_of, plans
from analysis.statistics.rules import spearman
from analysis.statistics.sources import Source

Keys = tuple[str, ...]
Value = tuple[str, ...]
"""One for each key of an option."""
FEWEST_LAYOUTS = 3
"""With different caches, for a rank correlation of what they want."""
_LAYOUT = ("sources", "kv_heads", "latent", "passes", "cache")


@dataclass(frozen=True)
class Level:
    """A value of an option. `mean` is its score over all groups, `behind` that less the best value's (0 for the best
    itself; turned so that more is worse); `of_layout` the same for each layout alone."""

    value: Value
    mean: float
    behind: Difference
    of_layout: Mapping[str, tuple[float, Difference]]


@dataclass(frozen=True)
class Option:
    """`groups`: of rows that differ in nothing but this option, and have all of its values."""

    keys: Keys
    groups: int
    layouts: Sequence[str]
    levels: Sequence[Level]
    """In the order of the sweep."""
    with_bytes: Interval | None
    """Spearman's correlation over layouts of KV bytes per token and the value that is best for each: below 0, layouts
    that cache less want more of it. None where values are no numbers, where all layouts want the same, and for fewer
    than three sizes of caches."""


@dataclass(frozen=True, eq=False)
class _Scored:
    """A row: its layout's name, what it has of each swept key, its cache and its score."""

    layout: str
    settings: Mapping[str, str]
    kv_bytes: float
    score: Estimate


def options(source: Source) -> list[Option]:
    """Every option of which two values or more are scored in otherwise equal rows, in the order of the sweep."""
    metric = source.results.estimates.metric("quality")
    sign = -1.0 if metric and metric.higher_is_better else 1.0
    planned = plans(source)
    rows = [row | planned[row["variant"]] for row in source.results.rows() if row["variant"] in planned]
    trained = [row for row in rows if row["baseline"] != "untouched"]
    scored, settings = _scored(trained, source), [_settings(row) for row in trained]
    return [option for keys in _axes(settings) if (option := _option(keys, scored, sign))]


def _settings(row: Row) -> dict[str, str]:
    pairs = (word.split("=", 1) for word in shlex.split(row["overrides"] or ""))
    return {key: value for key, value in pairs if not key.startswith(("layout", *SEEDS))}


def _scored(rows: Sequence[Row], source: Source) -> list[_Scored]:
    """Seeds have one spread for all rows, as in an analysis of variance."""
    estimates, names = source.results.estimates, _names_of_layouts(rows)
    found = [
        _Scored(
            layout=names[_layout(row)],
            settings=_settings(row),
            kv_bytes=float(row["kv_bytes_per_token"] or math.nan),
            score=score,
        )
        for row in rows
        if (score := estimates.of(row, "quality")) and on_axis(score.value)
    ]
    spread = with_pooled_spread([one.score for one in found])
    return [replace(one, score=score) for one, score in zip(found, spread, strict=True)]


def _layout(row: Row) -> tuple[object, ...]:
    return base_of(row), *(row[name] for name in _LAYOUT)


def _names_of_layouts(rows: Sequence[Row]) -> dict[tuple[object, ...], str]:
    """The words that the names of all rows of a layout have in common: its name without settings; with a number behind
    it where several layouts have the same."""
    words: dict[tuple[object, ...], list[list[str]]] = defaultdict(list)
    for row in rows:
        words[_layout(row)].append(row["variant"].split())
    names: dict[tuple[object, ...], str] = {}
    taken: Counter[str] = Counter()
    for layout, (first, *others) in words.items():
        name = " ".join(word for word in first if all(word in other for other in others))
        taken[name] += 1
        names[layout] = name if taken[name] == 1 else f"{name} #{taken[name]}"
    return names


def _axes(settings: Sequence[Mapping[str, str]]) -> list[Keys]:
    """The swept keys, those together that were never varied independently: whose pairs of values are not all there."""
    keys = dict.fromkeys(key for each in settings for key in each)
    values = {key: {each.get(key) for each in settings} for key in keys}
    varied = [key for key in keys if len(values[key]) > 1]
    group = {key: {key} for key in varied}
    for one, other in combinations(varied, 2):
        pairs = {(each.get(one), each.get(other)) for each in settings}
        if len(pairs) < len(values[one]) * len(values[other]):
            joined = group[one] | group[other]
            group |= dict.fromkeys(joined, joined)
    return list(dict.fromkeys(tuple(key for key in varied if key in group[first]) for first in varied))


def _option(keys: Keys, scored: Sequence[_Scored], sign: float) -> Option | None:
    """None where no group has all values."""
    groups: dict[tuple[object, ...], dict[Value, _Scored]] = defaultdict(dict)
    for one in scored:
        others = frozenset((key, value) for key, value in one.settings.items() if key not in keys)
        groups[one.layout, others][tuple(one.settings.get(key, "") for key in keys)] = one
    values = list(dict.fromkeys(value for group in groups.values() for value in group))
    whole = [group for group in groups.values() if len(group) == len(values)]
    if not whole or len(values) < 2:
        return None
    of_layout: dict[str, list[Mapping[Value, _Scored]]] = defaultdict(list)
    for group in whole:
        of_layout[group[values[0]].layout].append(group)
    overall = _compared(whole, values, sign)
    single = {name: _compared(members, values, sign) for name, members in of_layout.items()}
    levels = [
        Level(value, *overall[value], {name: compared[value] for name, compared in single.items()}) for value in values
    ]
    return Option(keys, len(whole), list(of_layout), levels, _with_bytes(of_layout, values, sign))


def _compared(
    groups: Sequence[Mapping[Value, _Scored]], values: Sequence[Value], sign: float
) -> dict[Value, tuple[float, Difference]]:
    """Of each value its mean score, and that less the best value's."""
    means = {value: math.fsum(group[value].score.value for group in groups) / len(groups) for value in values}
    best = min(values, key=lambda value: sign * means[value])

    def behind(value: Value) -> Difference:
        return contrast(mean_of([[(sign, group[value].score), (-sign, group[best].score)] for group in groups]))

    return {value: (means[value], behind(value)) for value in values}


def _with_bytes(
    of_layout: Mapping[str, Sequence[Mapping[Value, _Scored]]], values: Sequence[Value], sign: float
) -> Interval | None:
    numbers = [_number(value) for value in values]
    kv_bytes_L = np.array([groups[0][values[0]].kv_bytes for groups in of_layout.values()])
    if None in numbers or not np.isfinite(kv_bytes_L).all() or len(set(kv_bytes_L)) < FEWEST_LAYOUTS:
        return None
    number_O = np.array(numbers, float)
    estimates = [group[value].score for groups in of_layout.values() for group in groups for value in values]
    ends = np.cumsum([len(groups) for groups in of_layout.values()])[:-1]

    def correlations(values_RV: Floats) -> Floats:
        groups_RGO = sign * values_RV.reshape(len(values_RV), -1, len(values))
        mean_RLO = np.stack([part.mean(1) for part in np.split(groups_RGO, ends, axis=1)], axis=1)
        return spearman(kv_bytes_L, number_O[mean_RLO.argmin(2)])

    own = float(correlations(np.array([[estimate.value for estimate in estimates]]))[0])
    drawn_R = correlations(bootstrap.draws(estimates))
    # A draw in which all layouts want the same has no correlation, and speaks for none.
    return None if math.isnan(own) else Interval(own, *map(float, bootstrap.interval(np.nan_to_num(drawn_R))))


def _number(value: Value) -> float | None:
    try:
        return float(value[0]) if len(value) == 1 else None
    except ValueError:
        return None
