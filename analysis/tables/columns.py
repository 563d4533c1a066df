"""The columns and cells that tables share: layouts, scores, differences from the baselines, and the notes on them.

A score is printed as value ± standard error, or, for several seeds, as their mean ± half of its 95 % interval. The best
variant is in bold, with all that are within noise of it (baselines do not compete). Its difference from each baseline
is marked ≈ where it is within noise. A cell without a value says why: in a word in the cell, in full below the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from analysis.data.frame import Row
from analysis.data.metrics import METRICS, Metric
from analysis.data.signatures import split
from analysis.statistics.columns import BASELINES, COMPARED, GAP, SOURCE, is_converted
from analysis.statistics.compare import add_intervals, add_ties
from analysis.statistics.estimate import ALPHA
from analysis.statistics.results import Results
from analysis.statistics.scores import ScoreColumn
from analysis.statistics.selection import hidden_references
from analysis.statistics.signs import is_collapsed
from analysis.statistics.variant_rows import NOT_PLANNED
from analysis.tables.merge_published import IS_PUBLISHED
from analysis.tables.table import BEST, Cell, Column, Table, make_table
from mlkv.cache.formats import AS_COMPUTED
from mlkv.evaluate.entry_rule import RULE
from mlkv.signature import COLLAPSED, LOSS_DIVERGED, LOSS_SPIKED, OUT_OF_MEMORY, UNSTABLE

BASELINE_NOTES = {"untouched": "base", "mha": "baseline"}
VERDICT = "entry_test.entry_test"
"""The column with 1 where a checkpoint passes the entry test, else 0."""
AT_CONVERSION = "gap at conversion"
WITHIN_NOISE = " ≈"
AT_CHANCE = "†"
"""Behind a score that has collapsed (mlkv/signature.py)."""
NOTHING = Cell("–")
FINAL = ("PUBLISHED", "IMPORTED")
"""States of results from elsewhere: no more will come."""
_UNKNOWN = Metric("", higher_is_better=True, digits=3)
"""How a score is printed whose metric has no row in METRICS."""


def table_of(rows: Sequence[Row], columns: Sequence[Column], notes: Sequence[str] = ()) -> Table:
    return make_table(
        columns,
        baselines=[row["baseline"] for row in rows],
        states=[row["state"] for row in rows],
        published=[row[IS_PUBLISHED] for row in rows],
        notes=[*notes, *notes_on_signatures(rows, columns)],
    )


def shape_columns(rows: Sequence[Row]) -> list[Column]:
    texts = [row["kv_heads"] or "" for row in rows]
    heads = [Cell(text, int(text) if text.isdigit() else None) for text in texts]
    return [
        Column("variant", "name", [_name(row) for row in rows]),
        *source_columns(rows),
        Column("KV layers", "shape", [count(row["kv_layers"]) for row in rows]),
        Column("KV heads/layer", "shape", heads),
        *_cache_columns(rows),
        Column("KV bytes/token", "cost", [count(row["kv_bytes_per_token"]) for row in rows]),
    ]


def source_columns(rows: Sequence[Row]) -> list[Column]:
    """What each row is of; no column where all are of one sweep, import or published set."""
    if len({row.get(SOURCE) for row in rows if not row.get(IS_PUBLISHED)}) < 2:
        return []
    texts = ["published" if row.get(IS_PUBLISHED) else row.get(SOURCE) or "" for row in rows]
    return [Column("source", "cost", [Cell(text) for text in texts])]


def _cache_columns(rows: Sequence[Row]) -> list[Column]:
    """The formats of the caches; no column where all are the models' own."""
    if all(row.get("cache") in (None, AS_COMPUTED) for row in rows):
        return []
    return [Column("cache", "shape", [Cell(row.get("cache") or "") for row in rows])]


def measured_columns(rows: Sequence[Row]) -> list[Column]:
    """The cache's bytes per token as measured; no column where no measurement is planned."""
    if all(row["measured_bytes_per_token_missing"] == NOT_PLANNED for row in rows):
        return []
    return [Column("measured", "measured", [_measured(row) for row in rows])]


