"""How many tokens of uptraining bring back what conversion lost: the curve of each layout and recipe, and the tokens at
which a share of its gap is recovered.

A curve joins the variants that differ in nothing but the length of their uptraining; its first point is the conversion
itself, at 0 tokens. A point's gap is its score's distance from a reference, larger being worse.
Legend: `R` draws of a bootstrap, `P` points of a curve.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis.data.frame import Row
from analysis.data.metrics import CONVERTED_PREFIX, METRICS
from analysis.data.replicates import SEEDS
from analysis.statistics import bootstrap
from analysis.statistics.columns import is_converted
from analysis.statistics.conversion import base_score, final
from analysis.statistics.estimate import Difference, Estimate, Floats, difference
from analysis.statistics.estimates import Estimates
from analysis.statistics.results import Results
from analysis.statistics.variant_rows import NOT_PLANNED

LENGTHS = ("uptrain.steps", "uptrain.tokens", "uptrain.epochs")
"""Swept values that say how long uptraining is; each rung of a chain has its steps."""
SHARES = (0.5, 0.9)
"""Of the gap, whose recovery tables show."""
TOKENS = "uptrain.tokens"
"""The column of the tokens that a variant was uptrained on."""
Reference = Literal["mha", "untouched"]


@dataclass(frozen=True)
class Point:
    """A score after so many tokens of uptraining, with that of the reference at the same length."""

    tokens: float
    score: Estimate
    reference: Estimate

    @property
    def gap(self) -> Difference:
        return difference(self.score, self.reference)


@dataclass(frozen=True)
class Curve:
    """A layout under one recipe: `row` is that of its longest uptraining, `points` begin with the conversion;
    `variants` names the rows that it joins."""

    name: str
    row: Row
    points: tuple[Point, ...]
    variants: tuple[str, ...] = ()

    @property
    def tokens(self) -> list[float]:
        return [point.tokens for point in self.points]


@dataclass(frozen=True)
class Recovery:
    """The curves of some results. `column` is the score after uptraining; `reference` says whose score is 0: that of
    the base's own layout, trained equally, where every length has it, or else the untouched base's. `missing`: the
    recipes without a curve, each with its first row and the reason."""

    column: str
    metric: str
    reference: Reference
    curves: list[Curve]
    missing: dict[str, tuple[Row, str]]

    @property
    def lengths(self) -> int:
        """The largest number of lengths, without the conversion, that a curve has."""
        return max((len(curve.points) - 1 for curve in self.curves), default=0)


@dataclass(frozen=True)
class TokensTo:
    """Tokens until a share of the gap is recovered, with the ends of the 95 % interval (None where errors are not
    known); infinite where the longest uptraining does not get there. None: there is no gap."""

    tokens: float | None
    interval: tuple[float, float] | None = None


def recovery(results: Results, column: str | None = None) -> Recovery | None:
    """The curves of the main axis, if it was scored after conversion, or else of the first score that was; `column`
    names another. None where no conversion was scored, or none of a score whose better direction is known."""
    rows, estimates = results.rows(), results.estimates
    column = column or _column(rows, estimates)
    if column is None:
        return None
    planned = of_recipes(rows, estimates).items()
    groups = {name: group for name, group in planned if _why(group[0], column) != NOT_PLANNED}
    references: tuple[Reference, ...] = ("mha", "untouched")
    for reference in references:
        curves = [_curve(name, group, column, reference, rows, estimates) for name, group in groups.items()]
        known = [curve for curve in curves if curve]
        # One reference for all: curves with different ones could not be compared.
        every = len(known) == _scored(groups.values(), f"{CONVERTED_PREFIX}{column}") and any(
            len(curve.points) > 1 for curve in known
        )
        if reference == "untouched" or every:
            break
    without = groups.keys() - {curve.name for curve in known}
    missing = {name: (group[0], _why(group[0], column)) for name, group in groups.items() if name in without}
    return Recovery(column, column.rpartition(".")[2], reference, known, missing) if groups else None


def _why(row: Row, column: str) -> str:
    return row.get(f"{CONVERTED_PREFIX}{column}_missing") or f"no {column} of its baseline"


def _column(rows: Sequence[Row], estimates: Estimates) -> str | None:
    names = [name.removesuffix("_missing") for name in (rows[0] if rows else ()) if name.endswith("_missing")]
    scored = [final(name) for name in names if is_converted(name) and name.rpartition(".")[2] in METRICS]
    return estimates.axis if estimates.axis in scored else next(iter(scored), None)


def of_recipes(rows: Sequence[Row], estimates: Estimates, baseline: str | None = None) -> dict[str, list[Row]]:
    """The rows of each layout and recipe, the shortest uptraining first, by the label without the length: those with
    this role, None being that of no baseline."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["baseline"] == baseline:
            groups[_recipe(row, estimates)].append(row)
    names = [_name(group[0], estimates) for group in groups.values()]
    taken = Counter(names)
    unique = [
        name if taken[name] == 1 else group[0]["variant"] for name, group in zip(names, groups.values(), strict=True)
    ]
    ordered = [sorted(group, key=_tokens_or_infinite) for group in groups.values()]
    return dict(zip(unique, ordered, strict=True))


