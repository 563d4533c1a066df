"""The results table for readers: Markdown, LaTeX (booktabs) and CSV, from the pivot (results.py).

A score is printed as value ± standard error, the best variant in bold (baselines do not compete), with its difference
from both baselines. A cell without a number says why, in a word in the cell and in full below the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd

from analysis import frame
from analysis.frame import Row
from analysis.metrics import METRICS, Metric
from analysis.results import NOT_PLANNED, Shown, shown_scores

if TYPE_CHECKING:
    from rich.console import RenderableType

BASELINE_NOTES = {"untouched": "base", "mha": "baseline"}
_ARROW = {True: "↑", False: "↓"}
_PLAIN = Metric("", higher_is_better=True, digits=3)


Role = Literal["name", "shape", "cost", "measured", "score", "difference", "part"]


@dataclass(frozen=True)
class Cell:
    """`text` is what is printed; `number` what it is sorted by; `missing` says in full why there is no number."""

    text: str
    number: float | None = None
    best: bool = False
    missing: str | None = None


@dataclass(frozen=True)
class Column:
    header: str
    role: Role
    cells: list[Cell]


@dataclass(frozen=True)
class Sheet:
    """A table ready to be printed in any format. `baselines` tells which rows are baselines, by their key; `roles` what
    a column is for, so that a narrow terminal can leave out the least important."""

    headers: list[str]
    roles: list[Role]
    rows: list[list[Cell]]
    baselines: list[str | None]
    states: list[str]

    @property
    def notes(self) -> list[str]:
        """Every reason for an empty cell, with the variants that it empties."""
        reasons: dict[str, dict[str, None]] = {}
        for row in self.rows:
            for cell in row:
                if cell.missing:
                    reasons.setdefault(cell.missing, {})[row[0].text] = None
        return [f"{reason}: {', '.join(variants)}" for reason, variants in reasons.items()]


def sheet(pivot: pd.DataFrame) -> Sheet:
    """The results table of a sweep: layout, KV bytes per token, main axis with its differences, accuracy, its tasks."""
    rows = frame.records(pivot)
    columns = [
        Column("variant", "name", [Cell(_variant_text(row)) for row in rows]),
        Column("KV layers", "shape", [_count(row["kv_layers"]) for row in rows]),
        Column("KV heads/layer", "shape", [_heads(row["kv_heads"]) for row in rows]),
        Column("KV bytes/token", "cost", [_count(row["kv_bytes_per_token"]) for row in rows]),
    ]
    if any(row["measured_bytes_per_token_missing"] != NOT_PLANNED for row in rows):
        columns.append(Column("measured", "measured", [_measured(row) for row in rows]))
    for score in shown_scores(pivot):
        columns += _score_columns(rows, score)
    return Sheet(
        headers=[column.header for column in columns],
        roles=[column.role for column in columns],
        rows=[list(cells) for cells in zip(*(column.cells for column in columns), strict=True)],
        baselines=[row["baseline"] for row in rows],
        states=[row["state"] for row in rows],
    )


def _score_columns(rows: list[Row], score: Shown) -> list[Column]:
    name, metric = score.column, METRICS.get(score.metric)
    printed = metric or _PLAIN
    header = f"{score.label} {_ARROW[metric.higher_is_better]}" if metric else score.label
    best = _best(rows, name, metric) if metric else None
    role: Role = "score" if name in ("quality", "accuracy") else "part"
    columns = [Column(header, role, [_value(row, name, printed, best) for row in rows])]
    for baseline in ("untouched", "mha") if name == "quality" else ():
        if any(row["baseline"] == baseline for row in rows):
            cells = [_difference(row, f"{name}_vs_{baseline}", printed) for row in rows]
            columns.append(Column(f"Δ {baseline}", "difference", cells))
    return columns


def _best(rows: list[Row], name: str, metric: Metric) -> float | None:
    values = [row[name] for row in rows if row[name] is not None and row["baseline"] is None]
    return (max if metric.higher_is_better else min)(values, default=None)


def _value(row: Row, name: str, metric: Metric, best: float | None) -> Cell:
    value = row[name]
    if value is None:
        return Cell(_word(row[f"{name}_missing"]), missing=row[f"{name}_missing"])
    return Cell(metric.text(value, row[f"{name}_stderr"]), value, best=row["baseline"] is None and value == best)


def _difference(row: Row, name: str, metric: Metric) -> Cell:
    value = row[name]
    return Cell("") if value is None else Cell(metric.difference(value), value)


def _word(missing: str) -> str:
    """The state in a word or two: `failed`, `running 40/300`, `not planned`."""
    if found := re.match(r"RUNNING step (\d+) of (\d+)", missing):
        return f"running {found[1]}/{found[2]}"
    found = re.match(r"[A-Z]{4,}\b", missing)
    word = found[0].lower() if found else missing
    return "not planned" if word == "unplanned" else word


def _variant_text(row: Row) -> str:
    note = BASELINE_NOTES.get(row["baseline"] or "")
    return f"{row['variant']} ({note})" if note else str(row["variant"])


def _count(number: int | None) -> Cell:
    return Cell("") if number is None else Cell(f"{number:,}", number)


def _measured(row: Row) -> Cell:
    value, missing = row["measured_bytes_per_token"], row["measured_bytes_per_token_missing"]
    return Cell(_word(missing), missing=missing) if value is None else Cell(f"{value:,.0f}", value)


def _heads(text: str | None) -> Cell:
    return Cell(text or "", float(text) if text and text.isdigit() else None)


def csv(pivot: pd.DataFrame) -> str:
    """The pivot at full precision, one line per variant."""
    return str(pivot.to_csv(index=False, lineterminator="\n"))


def markdown(pivot: pd.DataFrame) -> str:
    printed = sheet(pivot)
    lines = [
        _markdown_line(printed.headers),
        _markdown_line(["---", *["---:"] * (len(printed.headers) - 1)]),
        *(_markdown_line([_markdown_cell(cell) for cell in row]) for row in printed.rows),
    ]
    notes = [f"- {_markdown_text(note)}" for note in printed.notes]
    return "\n".join([*lines, *(["", "Without a number:", "", *notes] if notes else []), ""])


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: Cell) -> str:
    text = _markdown_text(cell.text)
    return f"**{text}**" if cell.best else f"*{text}*" if cell.missing else text


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", " ".join(text.split()))


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "←": r"$\leftarrow$",
    "√": r"$\surd$",
    "…": r"\ldots{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def latex(pivot: pd.DataFrame) -> str:
    """A booktabs `tabular`; needs \\usepackage{booktabs} and nothing else. Leading baselines stand above a rule."""
    printed = sheet(pivot)
    body = [_latex_line([_latex_cell(cell) for cell in row]) for row in printed.rows]
    after = printed.baselines.count(None) and next(i for i, b in enumerate(printed.baselines) if b is None)
    if after and None not in printed.baselines[:after]:
        body.insert(after, r"\midrule")
    return "\n".join(
        [
            r"\begin{tabular}{l" + "r" * (len(printed.headers) - 1) + "}",
            r"\toprule",
            _latex_line([_latex_text(header) for header in printed.headers]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par{{\footnotesize {_latex_text(note)}}}" for note in printed.notes),
            "",
        ]
    )


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = _latex_text(cell.text)
    if not cell.missing and re.fullmatch(r"[+-]\d.*", cell.text):
        text = f"${cell.text}$"  # a hyphen would stand for the minus sign
    return rf"\textbf{{{text}}}" if cell.best else rf"\emph{{{text}}}" if cell.missing else text


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in " ".join(text.split()))


def render_terminal(pivot: pd.DataFrame, title: str | None = None) -> RenderableType:
    """The table for a rich console, as much of it as the console is wide."""
    from analysis.terminal import ResultsTable

    return ResultsTable(pivot, title)
