"""Intervals, ties and chances for the rows of the pivot (results.py).

Differences, p-values and ties come from formulas (estimate.py), so that they depend on the numbers alone; only the
chance to be on the front and the hypervolume's interval are drawn (bootstrap.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from analysis.data.frame import Row
from analysis.data.metrics import Metric
from analysis.statistics import bootstrap
from analysis.statistics.estimate import ALPHA, Estimate, difference, holm, t_quantile
from analysis.statistics.estimates import Estimates

BASELINES = ("untouched", "mha")
COMPARED = ("quality", "accuracy")
"""The scores whose difference from the baselines is judged."""


def judge(rows: list[Row], estimates: Estimates) -> Row:
    """Add the columns of `columns` to `rows` in place, and return what holds for all rows together: whether the main
    axis is `paired` (compared on the same samples), how many differences were `compared`, the `hypervolume` with its
    interval, and of which `rows` all that is."""
    if not rows:
        return {}
    for name in dict.fromkeys(["quality", "accuracy", *estimates.parts]):
        add_intervals(rows, name, estimates)
        add_ties(rows, name, estimates)
    compared = {name: _add_comparisons(rows, name, estimates) for name in COMPARED}
    return {
        "paired": estimates.is_paired(rows, "quality"),
        "compared": compared["quality"],
        "hypervolume": _add_front(rows, estimates),
        "rows": [row["variant"] for row in rows],
    }


def columns(scores: Sequence[str]) -> dict[str, str]:
    """Names and dtypes of what is added, for these scores. `_low` and `_high` end the 95 % interval; `_tied` is whether
    the row is the best contender or within noise of it; `_vs_BASELINE_p` is corrected for all rows (Holm)."""
    added = {f"{name}{end}": "Float64" for name in scores for end in ("_low", "_high")}
    added |= {f"{name}_tied": "boolean" for name in scores}
    added |= {
        f"{name}_vs_{baseline}_{end}": "Float64"
        for name in COMPARED
        for baseline in BASELINES
        for end in ("low", "high", "p")
    }
    return {**added, "front_probability": "Float64"}


def add_intervals(rows: list[Row], name: str, estimates: Estimates) -> None:
    """The columns `NAME_low` and `NAME_high`."""
    for row in rows:
        value, stderr = row[name], row[f"{name}_stderr"]
        known = value is not None and stderr is not None
        reach = t_quantile(estimates.freedom(row, name)) * stderr if known else 0.0
        row[f"{name}_low"], row[f"{name}_high"] = (value - reach, value + reach) if known else (None, None)


def add_ties(rows: list[Row], name: str, estimates: Estimates) -> None:
    """The column `NAME_tied`. Of several with the best value, a row has to differ from each."""
    metric, found = estimates.metric(name), _estimates(rows, name, estimates)
    contenders = [row for row in rows if row["baseline"] is None and row["variant"] in found]
    for row in rows:
        row[f"{name}_tied"] = None
    if metric is None or not contenders:
        return
    best = (max if metric.higher_is_better else min)(row[name] for row in contenders)
    leaders = [row for row in contenders if row[name] == best]
    others = [row for row in contenders if row[name] != best]
    p = [max_p(found[row["variant"]], [found[leader["variant"]] for leader in leaders]) for row in others]
    for row, corrected in zip(others, corrected_p(p), strict=True):
        row[f"{name}_tied"] = corrected is not None and corrected > ALPHA
    for row in leaders:
        row[f"{name}_tied"] = True


def max_p(row: Estimate, leaders: Sequence[Estimate]) -> float | None:
    """That the row differs from all leaders; None where nothing is known of any error."""
    return max((p for leader in leaders if (p := difference(row, leader).p) is not None), default=None)


def corrected_p(p: Sequence[float | None]) -> list[float | None]:
    """By Holm, for as many as there are; None stays None."""
    corrected = iter(holm([each for each in p if each is not None]).tolist())
    return [None if each is None else next(corrected) for each in p]


def _estimates(rows: Sequence[Row], name: str, estimates: Estimates) -> dict[str, Estimate]:
    """By row, of those that have the score."""
    return {row["variant"]: found for row in rows if (found := estimates.of(row, name)) is not None}


def _add_comparisons(rows: list[Row], name: str, estimates: Estimates) -> int:
    """With both baselines; how many comparisons were corrected for."""
    most, found = 0, _estimates(rows, name, estimates)
    for baseline in BASELINES:
        start = f"{name}_vs_{baseline}"
        for row in rows:
            row |= {f"{start}_low": None, f"{start}_high": None, f"{start}_p": None}
        pairs = [row for row in rows if row[baseline] in found and row["variant"] in found]
        pairs = [row for row in pairs if row[baseline] != row["variant"]]
        differences = [difference(found[row["variant"]], found[row[baseline]]) for row in pairs]
        corrected = corrected_p([each.p for each in differences])
        for row, each, p in zip(pairs, differences, corrected, strict=True):
            low, high = each.interval or (None, None)
            row |= {f"{start}_low": low, f"{start}_high": high, f"{start}_p": p}
        most = max(most, sum(p is not None for p in corrected))
    return most


def front_chances(costs: Sequence[Estimate], scores: Sequence[Estimate], metric: Metric) -> list[float | None]:
    """The probabilities of being on the front; None for all unless every error is known (of an exact cost: none), and
    some score has one. A row whose error nobody knows would make its neighbours look surer than they are."""
    noisy = any(score.influence or score.error for score in scores)
    if not noisy or not all(estimate.is_known for estimate in (*costs, *scores)):
        return [None] * len(scores)
    return list(bootstrap.front_probabilities(costs, scores, higher_is_better=metric.higher_is_better))


def _add_front(rows: list[Row], estimates: Estimates) -> tuple[float, ...] | None:
    """Chances to be on the front, and the hypervolume of log2 bytes by the main score with its interval. The untouched
    base is no contender (analysis.figures.cloud)."""
    for row in rows:
        row["front_probability"] = None
    metric, found = estimates.metric("quality"), _estimates(rows, "quality", estimates)
    contenders = [r for r in rows if r["baseline"] != "untouched" and r["variant"] in found and r["kv_bytes_per_token"]]
    if metric is None or not contenders:
        return None
    costs = [math.log2(row["kv_bytes_per_token"]) for row in contenders]
    scores = [found[row["variant"]] for row in contenders]
    for row, chance in zip(
        contenders, front_chances([Estimate(cost, 0.0) for cost in costs], scores, metric), strict=True
    ):
        row["front_probability"] = chance
    return _hypervolume(costs, scores, metric)


def _hypervolume(costs: list[float], scores: list[Estimate], metric: Metric) -> tuple[float, ...]:
    """In the printed unit, with the ends of its interval. Its reference is the worst row, with that row's own draws."""
    sign = 1.0 if metric.higher_is_better else -1.0
    worst = min(range(len(scores)), key=lambda i: (sign * scores[i].value, costs[i], str(scores[i].content)))
    values, drawn = np.array([[score.value for score in scores]]), bootstrap.draws(scores, costs)
    volumes = [
        bootstrap.hypervolumes(costs, each, (max(costs), each[:, worst]), higher_is_better=metric.higher_is_better)
        for each in (values, drawn)
    ]
    low, high = bootstrap.interval(volumes[1])
    return tuple(metric.scale * float(number) for number in (volumes[0][0], low, high))
