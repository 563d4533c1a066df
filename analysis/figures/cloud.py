"""The points of the quality/cost figures, worked out once for the paper's figures and the report's interactive one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from analysis.data import machine
from analysis.data.frame import Row
from analysis.data.metrics import METRICS, Metric, metric
from analysis.statistics import pareto
from analysis.statistics.compare import front_chances
from analysis.statistics.estimate import Estimate
from analysis.statistics.estimates import Estimates, of_speed
from analysis.statistics.results import Results
from analysis.statistics.scores import ScoreColumn, other_scores, shown_scores

SURE = 0.95
"""A point is drawn as one of the front from this probability on, and as none of it from one minus this on."""


@dataclass(frozen=True)
class Cost:
    """What a variant is charged: a column of the results, on a logarithmic axis."""

    column: str
    label: str
    missing: str
    higher_is_better: bool = False

    def charged(self, x: float) -> float:
        """The cost as a number that is better when lower, in octaves."""
        return -math.log2(x) if self.higher_is_better else math.log2(x)

    def estimate(self, row: Row) -> Estimate:
        """The same with its error: bytes are counted, speeds are measured."""
        return of_speed(row) if self is SPEED else Estimate(self.charged(row[self.column]), 0.0)

    def machine(self, row: Row) -> str | None:
        """Only rows of one are compared. Bytes are the same everywhere."""
        return str(row["machine"] or machine.UNKNOWN) if self is SPEED else None


MEMORY = Cost("kv_bytes_per_token", "KV cache, bytes per token", "no KV bytes")
SPEED = Cost("tokens_per_second", "fastest decode, tokens per second", "no decode speed", higher_is_better=True)


@dataclass(frozen=True)
class Point:
    """`x` is the cost; `y` and `stderr` are the recorded score in the metric's printed unit. `chance` is the
    probability of being on the front, None where some point's error is not known. A `machine` is told where several
    are: the point is on the front of those, and dominated by those, that were measured on the same."""

    variant: str
    family: str | None
    baseline: str | None
    x: float
    y: float
    stderr: float | None
    on_front: bool
    dominated_by: str | None
    chance: float | None = None
    machine: str | None = None
    x_stderr: float | None = None

    @property
    def standing(self) -> str:
        """`front`, `dominated`, or `undecided` where noise allows both. By the figures alone without errors."""
        if self.chance is None:
            return "front" if self.on_front else "dominated"
        return "front" if self.chance >= SURE else "undecided" if self.chance > 1 - SURE else "dominated"


@dataclass(frozen=True)
class Cloud:
    """Every variant that has the score. The untouched base is a reference, not a contender: it was trained on less, so
    it neither stands on the front nor dominates. `missing` names the variants without a score, with the reason."""

    score: str
    label: str
    metric: Metric
    points: list[Point]
    missing: dict[str, str]
    metric_name: str = ""
    cost: Cost = MEMORY
    paired: bool = False
    """Whether chances come from comparing variants on the same samples, more sharply than standard errors tell."""

    machines: dict[str | None, str] = field(default_factory=dict)
    """Letters of the machines that speeds were measured on, where they are several."""

    @property
    def front(self) -> list[Point]:
        """Front points, cheapest first; equal ones together."""
        return sorted((p for p in self.points if p.on_front), key=lambda p: (self.cost.charged(p.x), p.y))

    @property
    def fronts(self) -> list[list[Point]]:
        """The front of each machine."""
        front = self.front
        return [[p for p in front if p.machine == each] for each in dict.fromkeys(p.machine for p in front)]

    def name(self, point: Point) -> str:
        """A point's name, marked with its machine where there are several."""
        mark = self.machines.get(point.machine)
        return f"{point.variant} ({mark})" if mark else point.variant

    @property
    def contenders(self) -> list[Point]:
        return [point for point in self.points if point.baseline != "untouched"]

    def coverage(self, family: str) -> float:
        """Share of the contenders' box (cost in octaves by score) that a family's points dominate: 0 to 1.

        One number to compare families or patterns over all budgets; what stands at the box's worst edges adds nothing.
        """
        own = [point for point in self.contenders if point.family == family]
        costs = [self.cost.charged(point.x) for point in self.contenders]
        scores = [point.y for point in self.contenders]
        if not own or (box := (max(costs) - min(costs)) * (max(scores) - min(scores))) == 0:
            return 0.0
        worst = (min if self.metric.higher_is_better else max)(scores)
        return (
            pareto.hypervolume(
                [self.cost.charged(point.x) for point in own],
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


def clouds(results: Results) -> list[Cloud]:
    """A cloud for each score that is shown, the main axis first. Raises ValueError for an unknown direction."""
    return [cloud(results, score) for score in shown_scores(results)]


def main_cloud(results: Results) -> Cloud | None:
    """The cloud of the sweep's main quality axis, or None where the plan names no score. Raises ValueError."""
    shown = shown_scores(results)
    return cloud(results, shown[0]) if shown else None


def cloud(results: Results, score: ScoreColumn, cost: Cost = MEMORY) -> Cloud:
    """The cloud of one score. Raises ValueError for an unknown direction."""
    rows, estimates = results.rows(), results.estimates
    return replace(_cloud(rows, score, cost, estimates), paired=estimates.is_paired(rows, score.column))


def accuracy_score(results: Results) -> ScoreColumn | None:
    """The mean accuracy where the plan has one, else the main axis."""
    shown = shown_scores(results)
    return next((score for score in shown if score.metric == "accuracy"), shown[0] if shown else None)


def loss_score(results: Results) -> ScoreColumn | None:
    """The main axis where lower is better, else bits per byte, else the loss at the end of training, else another."""
    shown = shown_scores(results)
    falling = [score for score in [*shown, *other_scores(results)] if _falls(score)]
    order = {"bits_per_byte": 1, "loss": 2}
    return min(falling, key=lambda s: 0 if s in shown[:1] else order.get(s.metric, 3), default=None)


def _falls(score: ScoreColumn) -> bool:
    known = METRICS.get(score.metric)
    return known is not None and not known.higher_is_better


def _cloud(rows: list[Row], score: ScoreColumn, cost: Cost, estimates: Estimates) -> Cloud:
    scored, column = metric(score.metric), score.column
    drawn = [row for row in rows if row[column] is not None and row[cost.column]]
    contenders = [row for row in drawn if row["baseline"] != "untouched"]
    standing: dict[str, _Standing] = {}
    for each in dict.fromkeys(map(cost.machine, contenders)):
        alike = [row for row in contenders if cost.machine(row) == each]
        standing |= _standings(alike, column, scored, cost, estimates)
    points = [_point(row, column, scored, cost, *standing.get(row["variant"], (False, None, None))) for row in drawn]
    there = {row["variant"] for row in drawn}
    missing = {r["variant"]: r[f"{column}_missing"] or cost.missing for r in rows if r["variant"] not in there}
    marks = machine.marks([{"machine": cost.machine(row)} for row in drawn])
    return Cloud(column, score.label, scored, points, missing, score.metric, cost, machines=marks)


_Standing = tuple[bool, str | None, float | None]
"""Whether a row is on the front, who dominates it, and its chance to be on the front."""


def _standings(rows: list[Row], column: str, scored: Metric, cost: Cost, estimates: Estimates) -> dict[str, _Standing]:
    """Of rows that may be compared with one another."""
    costs, scores = [cost.charged(row[cost.column]) for row in rows], [row[column] for row in rows]
    better = scored.higher_is_better
    found = [estimates.of(row, column) or Estimate(row[column]) for row in rows]
    chances = front_chances([cost.estimate(row) for row in rows], found, scored)
    leaders = pareto.dominated_by(costs, scores, higher_is_better=better)
    named = [None if leader is None else str(rows[leader]["variant"]) for leader in leaders]
    fronts = pareto.front(costs, scores, higher_is_better=better)
    return {row["variant"]: each for row, each in zip(rows, zip(fronts, named, chances, strict=True), strict=True)}


def _point(
    row: Row,
    score: str,
    scored: Metric,
    cost: Cost,
    on_front: bool,
    dominated_by: str | None,
    chance: float | None,
) -> Point:
    stderr = row[f"{score}_stderr"]
    return Point(
        variant=row["variant"],
        family=row["family"],
        baseline=row["baseline"],
        x=row[cost.column],
        y=row[score] * scored.scale,
        stderr=None if stderr is None else stderr * scored.scale,
        on_front=on_front,
        dominated_by=dominated_by,
        chance=chance,
        machine=cost.machine(row),
        x_stderr=row["tokens_per_second_stderr"] if cost is SPEED else None,
    )
