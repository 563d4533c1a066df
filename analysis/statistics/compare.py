"""Intervals, ties and front probabilities for the rows of a results table (results.py).

Differences, p-values and ties come from formulas (estimate.py), so that they depend on the numbers alone; only the
probability of being on the front and the hypervolume's interval are drawn (bootstrap.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.data.frame import Row
from analysis.data.metrics import Metric
from analysis.data.numbers import on_log_axis
from analysis.statistics import bootstrap
from analysis.statistics.columns import BASELINES, COMPARED
from analysis.statistics.estimate import ALPHA, Estimate, difference, holm, t_quantile
from analysis.statistics.estimates import Estimates


@dataclass(frozen=True)
class TableStatistics:
    """What holds for all rows of a table together, and for no part of it."""

    paired: bool = False
    """Whether the main axis is compared on the same samples."""
    comparisons: int = 0
    """How many differences from a baseline the p-values of the main axis are corrected for."""
    hypervolume: tuple[float, float, float] | None = None
    """Of log2 bytes by the main axis in its printed unit, with the ends of its 95 % interval."""


def compare(rows: list[Row], estimates: Estimates, references: Sequence[Row] = ()) -> TableStatistics:
    """Add the columns of columns.comparison_columns to `rows` in place, and return the statistics of the table.
    `references` are baselines outside the table: rows differ from them, and they compete with none."""
    if not rows:
        return TableStatistics()
    for name in dict.fromkeys([*COMPARED, *estimates.parts]):
        add_intervals(rows, name, estimates)
        add_ties(rows, name, estimates)
    corrected = {name: add_comparisons(rows, name, estimates, references) for name in COMPARED}
    paired = estimates.is_paired([*rows, *references], "quality")
    return TableStatistics(paired, corrected["quality"], _add_front(rows, estimates))


def add_intervals(rows: list[Row], name: str, estimates: Estimates) -> None:
    """The columns `NAME_low` and `NAME_high`."""
    for row in rows:
        value, stderr = row[name], row[f"{name}_stderr"]
        known = value is not None and stderr is not None
        reach = t_quantile(estimates.freedom(row, name)) * stderr if known else 0.0
        row[f"{name}_low"], row[f"{name}_high"] = (value - reach, value + reach) if known else (None, None)


def add_ties(rows: list[Row], name: str, estimates: Estimates) -> None:
    """The column `NAME_tied`: whether a row is the best, or within noise of it.

    A row has to differ from each of several that share the best value: a noisy one among them proves little. The best
    is chosen after looking at all rows, so that the p-values of all others are corrected (Holm); baselines do not
    compete, as they are not candidates for use.
    """
    metric, found = estimates.metric(name), _estimates(rows, name, estimates)
    contenders = [row for row in rows if row["baseline"] is None and row["variant"] in found]
    for row in rows:
        row[f"{name}_tied"] = None
    if metric is None or not contenders:
        return
    best = (max if metric.higher_is_better else min)(row[name] for row in contenders)
    leaders = [row for row in contenders if row[name] == best]
    others = [row for row in contenders if row[name] != best]
    p = [largest_p(found[row["variant"]], [found[leader["variant"]] for leader in leaders]) for row in others]
    for row, corrected in zip(others, corrected_p(p), strict=True):
        row[f"{name}_tied"] = corrected is not None and corrected > ALPHA
    for row in leaders:
        row[f"{name}_tied"] = True


def largest_p(row: Estimate, leaders: Sequence[Estimate]) -> float | None:
    """The largest p-value of the row's differences from the leaders; None where no error is known."""
    return max((p for leader in leaders if (p := difference(row, leader).p) is not None), default=None)


def corrected_p(p: Sequence[float | None]) -> list[float | None]:
    """Corrected by Holm for their number, without those that are None, which stay None."""
    corrected = iter(holm([each for each in p if each is not None]).tolist())
    return [None if each is None else next(corrected) for each in p]


def _estimates(rows: Sequence[Row], name: str, estimates: Estimates) -> dict[str, Estimate]:
    """Variant → its estimate, for the rows that have the score."""
    return {row["variant"]: found for row in rows if (found := estimates.of(row, name)) is not None}


