"""The results table for readers, from the results (statistics/results.py), and the cells that every table is made of.

A score is printed as value ± standard error, or of several seeds as their mean ± half its 95 % interval. The best
variant is in bold with all that are within noise of it (baselines do not compete), with its difference from both
baselines, marked ≈ where that is within noise. A cell without a number says why, in a word in the cell and in full
below the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.data.frame import Row
from analysis.data.metrics import METRICS, Metric
from analysis.statistics.estimate import ALPHA
from analysis.statistics.results import Results
from analysis.statistics.scores import ScoreColumn, named_scores, shown_scores
from analysis.statistics.variant_rows import NOT_PLANNED
from analysis.tables import rendering
from analysis.tables.beside import PUBLISHED, lines
from analysis.tables.sheet import Cell, Column, Sheet, assemble

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Cell", "Column", "Sheet", "csv", "latex", "markdown", "render_terminal", "sheet"]

BASELINE_NOTES = {"untouched": "base", "mha": "baseline"}
WITHIN_NOISE = " ≈"
NOTHING = Cell("–")
FINAL = ("PUBLISHED", "IMPORTED")
"""States of what others made: nothing more is to come."""
_ARROW = {True: "↑", False: "↓"}
_PLAIN = Metric("", higher_is_better=True, digits=3)


def sheet(results: Results, published: Results | None = None) -> Sheet:
    """The results table of a sweep: layout, KV bytes per token, main axis with its differences, accuracy, its tasks;
    with the rows of published results beside ours."""
    rows = lines(results, published)
    columns = [*shape_columns(rows), *_measured_columns(rows)]
    shown = shown_scores(results)
    for score in shown:
        columns += score_columns(rows, score)
    known = {score.label for score in shown}
    for score in named_scores(published) if published is not None else []:
        if score.label not in known:
            columns += score_columns(rows, score)
    columns.append(Column("P(front)", "chance", [_chance(row) for row in rows]))
    return sheet_of(rows, columns, _footnotes(results, columns, shown))


def sheet_of(rows: Sequence[Row], columns: Sequence[Column], footnotes: Sequence[str] = ()) -> Sheet:
    return assemble(
        columns,
        baselines=[row["baseline"] for row in rows],
        states=[row["state"] for row in rows],
        published=[row[PUBLISHED] for row in rows],
        footnotes=footnotes,
    )


def shape_columns(rows: Sequence[Row]) -> list[Column]:
    return [
        Column("variant", "name", [Cell(variant_text(row)) for row in rows]),
        Column("KV layers", "shape", [count(row["kv_layers"]) for row in rows]),
        Column("KV heads/layer", "shape", [_heads(row["kv_heads"]) for row in rows]),
        Column("KV bytes/token", "cost", [count(row["kv_bytes_per_token"]) for row in rows]),
    ]


def _measured_columns(rows: Sequence[Row]) -> list[Column]:
    if all(row["measured_bytes_per_token_missing"] == NOT_PLANNED for row in rows):
        return []
    return [Column("measured", "measured", [_measured(row) for row in rows])]


def score_columns(rows: Sequence[Row], score: ScoreColumn) -> list[Column]:
    """A score's values and, of the main axis, its differences from the baselines."""
    name, metric = score.column, METRICS.get(score.metric)
    printed = metric or _PLAIN
    header = f"{score.label} {_ARROW[metric.higher_is_better]}" if metric else score.label
    main = name in ("quality", "accuracy") or score.column.startswith("uptrain.")
    columns = [Column(header, "score" if main else "part", _value_cells(rows, name, printed))]
    for baseline in ("untouched", "mha") if name == "quality" else ():
        if any(row["baseline"] == baseline for row in rows):
            cells = [_difference(row, f"{name}_vs_{baseline}", printed) for row in rows]
            columns.append(Column(f"Δ {baseline}", "difference", cells))
    return columns


def _value_cells(rows: Sequence[Row], name: str, metric: Metric) -> list[Cell]:
    """Scores, the best of ours and of the published ones in bold; none where all of them are within noise."""
    decided = {told: _has_winner([row for row in rows if row[PUBLISHED] == told], name) for told in (False, True)}
    return [_value_cell(row, name, metric, decided[row[PUBLISHED]]) for row in rows]


def _has_winner(rows: Sequence[Row], name: str) -> bool:
    tied = [row[f"{name}_tied"] for row in rows if row.get(f"{name}_tied") is not None]
    return not all(tied)


def _value_cell(row: Row, name: str, metric: Metric, decided: bool) -> Cell:
    """A score as it is printed; one that a published row has not is a dash."""
    value, missing = row.get(name), row.get(f"{name}_missing")
    if value is None:
        nobodys = missing == NOT_PLANNED and (row["state"] in FINAL or row["baseline"] == "untouched")
        return NOTHING if row[PUBLISHED] or nobodys or missing is None else Cell(word(missing), missing=missing)
    best = decided and bool(row.get(f"{name}_tied"))
    text = metric.text(value, printed_error(row, name)) + _of_fewer(row, name)
    return Cell(text, value, best=best, stderr=row.get(f"{name}_stderr"))


def printed_error(row: Row, name: str) -> float | None:
    """What stands behind ±: of several seeds half of the 95 % interval, else the standard error."""
    seeds = row.get("seeds") if name == "quality" else row.get(f"{name}_seeds")
    if (seeds or 1) > 1 and row.get(f"{name}_high") is not None:
        return float(row[f"{name}_high"] - row[f"{name}_low"]) / 2
    return row.get(f"{name}_stderr")


