"""Intervals, ties and chances for the rows of the pivot (results.py), from samples where they were kept.

Scores over the same samples are compared on them, pair by pair; others by their standard errors, as normal and
independent. Of several seeds the mean is judged, with the spread between seeds as further noise.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.data.frame import Row
from analysis.data.metrics import METRICS, Metric
from analysis.data.samples import Outcomes, Samples, stacked
from analysis.statistics import bootstrap
from analysis.statistics.bootstrap import Floats

BASELINES = ("untouched", "mha")
COMPARED = ("quality", "accuracy")
"""The scores whose difference from the baselines is judged."""


@dataclass(frozen=True)
class Scored:
    """A variant's value of one (task, metric), and the step that found it."""

    value: float
    stderr: float | None
    step: str | None
    task: str
    metric: str


Cells = Mapping[tuple[str, str], Scored]
"""By variant and column (`task.metric`)."""


@dataclass
class Judge:
    """Draws `[R]` of every score of every variant, made when they are asked for."""

    cells: Cells
    samples: Samples | None
    paired: bool = False
    """Whether any comparison was on the same samples."""
    _of_column: dict[str, dict[str, Floats]] = field(default_factory=dict)

    def column(self, name: str) -> dict[str, Floats]:
        if name not in self._of_column:
            self._of_column[name] = self._drawn(name)
        return self._of_column[name]

    def _drawn(self, column: str) -> dict[str, Floats]:
        scored = {variant: cell for (variant, name), cell in self.cells.items() if name == column}
        drawn: dict[str, Floats] = {}
        for samples, alike in self._by_samples(scored).items():
            draws_RV = bootstrap.bootstrap(*stacked(alike.values()), samples)
            drawn |= dict(zip(alike, draws_RV.T, strict=True))
            self.paired |= len(alike) > 1
        for variant, cell in scored.items():
            if variant not in drawn:
                drawn[variant] = bootstrap.normal(cell.value, cell.stderr, variant, column)
        return drawn

    def _by_samples(self, scored: Mapping[str, Scored]) -> dict[str, dict[str, Outcomes]]:
        alike: dict[str, dict[str, Outcomes]] = defaultdict(dict)
        for variant, cell in scored.items():
            if self.samples and cell.step and (found := self.samples.outcomes(cell.step, cell.task, cell.metric)):
                alike[found.samples][variant] = found
        return alike

    def mean(self, columns: Sequence[str]) -> dict[str, Floats]:
        """Of variants that have all the columns."""
        parts = [self.column(name) for name in columns]
        whole = set.intersection(*(set(part) for part in parts)) if parts else set()
        return {variant: _mean([part[variant] for part in parts]) for variant in sorted(whole)}


def _mean(draws: Sequence[Floats]) -> Floats:
    return np.asarray(np.mean(draws, axis=0))


def draws_of_rows(
    rows: Sequence[Row], name: str, members: Mapping[str, Sequence[Row]], drawn: Mapping[str, Floats]
) -> dict[str, Floats]:
    """Draws of a score's value in each row: of its one variant, or of the mean of its seeds with their spread."""
    found = {}
    for row in rows:
        label, seeds = row["variant"], [m for m in members[row["variant"]] if m["variant"] in drawn]
        if row[name] is None or not seeds:
            continue
        mean = _mean([drawn[seed["variant"]] for seed in seeds])
        if len(seeds) > 1:
            mean = mean + bootstrap.student(0.0, row[f"{name}_stderr"], len(seeds) - 1, label, name)
        found[label] = mean
    return found