def _measured(row: Row) -> Cell:
    missing = row["measured_bytes_per_token_missing"]
    if row["measured_bytes_per_token"] is not None:
        return count(row["measured_bytes_per_token"])
    never = row[IS_PUBLISHED] or (missing == NOT_PLANNED and row["state"] in FINAL)
    return NOTHING if never else Cell(word(missing), missing=missing)


def score_columns(rows: Sequence[Row], score: ScoreColumn) -> list[Column]:
    """A score's values and, for the main axis, its differences from the baselines."""
    name, known = score.column, METRICS.get(score.metric)
    metric = known or _UNKNOWN
    header = f"{score.label} {known.arrow}" if known else score.label
    is_main = name in COMPARED or name.startswith("uptrain.")
    columns = [Column(header, "score" if is_main else "part", _value_cells(rows, name, metric))]
    for baseline in BASELINES if name == "quality" else ():
        if any(row["baseline"] == baseline or row.get(f"{name}_vs_{baseline}") is not None for row in rows):
            cells = [_difference(row, f"{name}_vs_{baseline}", metric) for row in rows]
            columns.append(Column(f"Δ {baseline}", "difference", cells))
    # A metric that is a distance from the base already is its own gap.
    has_gap = is_converted(name) and not metric.everywhere
    if has_gap and any(row.get(f"{name}{GAP}") is not None for row in rows):
        of_axis = score.metric == rows[0]["quality_score"].rpartition(".")[2]
        header = AT_CONVERSION if of_axis else f"{score.label.partition(',')[0]} {AT_CONVERSION}"
        columns.append(Column(header, "difference", [_gap(row, f"{name}{GAP}", metric) for row in rows]))
    return columns


def _gap(row: Row, name: str, metric: Metric) -> Cell:
    """A difference from the base at conversion, with half of its 95 % interval."""
    value, low, high = row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high")
    if value is None:
        return Cell("")
    reach = "" if low is None or high is None else f" ± {metric.text((high - low) / 2)}"
    return Cell(f"{metric.difference(value)}{reach}", value)


def compare_rows(rows: Sequence[Row], scores: Sequence[ScoreColumn], results: Results) -> None:
    """Add intervals and ties of these scores to our rows. The frame has them for the main axis and the accuracy."""
    own_rows = [row for row in rows if not row[IS_PUBLISHED]]
    for score in scores:
        if score.column in results.frame and f"{score.column}_tied" not in results.frame:
            add_intervals(own_rows, score.column, results.estimates)
            add_ties(own_rows, score.column, results.estimates)


def _value_cells(rows: Sequence[Row], name: str, metric: Metric) -> list[Cell]:
    """Scores with the best of ours and of the published ones in bold; none where all of them are within noise."""
    has_winner = {
        published: not all(
            row[f"{name}_tied"]
            for row in rows
            if row[IS_PUBLISHED] == published and row.get(f"{name}_tied") is not None
        )
        for published in (False, True)
    }
    return [_value_cell(row, name, metric, has_winner[row[IS_PUBLISHED]]) for row in rows]


def _value_cell(row: Row, name: str, metric: Metric, has_winner: bool) -> Cell:
    """A score as it is printed; a dash where none can come: a published row has no more, and an untouched base is not
    trained."""
    value, missing = row.get(name), row.get(f"{name}_missing")
    if value is None:
        other_source = row.get(SOURCE) is not None  # a column is there for the rows of one source
        never = missing == NOT_PLANNED and (row["state"] in FINAL or row["baseline"] == "untouched" or other_source)
        return NOTHING if row[IS_PUBLISHED] or never or missing is None else Cell(word(missing), missing=missing)
    text = metric.text(value, printed_error(row, name)) + _seeds_if_fewer(row, name)
    best, chance = has_winner and bool(row.get(f"{name}_tied")), is_collapsed(row, name)
    if chance:
        number, plus_minus, error = text.partition(" ±")
        text = f"{number}{AT_CHANCE}{plus_minus}{error}"
    return Cell(text, value, best=best, stderr=row.get(f"{name}_stderr"), chance=chance)