def _recipe(row: Row, estimates: Estimates) -> str:
    """Equal for rows that differ in the length of their uptraining alone. A layout may be swept under several keys."""
    swept = {key: value for key, value in _overrides(row, estimates).items() if key not in (*LENGTHS, *SEEDS)}
    recipe = sorted(item for item in swept.items() if not item[0].startswith("layout"))
    first = estimates.members[row["variant"]][0]
    of = first.get("untouched") or first.get("source")  # of several sweeps, those on one base
    return repr((of, first.get("sources"), row["pattern"], row["kv_layers"], row["kv_heads"], recipe))


def _overrides(row: Row, estimates: Estimates) -> dict[str, str]:
    words = shlex.split(estimates.members[row["variant"]][0].get("overrides") or "")
    return dict(word.split("=", 1) for word in words)


def _name(row: Row, estimates: Estimates) -> str:
    """The row's label without the length."""
    name = f"{row['variant']} "
    for key, value in _overrides(row, estimates).items():
        if key in LENGTHS:
            name = name.replace(f" {key}={value} ", " ")
    return name.strip()


def tokens_of(row: Row) -> float | None:
    """Of a row's uptraining: 0 where none is planned, None while it is not known."""
    if (tokens := row.get(TOKENS)) is not None:
        return float(tokens)
    return 0.0 if row.get(f"{TOKENS}_missing") in (NOT_PLANNED, None) else None


def _tokens_or_infinite(row: Row) -> float:
    tokens = tokens_of(row)
    return math.inf if tokens is None else tokens


def _scored(groups: Iterable[Sequence[Row]], column: str) -> int:
    return sum(any(row.get(column) is not None for row in group) for group in groups)


def _curve(
    name: str, group: Sequence[Row], column: str, reference: Reference, rows: Sequence[Row], estimates: Estimates
) -> Curve | None:
    """None where the conversion or the reference of a scored length is missing."""
    by_name = {row["variant"]: row for row in rows}
    converted = f"{CONVERTED_PREFIX}{column}"
    start = next((found for row in group if converted in row and (found := estimates.of(row, converted))), None)
    base = base_score(group[0], converted, by_name, estimates)
    if start is None or base is None:
        return None
    points = [Point(0.0, start, base)]
    for row in group:
        score, tokens = estimates.of(row, column), tokens_of(row)
        if score is None or not tokens:
            continue
        other = base if reference == "untouched" else _trained_equally(row, column, by_name, estimates)
        if other is None:
            return None
        points.append(Point(tokens, score, other))
    return Curve(name, group[-1], tuple(points), tuple(row["variant"] for row in group))


def _trained_equally(row: Row, column: str, by_name: Mapping[str, Row], estimates: Estimates) -> Estimate | None:
    """The score of the base's own layout after as many tokens."""
    mha = by_name.get(row["mha"] or "")
    return estimates.of(mha, column) if mha and tokens_of(mha) == tokens_of(row) else None


def tokens_to(share: float, curve: Curve, metric: str) -> TokensTo:
    """Tokens at which this share of the gap at conversion is recovered, with an interval from draws: samples with
    replacement, the same ones for every point, and the noise of seeds (bootstrap.py)."""
    sign = -1.0 if METRICS[metric].higher_is_better else 1.0
    estimates = [estimate for point in curve.points for estimate in (point.score, point.reference)]
    observed = float(crossing(curve.tokens, [[sign * point.gap.value for point in curve.points]], share)[0])
    tokens = None if math.isnan(observed) else observed
    if not all(estimate.is_known for estimate in estimates) or tokens is None:
        return TokensTo(tokens)
    drawn = bootstrap.draws(estimates)
    crossings = crossing(curve.tokens, sign * (drawn[:, ::2] - drawn[:, 1::2]), share)
    crossings = np.where(np.isnan(crossings), 0.0, crossings)  # a draw without a gap has nothing to recover
    low, high = np.quantile(crossings, [0.025, 0.975], method="inverted_cdf")
    return TokensTo(tokens, (float(low), float(high)))


def crossing(tokens: Sequence[float], gaps: ArrayLike, share: float) -> Floats:
    """`[R]`: where each of the curves `gaps` `[R, P]` has first lost this share of its first value; infinite where it
    never does, NaN where its first value is not above zero.

    Between two points the gap is linear in the logarithm of tokens; before the first uptraining, whose start at 0 has
    no logarithm, in tokens: losses fall fastest at first, so that this is rather too many than too few.
    """
    gap_RP, token_P = np.asarray(gaps, float), np.asarray(tokens, float)
    target_R = (1 - share) * gap_RP[:, 0]
    found_R = np.full(len(gap_RP), math.inf)
    for place in range(len(token_P) - 1, 0, -1):  # backwards, so that the first crossing stays
        before_R, after_R = gap_RP[:, place - 1], gap_RP[:, place]
        crosses_R = (before_R > target_R) & (after_R <= target_R)
        part_R = np.where(crosses_R, before_R - target_R, 0.0) / np.where(crosses_R, before_R - after_R, 1.0)
        start, end = token_P[place - 1], token_P[place]
        at_R = start * (end / start) ** part_R if start > 0 else end * part_R
        found_R = np.where(crosses_R, at_R, found_R)
    return np.where(gap_RP[:, 0] > 0, found_R, math.nan)
