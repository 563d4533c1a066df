"""The scores of a results table: their columns, their metrics and the headings that readers see."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from analysis.data.metrics import COMPUTED, METRICS, score_label
from analysis.statistics.columns import is_converted
from analysis.statistics.conversion import final
from analysis.statistics.results import Results
from analysis.statistics.variant_rows import ACCURACY
from sweeps.steps.registry import kind_of


@dataclass(frozen=True)
class ScoreColumn:
    """A score: its column in the results, its metric, and its heading."""

    column: str
    metric: str
    label: str


def shown_scores(results: Results) -> list[ScoreColumn]:
    """The main axis, the accuracy and its parts, as the plan names them; empty where it names none."""
    axis, parts = results.estimates.axis, results.estimates.parts
    mean = [ScoreColumn(ACCURACY, ACCURACY, f"mean of {len(parts)}")] if parts else []
    own_axis = [] if axis == ACCURACY else [score_column(axis, "quality")]
    if mean and not own_axis:
        mean = [ScoreColumn("quality", ACCURACY, mean[0].label)]
    return [*own_axis, *mean, *map(score_column, parts)]


def named_scores(results: Results) -> list[ScoreColumn]:
    """The same without the mean, each in the column of its own name, which another table may have too."""
    named = [score for score in shown_scores(results) if score.metric != ACCURACY]
    return [score_column(results.estimates.axis) if score.column == "quality" else score for score in named]


def standing_scores(results: Results) -> list[ScoreColumn]:
    """Scores that every table of scores has, whatever the plan averages: metrics with `everywhere`, what a shown score
    was before uptraining, and computed metrics."""
    shown = {results.estimates.axis, *results.estimates.parts}
    return [score for score in other_scores(results) if _stands(score, shown)]


def _stands(score: ScoreColumn, shown: Collection[str]) -> bool:
    known = METRICS.get(score.metric)
    if score.column.startswith(f"{COMPUTED}.") or (known is not None and known.everywhere):
        return True
    return is_converted(score.column) and final(score.column) in shown


def other_scores(results: Results) -> list[ScoreColumn]:
    """Every other recorded score: further metrics of the tasks, training losses."""
    missing = [str(name) for name in results.frame if str(name).endswith("_missing")]
    names = [name for column in missing if "." in (name := column.removesuffix("_missing"))]
    shown = {score.label for score in shown_scores(results)}
    scores = map(score_column, filter(_is_score, names))
    return [score for score in scores if score.label not in shown]


def _is_score(name: str) -> bool:
    """Whatever an evaluation records is a score. Training also records how many tokens it read and how fast: of its
    numbers, those in METRICS are scores."""
    source, metric = name.rsplit(".", 1)
    return metric in METRICS or not kind_of(source).trains


def score_column(name: str, column: str | None = None) -> ScoreColumn:
    """The score that a column `SOURCE.METRIC` holds; shown in another `column` where that is given."""
    source, metric = name.rsplit(".", 1)
    return ScoreColumn(column or name, metric, score_label(source, metric))
