"""The results table of a sweep, as a Table and as text: layout, bytes, main axis, accuracy, tasks, P(front)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.statistics.results import Results
from analysis.statistics.scores import ScoreColumn, named_scores, score_column, shown_scores, standing_scores
from analysis.statistics.sources import Source
from analysis.tables import rendering
from analysis.tables.columns import (
    compare_rows,
    front_column,
    measured_columns,
    notes_on,
    score_columns,
    shape_columns,
    table_of,
)
from analysis.tables.merge_published import IS_PUBLISHED, merge_published
from analysis.tables.recovery import recovery_columns
from analysis.tables.table import Table

if TYPE_CHECKING:
    from rich.console import RenderableType


def results_table(results: Results, published: Results | None = None, further: Sequence[ScoreColumn] = ()) -> Table:
    """The results table of a sweep; with published rows merged in, also of the scores that only they have. `further`:
    scores that have columns too."""
    rows = merge_published(results, published)
    columns = [*shape_columns(rows), *measured_columns(rows)]
    compared = standing_scores(results)
    main = {score.label for score in [*shown_scores(results), *compared]}
    compared += [score for score in further if score.label not in main]
    compare_rows(rows, compared, results)
    shown = [*shown_scores(results), *compared]
    for score in shown:
        columns += score_columns(rows, score)
    known = {score.label for score in shown}
    for score in named_scores(published) if published is not None else []:
        if score.label not in known:
            columns += score_columns(rows, score)
    recovered, notes = recovery_columns(results, [row["variant"] if not row[IS_PUBLISHED] else "" for row in rows])
    columns += [*recovered, front_column(rows)]
    return table_of(rows, columns, [*notes_on(results, columns, shown), *notes])


def of_source(source: Source, published: Source | None = None) -> Table:
    """The results table of any source; of several, with the scores that each of them plans."""
    names: dict[str, None] = {}
    for table in (part.source.table for part in source.parts):
        marked = table[(table["in_axis"] | table["in_accuracy"]).fillna(False)]
        names |= dict.fromkeys(
            f"{task}.{metric}" for task, metric in marked[["task", "metric"]].itertuples(index=False)
        )
    further = [score_column(name) for name in names if name in source.results.frame]
    return results_table(source.results, None if published is None else published.results, further)


def csv(results: Results) -> str:
    """The frame at full precision, one line per variant."""
    return str(results.frame.to_csv(index=False, lineterminator="\n"))


def markdown(results: Results) -> str:
    return rendering.markdown(results_table(results))


def latex(results: Results) -> str:
    return rendering.latex(results_table(results))


def render_terminal(results: Results, title: str | None = None) -> RenderableType:
    """The table for a rich console, as many columns as fit its width."""
    from analysis.tables.terminal import FittingTable

    return FittingTable(results_table(results), title)