def judge(rows: list[Row], members: Mapping[str, Sequence[Row]], cells: Cells, samples: Samples | None) -> Row:
    """Add the columns of `columns` to `rows` in place, and return what holds for all rows together.

    `members` are the rows of the variants behind each row.
    """
    if not rows:
        return {}
    columns = (rows[0]["accuracy_parts"] or "").split()
    axis, bench = rows[0]["quality_score"], Judge(cells, samples)
    parts = {column: bench.column(column) for column in columns}
    accuracy = bench.mean(columns)
    drawn = {"quality": accuracy if axis == "accuracy" else bench.column(axis), "accuracy": accuracy, **parts}
    metrics = {name: METRICS.get(_metric(name, axis)) for name in drawn}
    of_rows = {name: draws_of_rows(rows, name, members, draws) for name, draws in drawn.items()}
    for name, draws in of_rows.items():
        _add_intervals(rows, name, draws, members)
        _add_ties(rows, name, draws, metrics[name])
    compared = {name: _add_comparisons(rows, name, of_rows[name]) for name in COMPARED}
    return {
        "paired": bench.paired,
        "compared": compared["quality"],
        "hypervolume": _add_front(rows, of_rows["quality"], metrics["quality"]),
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


def mark_ties(rows: list[Row], name: str, metric: Metric) -> None:
    """The column `NAME_tied` of a score that is not the main axis or in the accuracy, by its standard errors."""
    scored = [row for row in rows if row.get(name) is not None]
    draws = {row["variant"]: bootstrap.normal(row[name], row[f"{name}_stderr"], row["variant"], name) for row in scored}
    _add_ties(rows, name, draws, metric)


def _metric(name: str, axis: str) -> str:
    source = axis if name == "quality" else name
    return source.rpartition(".")[2]


def _add_intervals(
    rows: list[Row], name: str, draws: Mapping[str, Floats], members: Mapping[str, Sequence[Row]]
) -> None:
    for row in rows:
        row[f"{name}_low"] = row[f"{name}_high"] = None
        value, stderr = row[name], row[f"{name}_stderr"]
        if row["variant"] not in draws or stderr is None:
            continue
        seeds = sum(member[name] is not None for member in members[row["variant"]])
        if seeds > 1:
            reach = bootstrap.t_quantile(seeds - 1) * stderr
            row[f"{name}_low"], row[f"{name}_high"] = value - reach, value + reach
        else:
            low, high = bootstrap.interval(draws[row["variant"]])
            row[f"{name}_low"], row[f"{name}_high"] = float(low), float(high)


def _add_ties(rows: list[Row], name: str, draws: Mapping[str, Floats], metric: Metric | None) -> None:
    for row in rows:
        row[f"{name}_tied"] = None
    contenders = [row for row in rows if row["baseline"] is None and row["variant"] in draws]
    if metric is None or not contenders:
        return
    best = (max if metric.higher_is_better else min)(contenders, key=lambda row: row[name])
    differences = np.column_stack([draws[best["variant"]] - draws[row["variant"]] for row in contenders])
    p = bootstrap.p_values(differences)
    others = [i for i, row in enumerate(contenders) if row[name] != best[name]]
    p[others] = bootstrap.holm(p[others])
    for row, chance in zip(contenders, p, strict=True):
        row[f"{name}_tied"] = bool(row[name] == best[name] or chance > bootstrap.ALPHA)


def _add_comparisons(rows: list[Row], name: str, draws: Mapping[str, Floats]) -> int:
    """With both baselines; how many comparisons were corrected for."""
    most = 0
    for baseline in BASELINES:
        start = f"{name}_vs_{baseline}"
        for row in rows:
            row |= {f"{start}_low": None, f"{start}_high": None, f"{start}_p": None}
        pairs = [row for row in rows if row[baseline] in draws and row["variant"] in draws]
        pairs = [row for row in pairs if row[baseline] != row["variant"]]
        if not pairs:
            continue
        differences = np.column_stack([draws[row["variant"]] - draws[row[baseline]] for row in pairs])
        lows, highs = bootstrap.interval(differences)
        corrected = bootstrap.holm(bootstrap.p_values(differences))
        for row, low, high, p in zip(pairs, lows, highs, corrected, strict=True):
            row |= {f"{start}_low": float(low), f"{start}_high": float(high), f"{start}_p": float(p)}
        most = max(most, len(pairs))
    return most


def _add_front(rows: list[Row], draws: Mapping[str, Floats], metric: Metric | None) -> tuple[float, ...] | None:
    """Chances to be on the front, and the hypervolume of log2 bytes by the main score with its interval. The untouched
    base is no contender (analysis.cloud); without any standard error there are no chances."""
    for row in rows:
        row["front_probability"] = None
    contenders = [r for r in rows if r["baseline"] != "untouched" and r["variant"] in draws and r["kv_bytes_per_token"]]
    if metric is None or not contenders:
        return None
    costs = [math.log2(row["kv_bytes_per_token"]) for row in contenders]
    draws_RV = np.column_stack([draws[row["variant"]] for row in contenders])
    shares = bootstrap.on_front(costs, draws_RV, higher_is_better=metric.higher_is_better).mean(0)
    if any(row["quality_stderr"] is not None for row in contenders):
        for row, share in zip(contenders, shares, strict=True):
            row["front_probability"] = float(share)
    scores = [row["quality"] for row in contenders]
    worst = scores.index((min if metric.higher_is_better else max)(scores))
    better: dict[str, Any] = {"higher_is_better": metric.higher_is_better}
    (value,) = bootstrap.hypervolumes(costs, np.array([scores]), (max(costs), scores[worst]), **better)
    volumes = bootstrap.hypervolumes(costs, draws_RV, (max(costs), draws_RV[:, worst]), **better)
    low, high = bootstrap.interval(volumes)
    return tuple(metric.scale * float(number) for number in (value, low, high))
