"""The points of the quality/memory figure, worked out once for the paper's figure and the report's interactive one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from analysis import frame, pareto
from analysis.frame import Row
from analysis.metrics import Metric, metric
from analysis.results import Shown, shown_scores


@dataclass(frozen=True)
class Point:
    """`x` is KV bytes per token by formula; `y` and `stderr` are the recorded score in the metric's printed unit."""

    variant: str
    family: str | None
    baseline: str | None
    x: int
    y: float
    stderr: float | None
    on_front: bool
    dominated_by: str | None


@dataclass(frozen=True)
class Cloud:
    """Every variant that has the score. The untouched base is a reference, not a contender: it was trained on less, so
    it neither stands on the front nor dominates. `missing` names the variants without a score, with the reason."""

    score: str
    label: str
    metric: Metric
    points: list[Point]
    missing: dict[str, str]

    @property
    def front(self) -> list[Point]:
        """Front points, cheapest first; equal ones together."""
        return sorted((p for p in self.points if p.on_front), key=lambda p: (p.x, p.y))

    def coverage(self, family: str) -> float:
        """Share of the contenders' box (log2 bytes by score) that a family's points dominate: 0 to 1.

        One number to compare families or patterns over all budgets; what stands at the box's worst edges adds nothing.
        """
        contenders = [point for point in self.points if point.baseline != "untouched"]
        own = [point for point in contenders if point.family == family]
        costs, scores = [math.log2(point.x) for point in contenders], [point.y for point in contenders]
        if not own or (box := (max(costs) - min(costs)) * (max(scores) - min(scores))) == 0:
            return 0.0
        worst = (min if self.metric.higher_is_better else max)(scores)
        return (
            pareto.hypervolume(
                [math.log2(point.x) for point in own],
                [point.y for point in own],
                (max(costs), worst),
                higher_is_better=self.metric.higher_is_better,
            )
            / box
        )

    @property
    def axis_label(self) -> str:
        better = "higher" if self.metric.higher_is_better else "lower"
        unit = "%, " if self.metric.scale == 100 else ""
        return f"{self.label} ({unit}{better} is better)"


def clouds(pivot: pd.DataFrame) -> list[Cloud]:
    """A cloud for each score that is shown, the main axis first. Raises ValueError for an unknown direction."""
    rows = frame.records(pivot)
    return [_cloud(rows, score) for score in shown_scores(pivot)]


def main_cloud(pivot: pd.DataFrame) -> Cloud | None:
    """The cloud of the sweep's main quality axis, or None where the plan names no score. Raises ValueError."""
    shown = shown_scores(pivot)
    return _cloud(frame.records(pivot), shown[0]) if shown else None


def _cloud(rows: list[Row], score: Shown) -> Cloud:
    scored, column = metric(score.metric), score.column
    drawn = [row for row in rows if row[column] is not None and row["kv_bytes_per_token"]]
    contenders = [row for row in drawn if row["baseline"] != "untouched"]
    costs = [row["kv_bytes_per_token"] for row in contenders]
    scores = [row[column] for row in contenders]
    on_front = pareto.front(costs, scores, higher_is_better=scored.higher_is_better)
    leaders = pareto.dominated_by(costs, scores, higher_is_better=scored.higher_is_better)
    standing = {
        row["variant"]: (on, None if leader is None else contenders[leader]["variant"])
        for row, on, leader in zip(contenders, on_front, leaders, strict=True)
    }
    points = [_point(row, column, scored, *standing.get(row["variant"], (False, None))) for row in drawn]
    missing = {row["variant"]: row[f"{column}_missing"] or "no KV bytes" for row in rows if row not in drawn}
    return Cloud(column, score.label, scored, points, missing)


def _point(row: Row, score: str, scored: Metric, on_front: bool, dominated_by: str | None) -> Point:
    stderr = row[f"{score}_stderr"]
    return Point(
        variant=row["variant"],
        family=row["family"],
        baseline=row["baseline"],
        x=row["kv_bytes_per_token"],
        y=row[score] * scored.scale,
        stderr=None if stderr is None else stderr * scored.scale,
        on_front=on_front,
        dominated_by=dominated_by,
    )