def printed_error(row: Row, name: str) -> float | None:
    """The number after ±: half of the 95 % interval of several seeds, else the standard error."""
    seeds = row.get("seeds") if name == "quality" else row.get(f"{name}_seeds")
    if (seeds or 1) > 1 and row.get(f"{name}_high") is not None:
        return float(row[f"{name}_high"] - row[f"{name}_low"]) / 2
    return row.get(f"{name}_stderr")


def _seeds_if_fewer(row: Row, name: str) -> str:
    """` (n=2)` where the value is the mean of another number of seeds than the row's name says."""
    seeds = row.get(f"{name}_seeds")
    return "" if row.get("seeds") in (None, seeds) or seeds is None or row["seeds_planned"] == 1 else f" (n={seeds})"


def _difference(row: Row, name: str, metric: Metric) -> Cell:
    value, p = row[name], row.get(f"{name}_p")
    if value is None:
        return Cell("")
    return Cell(metric.difference(value) + (WITHIN_NOISE if p is not None and p > ALPHA else ""), value)


def front_column(rows: Sequence[Row]) -> Column:
    """The probability of being Pareto-optimal."""
    return Column("P(front)", "chance", [_probability(row.get("front_probability")) for row in rows])


def _probability(share: float | None) -> Cell:
    """It is printed as 0 or 1 only where every repetition of the bootstrap agreed."""
    if share is None:
        return Cell("")
    text = f"{share:.2f}" if share in (0, 1) or 0.005 <= share < 0.995 else "<0.01" if share < 0.5 else ">0.99"
    return Cell(text, share)


def notes_on(results: Results, columns: Sequence[Column], scores: Sequence[ScoreColumn]) -> list[str]:
    """How bold, ≈, P(front) and the hypervolume are computed, as far as the columns have them."""
    statistics, cells = results.statistics, [cell for column in columns for cell in column.cells]
    notes = notes_on_bold(results, columns, scores)
    if any(cell.text.endswith(WITHIN_NOISE) for cell in cells):
        comparison = f"compared {_comparison(results, scores[:1])}, {statistics.comparisons} comparisons"
        notes.append(f"≈: a difference within noise, {comparison} corrected (Holm)")
    if any(column.role == "chance" and any(cell.text for cell in column.cells) for column in columns):
        notes.append("P(front): probability of being Pareto-optimal")
    if any(column.header.endswith(AT_CONVERSION) for column in columns):
        notes.append(f"{AT_CONVERSION}: how far the converted checkpoint is from the base, ± half of its 95 % interval")
    if statistics.hypervolume and statistics.hypervolume[0] > 0:
        value, low, high = statistics.hypervolume
        interval = f", 95 % interval {low:.3g} to {high:.3g}" if high > low else ""
        notes.append(f"hypervolume (log2 bytes × main axis): {value:.3g}{interval}")
    notes += [line for line in [hidden_references(results)] if line]
    notes += notes_on_entry(results)
    return notes + notes_on_conversions(results) + notes_on_passes(results) + notes_on_seeds(results)


def notes_on_entry(results: Results) -> list[str]:
    """Which bases do not look back, so that no reader takes what is found on them for more than it is."""
    failed = [row for row in results.rows() if row["baseline"] == "untouched" and row.get(VERDICT) == 0]
    names = ", ".join(str(row["variant"]) for row in failed)
    return [f"entry test: passed by {RULE}; what is found on {names} says nothing about range"] if failed else []


