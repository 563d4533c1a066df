"""The points of the quality/cost figures, computed once for the paper's figures and the page's interactive one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from analysis.data import machine
from analysis.data.frame import Row
from analysis.data.metrics import METRICS, Metric, metric
from analysis.data.numbers import on_axis, on_log_axis
from analysis.statistics import pareto
from analysis.statistics.compare import front_probabilities
from analysis.statistics.estimate import Estimate
from analysis.statistics.estimates import Estimates, of_speed
from analysis.statistics.results import Results
from analysis.statistics.scores import ScoreColumn, other_scores, shown_scores
from analysis.statistics.signs import signed

CONFIDENCE = 0.95
"""A point is drawn as Pareto-optimal from this probability on, and as dominated from one minus this on."""
ParetoStatus = Literal["front", "undecided", "dominated"]


@dataclass(frozen=True)
class Cost:
    """What a variant costs: a column of the results, on a logarithmic axis."""

    column: str
    label: str
    missing: str
    higher_is_better: bool = False

    def log_cost(self, x: float) -> float:
        """The cost as a number that is better when lower, in octaves: of a speed, the negative."""
        return -math.log2(x) if self.higher_is_better else math.log2(x)

    def estimate(self, row: Row) -> Estimate:
        """The same with its error: bytes are counted, speeds are measured."""
        return of_speed(row) if self is SPEED else Estimate(self.log_cost(row[self.column]), 0.0)

    def machine(self, row: Row) -> str | None:
        """Only rows of one machine are compared. Bytes are the same everywhere."""
        return str(row["machine"] or machine.UNKNOWN) if self is SPEED else None


MEMORY = Cost("kv_bytes_per_token", "KV cache, bytes per token", "no KV bytes")
SPEED = Cost("tokens_per_second", "fastest decode, tokens per second", "no decode speed", higher_is_better=True)


@dataclass(frozen=True)
class ParetoPoint:
    """A variant. `x` is the cost; `y` and `stderr` are the recorded score in the metric's printed unit.

    `chance` is the probability of being Pareto-optimal, None where the error of any point is unknown. `machine` is set
    where speeds are drawn: the point is compared only with those that were measured on the same machine.
    """

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
    def pareto_status(self) -> ParetoStatus:
        """`undecided` where noise allows both. Without errors it is decided by the numbers alone."""
        if self.chance is None:
            return "front" if self.on_front else "dominated"
        return "front" if self.chance >= CONFIDENCE else "undecided" if self.chance > 1 - CONFIDENCE else "dominated"


@dataclass(frozen=True)
class ParetoData:
    """Every variant that has the score. The untouched base is a reference and no contender, as it was trained for
    fewer steps: it is never on the front and never dominates. `missing` has the reason for each variant without a
    score. `paired`: probabilities come from the same samples, which is sharper than the standard errors are.
    `machines` has a letter for each machine that speeds were measured on, where there are several. `signed` names the
    points that have collapsed or are of an unstable training, a line each.
    """

    score: str
    label: str
    metric: Metric
    points: list[ParetoPoint]
    missing: dict[str, str]
    metric_name: str = ""
    cost: Cost = MEMORY
    paired: bool = False
    machines: dict[machine.Machine, str] = field(default_factory=dict)
    signed: list[str] = field(default_factory=list)

    @property
    def front(self) -> list[ParetoPoint]:
        """Front points, cheapest first; equal ones together."""
        return sorted((p for p in self.points if p.on_front), key=lambda p: (self.cost.log_cost(p.x), p.y))

    @property
    def fronts(self) -> list[list[ParetoPoint]]:
        """The front of each machine."""
        front = self.front
        return [[p for p in front if p.machine == each] for each in dict.fromkeys(p.machine for p in front)]

    def name(self, point: ParetoPoint) -> str:
        """A point's name, with the letter of its machine where there are several."""
        letter = self.machines.get(point.machine)
        return f"{point.variant} ({letter})" if letter else point.variant

    @property
    def contenders(self) -> list[ParetoPoint]:
        return [point for point in self.points if point.baseline != "untouched"]

    def coverage(self, family: str) -> float:
        """Share of the contenders' box (cost in octaves by score) that a family's points dominate: 0 to 1.

        One number to compare families or patterns over all budgets. A point at the worst cost or the worst score adds
        nothing.
        """
        own = [point for point in self.contenders if point.family == family]
        costs = [self.cost.log_cost(point.x) for point in self.contenders]
        scores = [point.y for point in self.contenders]
        if not own or (box := (max(costs) - min(costs)) * (max(scores) - min(scores))) == 0:
            return 0.0
        worst = (min if self.metric.higher_is_better else max)(scores)
        return (
            pareto.hypervolume(
                [self.cost.log_cost(point.x) for point in own],
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


def pareto_data_of_scores(results: Results) -> list[ParetoData]:
    """The points of each score that is shown, the main axis first. Raises ValueError for an unknown direction."""
    return [pareto_data(results, score) for score in shown_scores(results)]


def main_pareto_data(results: Results) -> ParetoData | None:
    """The points of the sweep's main quality axis, or None where the plan names no score. Raises ValueError."""
    shown = shown_scores(results)
    return pareto_data(results, shown[0]) if shown else None


def accuracy_score(results: Results) -> ScoreColumn | None:
    """The mean accuracy where the plan has one, else the main axis."""
    shown = shown_scores(results)
    return next((score for score in shown if score.metric == "accuracy"), shown[0] if shown else None)


def loss_score(results: Results) -> ScoreColumn | None:
    """The main axis where lower is better, else bits per byte, else the loss at the end of training, else another."""
    shown = shown_scores(results)
    losses = [
        score
        for score in [*shown, *other_scores(results)]
        if score.metric in METRICS and not METRICS[score.metric].higher_is_better
    ]
    order = {"bits_per_byte": 1, "loss": 2}
    return min(losses, key=lambda s: 0 if s in shown[:1] else order.get(s.metric, 3), default=None)


ChooseScore = Callable[[Results], ScoreColumn | None]


def pareto_data(results: Results, score: ScoreColumn, cost: Cost = MEMORY) -> ParetoData:
    """The points of one score. Raises ValueError for a metric whose better direction is unknown."""
    rows, estimates = results.rows(), results.estimates
    scored, column = metric(score.metric), score.column
    reasons = {row["variant"]: _reason_not_drawn(row, column, scored, cost) for row in rows}
    drawn = [row for row in rows if reasons[row["variant"]] is None]
    contenders = [row for row in drawn if row["baseline"] != "untouched"]
    compared: dict[str, _Comparison] = {}
    for machine_name in dict.fromkeys(map(cost.machine, contenders)):
        same_machine = [row for row in contenders if cost.machine(row) == machine_name]
        compared |= _compare(same_machine, column, scored, cost, estimates)
    points = [_point(row, column, scored, cost, compared.get(row["variant"], _Comparison())) for row in drawn]
    return ParetoData(
        score=column,
        label=score.label,
        metric=scored,
        points=points,
        missing={variant: reason for variant, reason in reasons.items() if reason is not None},
        metric_name=score.metric,
        cost=cost,
        paired=estimates.is_paired(rows, column),
        machines=machine.marks(map(cost.machine, drawn)),
        signed=signed(drawn, column),
    )


def _reason_not_drawn(row: Row, column: str, scored: Metric, cost: Cost) -> str | None:
    """Why there is no point, or None where there is one."""
    score, x = row[column], row[cost.column]
    if score is None:
        return row[f"{column}_missing"] or "no value"
    if not on_axis(score * scored.scale):
        return f"{score:.4g}, too large to be drawn"
    if x is not None and not on_log_axis(x):
        return f"{cost.column} = {x:.4g}: has no place on a logarithmic axis"
    return cost.missing if x is None else None


@dataclass(frozen=True)
class _Comparison:
    """A row among those that it may be compared with."""

    on_front: bool = False
    dominated_by: str | None = None
    chance: float | None = None


def _compare(rows: list[Row], column: str, scored: Metric, cost: Cost, estimates: Estimates) -> dict[str, _Comparison]:
    """By variant."""
    costs, scores = [cost.log_cost(row[cost.column]) for row in rows], [row[column] for row in rows]
    better = scored.higher_is_better
    scores_with_errors = [estimates.of(row, column) or Estimate(row[column]) for row in rows]
    chances = front_probabilities([cost.estimate(row) for row in rows], scores_with_errors, scored)
    leaders = pareto.dominated_by(costs, scores, higher_is_better=better)
    names = [None if leader is None else str(rows[leader]["variant"]) for leader in leaders]
    fronts = pareto.front(costs, scores, higher_is_better=better)
    compared = [_Comparison(*each) for each in zip(fronts, names, chances, strict=True)]
    return {row["variant"]: each for row, each in zip(rows, compared, strict=True)}


def _point(row: Row, score: str, scored: Metric, cost: Cost, comparison: _Comparison) -> ParetoPoint:
    stderr, x_stderr = row[f"{score}_stderr"], row["tokens_per_second_stderr"] if cost is SPEED else None
    return ParetoPoint(
        variant=row["variant"],
        family=row["family"],
        baseline=row["baseline"],
        x=row[cost.column],
        y=row[score] * scored.scale,
        stderr=stderr * scored.scale if on_axis(stderr) else None,
        on_front=comparison.on_front,
        dominated_by=comparison.dominated_by,
        chance=comparison.chance,
        machine=cost.machine(row),
        x_stderr=x_stderr if on_axis(x_stderr) else None,
    )