def add_comparisons(rows: list[Row], name: str, estimates: Estimates, references: Sequence[Row] = ()) -> int:
    """The columns of differences from both baselines: `NAME_vs_BASELINE` and, with `_low`, `_high` and `_p` behind it,
    its interval and p-value. Returns how many comparisons the p-values are corrected for: the larger number of the two
    baselines, each of which is a family of tests of its own."""
    most, found = 0, _estimates([*rows, *references], name, estimates)
    values = {row["variant"]: row[name] for row in (*rows, *references)}
    for baseline in BASELINES:
        start = f"{name}_vs_{baseline}"
        for row in rows:
            ours, theirs = row[name], values.get(row[baseline])
            value = None if ours is None or theirs is None else ours - theirs
            row |= {start: value, f"{start}_low": None, f"{start}_high": None, f"{start}_p": None}
        pairs = [row for row in rows if row[baseline] in found and row["variant"] in found]
        pairs = [row for row in pairs if row[baseline] != row["variant"]]
        differences = [difference(found[row["variant"]], found[row[baseline]]) for row in pairs]
        corrected = corrected_p([each.p for each in differences])
        for row, each, p in zip(pairs, differences, corrected, strict=True):
            low, high = each.interval or (None, None)
            row |= {f"{start}_low": low, f"{start}_high": high, f"{start}_p": p}
        most = max(most, sum(p is not None for p in corrected))
    return most


def front_probabilities(costs: Sequence[Estimate], scores: Sequence[Estimate], metric: Metric) -> list[float | None]:
    """The probabilities of being on the front; None for all unless every error is known (that of an exact cost is zero)
    and some score has one. A row of unknown error would be drawn as exact, and its neighbours would look too
    certain."""
    noisy = any(score.influence or score.error for score in scores)
    if not noisy or not all(estimate.is_known for estimate in (*costs, *scores)):
        return [None] * len(scores)
    return list(bootstrap.front_probabilities(costs, scores, higher_is_better=metric.higher_is_better))


def _add_front(rows: list[Row], estimates: Estimates) -> tuple[float, float, float] | None:
    """The column `front_probability`, and the hypervolume of log2 bytes by the main score with its interval. The
    untouched base does not compete: it was trained on less than the variants."""
    for row in rows:
        row["front_probability"] = None
    metric, found = estimates.metric("quality"), _estimates(rows, "quality", estimates)
    trained = [row for row in rows if row["baseline"] != "untouched" and row["variant"] in found]
    contenders = [row for row in trained if on_log_axis(row["kv_bytes_per_token"])]
    if metric is None or not contenders:
        return None
    costs = [math.log2(row["kv_bytes_per_token"]) for row in contenders]
    scores = [found[row["variant"]] for row in contenders]
    shares = front_probabilities([Estimate(cost, 0.0) for cost in costs], scores, metric)
    for row, share in zip(contenders, shares, strict=True):
        row["front_probability"] = share
    return _hypervolume(costs, scores, metric)


def _hypervolume(costs: list[float], scores: list[Estimate], metric: Metric) -> tuple[float, float, float]:
    """In the printed unit, with the ends of its interval.

    The reference is the worst row's score at the largest cost. In each repetition it is that row's own draw: the error
    that all rows share then moves both front and reference, and the interval is that of the area between them.
    """
    sign = 1.0 if metric.higher_is_better else -1.0
    worst = min(range(len(scores)), key=lambda i: (sign * scores[i].value, costs[i], str(scores[i].content)))
    values, drawn = np.array([[score.value for score in scores]]), bootstrap.draws(scores, costs)
    volumes = [
        bootstrap.hypervolumes(costs, each, (max(costs), each[:, worst]), higher_is_better=metric.higher_is_better)
        for each in (values, drawn)
    ]
    low, high = bootstrap.interval(volumes[1])
    return metric.scale * float(volumes[0][0]), metric.scale * float(low), metric.scale * float(high)