def notes_on_signatures(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """What the mark of collapsed scores means, with one of each column; and which trainings were unstable. Nothing on
    what no cell shows."""
    shown = [cell for column in columns for cell in column.cells]
    signs = [(str(row["variant"]), sign) for row in rows for sign in split(row.get("signatures"))]
    notes = []
    if any(cell.chance for cell in shown):
        collapsed = {sign.subject: f"{name}: {sign.why}" for name, sign in signs if sign.word == COLLAPSED}
        notes = [f"{AT_CHANCE}: {COLLAPSED}, within noise of chance or worse (mlkv why NAME VARIANT)"]
        notes += [f"{AT_CHANCE} {subject}, {why}" for subject, why in collapsed.items()]
    unstable: dict[str, list[str]] = {}
    for name, sign in signs:
        if sign.word == UNSTABLE and any(UNSTABLE in cell.text for cell in shown):
            unstable.setdefault(f"{sign.subject}: {sign.why}", []).append(name)
    return notes + [f"{UNSTABLE} ({', '.join(names)}), {reason}" for reason, names in unstable.items()]


def notes_on_passes(results: Results) -> list[str]:
    """What it costs that layers read from above."""
    return [f"{row['variant']}: {row['passes']}" for row in results.rows() if row.get("passes")]


def notes_on_conversions(results: Results) -> list[str]:
    """Which conversions change what the base computes before heads are averaged, and why."""
    variants: dict[str, list[str]] = {}
    for row in results.rows():
        if reason := row.get("approximate"):
            variants.setdefault(reason, []).append(str(row["variant"]))
    return [f"approximate ({', '.join(names)}): {reason}" for reason, names in variants.items()]


def notes_on_bold(results: Results, columns: Sequence[Column], scores: Sequence[ScoreColumn]) -> list[str]:
    best = [cell for column in columns for cell in column.cells if cell.best]
    notes = []
    if any(cell.stderr is not None for cell in best):
        comparison = f"compared {_comparison(results, scores)}, corrected for all rows (Holm)"
        notes.append(f"{BEST}: the best row and all rows within noise of it at 95 %, {comparison}")
        notes.append(f"a column without {BEST}: all rows are within noise of the best one")
    if any(cell.stderr is None for cell in best):
        notes.append(f"where no standard error is known: {BEST} is the best value alone, and noise is not considered")
    return notes


def _comparison(results: Results, scores: Sequence[ScoreColumn]) -> str:
    """The errors by which these scores are compared."""
    rows = results.compared_rows()
    paired = {results.estimates.is_paired(rows, score.column) for score in scores}
    if paired == {True}:
        return "on the same samples (paired)"
    return "on the same samples where they are stored, else by standard errors" if any(paired) else "by standard errors"


def notes_on_seeds(results: Results) -> list[str]:
    if not (results.frame["seeds_planned"] > 1).any():
        return []
    return [
        "several seeds (n): mean ± half of its 95 % interval (Student); a single seed: ± its standard error",
        "seeds are compared by the spread between them, with Welch's t-test",
    ]


def word(missing: str) -> str:
    """The state in a word or two: `failed`, `out of memory`, `unstable`, `running 40/300`, `not planned`."""
    if re.search(OUT_OF_MEMORY, missing, re.IGNORECASE):
        return OUT_OF_MEMORY
    if LOSS_DIVERGED in missing or LOSS_SPIKED in missing:
        return UNSTABLE
    if running := re.match(r"RUNNING step (\d+) of (\d+)", missing):
        return f"running {running[1]}/{running[2]}"
    state = re.match(r"[A-Z]{4,}\b", missing)
    text = state[0].lower() if state else missing
    return "not planned" if text == "unplanned" else text


def _name(row: Row) -> Cell:
    """`MHA-36 (baseline)`, `MLKV-6 (n=2 of 3)`, `MLKV-1 (unstable, collapsed)`: the latter by the main axis."""
    role = BASELINE_NOTES.get(row["baseline"] or "") if not row[IS_PUBLISHED] else None
    planned = row.get("seeds_planned") or 1
    seeds = f"n={row['seeds']}" + (f" of {planned}" if row["seeds"] != planned else "") if planned > 1 else None
    known, signs = [*filter(None, [role, seeds])], _signs(row)
    plain = _with_words(row["variant"], known)
    return (
        Cell(_with_words(row["variant"], [*known, *signs]), plain=plain, signs=", ".join(signs))
        if signs
        else Cell(plain)
    )


def _signs(row: Row) -> list[str]:
    unstable = {sign.word for sign in split(row.get("signatures")) if sign.word == UNSTABLE}
    return [*unstable, *([COLLAPSED] if is_collapsed(row, "quality") else [])]


def _with_words(name: str, words: Sequence[str]) -> str:
    return f"{name} ({', '.join(words)})" if words else name


def count(number: float | None) -> Cell:
    return Cell("") if number is None else Cell(f"{number:,.0f}", number)