def _of_fewer(row: Row, name: str) -> str:
    """` (n=2)` where the value is the mean of another number of seeds than the row's heading says."""
    seeds = row.get(f"{name}_seeds")
    return "" if row.get("seeds") in (None, seeds) or seeds is None or row["seeds_planned"] == 1 else f" (n={seeds})"


def _difference(row: Row, name: str, metric: Metric) -> Cell:
    value, p = row[name], row.get(f"{name}_p")
    if value is None:
        return Cell("")
    return Cell(metric.difference(value) + (WITHIN_NOISE if p is not None and p > ALPHA else ""), value)


def _chance(row: Row) -> Cell:
    """Of being on the front; never printed as sure unless every repetition agreed."""
    chance = row.get("front_probability")
    if chance is None:
        return Cell("")
    text = f"{chance:.2f}" if chance in (0, 1) or 0.005 <= chance < 0.995 else "<0.01" if chance < 0.5 else ">0.99"
    return Cell(text, chance)


def _footnotes(results: Results, columns: Sequence[Column], scores: Sequence[ScoreColumn]) -> list[str]:
    """How bold, ≈ and the chances came about, as far as the table has them."""
    statistics, cells = results.statistics, [cell for column in columns for cell in column.cells]
    notes = notes_on_bold(results, columns, scores)
    if any(cell.text.endswith(WITHIN_NOISE) for cell in cells):
        how = _how(results, scores[:1])
        notes.append(
            f"≈: a difference within noise, judged {how}, {statistics.comparisons} comparisons corrected (Holm)"
        )
    if any(column.header == "P(front)" and any(cell.text for cell in column.cells) for column in columns):
        notes.append("P(front): how probably no variant that is as cheap is as good")
    if statistics.hypervolume and statistics.hypervolume[0] > 0:
        value, low, high = statistics.hypervolume
        within = f", 95 % interval {low:.3g} to {high:.3g}" if high > low else ""
        notes.append(f"hypervolume (log2 bytes × main axis): {value:.3g}{within}")
    return notes + seeds_note(results)


def notes_on_bold(results: Results, columns: Sequence[Column], scores: Sequence[ScoreColumn]) -> list[str]:
    cells = [cell for column in columns for cell in column.cells]
    notes = []
    if any(cell.best and cell.stderr is not None for cell in cells):
        how = _how(results, scores)
        notes.append(f"bold: the best and all within noise of it, at 95 %, judged {how}, corrected for all rows (Holm)")
        notes.append("a column without bold: all are within noise of the best")
    if any(cell.best and cell.stderr is None for cell in cells):
        notes.append("where no standard error is known, bold is the best number alone, whatever its noise")
    return notes


def _how(results: Results, scores: Sequence[ScoreColumn]) -> str:
    """By what errors these scores are compared."""
    rows = results.rows()
    paired = {results.estimates.is_paired(rows, score.column) for score in scores}
    if paired == {True}:
        return "on the same samples (paired)"
    return (
        "on the same samples where they were kept, else from standard errors" if any(paired) else "from standard errors"
    )


def seeds_note(results: Results) -> list[str]:
    if not (results.frame["seeds_planned"] > 1).any():
        return []
    return [
        "several seeds (n): mean ± half of its 95 % interval (Student); of a single one, ± its standard error",
        "seeds are compared with the spread between them, by Welch's t-test",
    ]


def word(missing: str) -> str:
    """The state in a word or two: `failed`, `running 40/300`, `not planned`."""
    if found := re.match(r"RUNNING step (\d+) of (\d+)", missing):
        return f"running {found[1]}/{found[2]}"
    found = re.match(r"[A-Z]{4,}\b", missing)
    text = found[0].lower() if found else missing
    return "not planned" if text == "unplanned" else text


def variant_text(row: Row) -> str:
    note = BASELINE_NOTES.get(row["baseline"] or "") if not row[PUBLISHED] else None
    planned = row.get("seeds_planned") or 1
    seeds = f"n={row['seeds']}" + (f" of {planned}" if row["seeds"] != planned else "") if planned > 1 else None
    told = ", ".join(filter(None, [note, seeds]))
    return f"{row['variant']} ({told})" if told else str(row["variant"])


def count(number: float | None) -> Cell:
    return Cell("") if number is None else Cell(f"{number:,.0f}", number)


def _measured(row: Row) -> Cell:
    value, missing = row["measured_bytes_per_token"], row["measured_bytes_per_token_missing"]
    if value is None:
        return NOTHING if row[PUBLISHED] else Cell(word(missing), missing=missing)
    return Cell(f"{value:,.0f}", value)


def _heads(text: str | None) -> Cell:
    return Cell(text or "", int(text) if text and text.isdigit() else None)


def csv(results: Results) -> str:
    """The frame at full precision, one line per variant."""
    return str(results.frame.to_csv(index=False, lineterminator="\n"))


def markdown(results: Results) -> str:
    return rendering.markdown(sheet(results))


def latex(results: Results) -> str:
    return rendering.latex(sheet(results))


def render_terminal(results: Results, title: str | None = None) -> RenderableType:
    """The table for a rich console, as much of it as the console is wide."""
    from analysis.tables.terminal import FittingTable

    return FittingTable(sheet(results), title)
