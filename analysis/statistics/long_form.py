"""Results for programs: a row for each variant and score, with its interval and its difference from the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.data.frame import Row
from analysis.data.metrics import METRICS
from analysis.statistics.columns import SOURCE
from analysis.statistics.compare import add_intervals
from analysis.statistics.differences import FromBaseline, from_baselines
from analysis.statistics.results import Results
from analysis.statistics.scores import ScoreColumn, other_scores, shown_scores
from analysis.statistics.signs import of_score
from analysis.statistics.sources import Source

_IDENTITY = ("baseline", "family", "pattern", "kv_layers", "kv_heads", "budget", "kv_bytes_per_token", "seeds")


def long_form(source: Source) -> list[dict[str, Any]]:
    """The rows, by score and then in the table's order. Numbers are in the unit in which they are stored: accuracies as
    shares. The keys are a promise (docs/automation.md)."""
    results = source.results
    return [line for score in _scores(results) for line in _of_score(source, results, score)]


def _scores(results: Results) -> list[ScoreColumn]:
    return [*shown_scores(results), *other_scores(results)]


def _of_score(source: Source, results: Results, score: ScoreColumn) -> list[dict[str, Any]]:
    rows, metric = results.rows(), METRICS.get(score.metric)
    if f"{score.column}_high" not in results.frame:
        add_intervals(rows, score.column, results.estimates)
    differences = from_baselines(results, score.column)
    named = {
        "metric": results.estimates.axis if score.column == "quality" else score.column,
        "label": score.label,
        "higher_is_better": None if metric is None else metric.higher_is_better,
    }
    return [
        {
            "variant": row["variant"],
            "source": row.get(SOURCE) or source.name,
            **{name: row[name] for name in _IDENTITY},
            **named,
            **_value(row, score.column),
            **_difference(differences.get(row["variant"])),
            "signatures": of_score(row, score.column),
        }
        for row in rows
    ]


def _value(row: Row, column: str) -> Mapping[str, Any]:
    return {
        "value": row[column],
        "stderr": row[f"{column}_stderr"],
        "interval": _interval(row[f"{column}_low"], row[f"{column}_high"]),
        "reason": None if row[column] is not None else row[f"{column}_missing"] or "no value",
    }


def _difference(found: FromBaseline | None) -> Mapping[str, Any]:
    return {
        "difference": found and found.value,
        "difference_interval": found and _interval(found.low, found.high),
        "difference_p": found and found.p,
        "difference_from": found and found.baseline,
    }


def _interval(low: float | None, high: float | None) -> list[float] | None:
    return None if low is None or high is None else [low, high]
