"""The task figure: what each variant loses on each task against its baseline. Full bars are beyond noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analysis.data.frame import Row
from analysis.data.metrics import METRICS
from analysis.data.numbers import on_axis
from analysis.figures.canvas import POINTS, SMALLEST, WIDTH, footer, new_panels, shorten, wrap
from analysis.figures.geometry import evenly, zero_and_one
from analysis.figures.style import MUTED, family_style
from analysis.statistics.compare import corrected_p
from analysis.statistics.estimate import ALPHA, Difference, difference
from analysis.statistics.estimates import Estimates
from analysis.statistics.results import Results
from analysis.statistics.scores import ScoreColumn, shown_scores
from analysis.statistics.sources import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TASKS, MOST_COLUMNS = 12, 4
SEVERAL_BASELINES = "each variant's own baseline"
_LETTER = 3.7
"""Points of a letter of a name or title."""
_LEAST_WIDTH, _MOST_WIDTH = 46.0, 100.0
"""Points of a panel: the narrowest whose tick labels stay apart, and what is enough for any title in two lines."""
_ROW_HEIGHT, _PANEL_MARGIN, _LARGEST_HEIGHT = 0.13, 0.52, 8.5
"""Inches of a bar, of what is above and below a panel's bars, and of the whole."""


@dataclass(frozen=True)
class Bar:
    """A variant's difference from its baseline in printed units; `error` is its standard error, None if not known. `p`
    is that of there being no difference, corrected for all bars of the panel."""

    variant: str
    family: str | None
    difference: float | None
    error: float | None
    p: float | None = None

    @property
    def beyond_noise(self) -> bool:
        return self.p is not None and self.p <= ALPHA


@dataclass(frozen=True)
class Panel:
    """A task with the score and the name of the baseline to which its bars are relative; where variants have several,
    the range of their scores, and `SEVERAL_BASELINES`."""

    title: str
    score: str
    baseline: str
    bars: list[Bar]


def panels(results: Results) -> list[Panel]:
    """One for each score that has a baseline's value; with a single score that one, else the parts of the accuracy.

    The baseline is the base trained on equally where the sweep has it, else the untouched one, else (from scratch) the
    variant with the largest cache.
    """
    rows = [row for row in results.rows() if row["kv_bytes_per_token"]]
    kinds = {row["baseline"] for row in rows}
    kind = next((kind for kind in ("mha", "untouched") if kind in kinds), None)
    if kind is None and rows:
        kind = "largest"
        largest = max(rows, key=lambda row: row["kv_bytes_per_token"])
        rows = [{**row, kind: largest["variant"], "baseline": kind if row is largest else None} for row in rows]
    scores = _task_scores(results)[:MOST_TASKS] if kind else []
    drawn = [_panel(rows, score, kind or "", results.estimates) for score in scores]
    return [panel for panel in drawn if panel and any(bar.difference is not None for bar in panel.bars)]


def _task_scores(results: Results) -> list[ScoreColumn]:
    shown = [score for score in shown_scores(results) if score.metric in METRICS]
    parts = [score for score in shown if score.column not in ("quality", "accuracy")]
    lead = [score for score in shown if score.column == "quality" and score.metric != "accuracy"]
    return [*lead, *parts]


def _panel(rows: list[Row], score: ScoreColumn, kind: str, estimates: Estimates) -> Panel | None:
    """Errors and p-values are those of the tables: of the same samples where there are any."""
    by_name = {row["variant"]: row for row in rows}
    base = next((row for row in rows if row["baseline"] == kind and row[score.column] is not None), None)
    if base is None:
        return None
    contenders = [row for row in rows if row["baseline"] is None]
    own = [by_name.get(row[kind] or base["variant"], base) for row in contenders]
    differences = [_difference(row, base, score.column, estimates) for row, base in zip(contenders, own, strict=True)]
    p = _p_values(contenders, f"{score.column}_vs_{kind}_p", differences)
    scale = METRICS[score.metric].scale
    bars = [_bar(row, each, chance, scale) for row, each, chance in zip(contenders, differences, p, strict=True)]
    baselines = list({row["variant"]: row for row in own}.values()) or [base]
    name = str(baselines[0]["variant"]) if len(baselines) == 1 else SEVERAL_BASELINES
    return Panel(score.label, _range(baselines, score), name, bars)


def _difference(row: Row, base: Row, column: str, estimates: Estimates) -> Difference | None:
    ours, theirs = estimates.of(row, column), estimates.of(base, column)
    return None if ours is None or theirs is None else difference(ours, theirs)


def _p_values(rows: list[Row], column: str, differences: list[Difference | None]) -> list[float | None]:
    """Those of the table, which has them of the main axis; else corrected in the same way."""
    if rows and column in rows[0]:
        return [row[column] for row in rows]
    return corrected_p([None if each is None else each.p for each in differences])


def _bar(row: Row, of_row: Difference | None, p: float | None, scale: float) -> Bar:
    if of_row is None or not on_axis(of_row.value * scale):
        return Bar(row["variant"], row["family"], None, None)
    error = of_row.error * scale if on_axis(of_row.error) else None
    return Bar(row["variant"], row["family"], of_row.value * scale, error, p)


def _range(baselines: list[Row], score: ScoreColumn) -> str:
    """The baseline's score; of several, from the lowest to the highest."""
    metric, values = METRICS[score.metric], [row[score.column] for row in baselines if row[score.column] is not None]
    return " to ".join(dict.fromkeys(metric.text(value) for value in (min(values), max(values))))


def tasks_figure(source: Source, published: Source | None = None) -> Figure | None:
    """Bars of the differences from the baseline by task, or None where no task has a baseline and another score."""
    drawn = panels(source.results)
    if not drawn:
        return None
    columns, width = _columns(drawn)
    rows = -(-len(drawn) // columns)
    whole = len(drawn[0].bars)
    count = min(whole, int((_LARGEST_HEIGHT / rows - _PANEL_MARGIN) / _ROW_HEIGHT))
    figure, axes = new_panels(rows, columns, rows * (count * _ROW_HEIGHT + _PANEL_MARGIN) + 0.3)
    for i, place in enumerate(axes):
        if i < len(drawn):
            _draw(place, replace(drawn[i], bars=evenly(drawn[i].bars, count)), width, named=i % columns == 0)
        else:
            place.set_visible(False)
    above = "scores" if drawn[0].baseline == SEVERAL_BASELINES else "its score"
    legend = f"difference from {shorten(drawn[0].baseline)} ({above} above); full bars: beyond noise, p ≤ {ALPHA:.2g}"
    footer(figure, [legend, *([f"{count} of {whole} variants"] if count < whole else [])])
    return figure


def _columns(drawn: list[Panel]) -> tuple[int, float]:
    """How many panels have room side by side beside the variants' names, and the points that each of them has."""
    names = max(len(shorten(bar.variant)) for bar in drawn[0].bars) * _LETTER
    titles = max(len(panel.title) for panel in drawn) * _LETTER
    wanted = min(max(_LEAST_WIDTH, titles), _MOST_WIDTH)
    room = WIDTH * POINTS - names
    columns = max(1, min(MOST_COLUMNS, len(drawn), int(room / wanted)))
    return columns, room / columns


def _draw(axes: Axes, panel: Panel, width: float, *, named: bool) -> None:
    axes.axvline(0, color=MUTED, linewidth=0.7, zorder=3)
    for row, bar in enumerate(panel.bars):
        if bar.difference is None:
            axes.annotate("–", (0, row), (3, 0), textcoords="offset points", va="center", fontsize=6, color=MUTED)
        else:
            _draw_bar(axes, row, bar.difference, bar)
    title = axes.set_title(f"{panel.title}\n{panel.score}", linespacing=1.15)
    wrap(title, width)
    axes.set_ylim(len(panel.bars) - 0.4, -0.6)
    axes.set_yticks(range(len(panel.bars)), [shorten(bar.variant) for bar in panel.bars])
    axes.tick_params(axis="y", length=0, labelleft=named)
    axes.tick_params(axis="x", labelsize=SMALLEST)
    ticks = zero_and_one(*axes.get_xlim())
    axes.set_xticks([tick.value for tick in ticks], [tick.text for tick in ticks])
    axes.grid(True, axis="x")
    axes.spines["left"].set_visible(False)


def _draw_bar(axes: Axes, row: int, value: float, bar: Bar) -> None:
    colour = family_style(bar.family).colour
    fill = colour if bar.beyond_noise else "white"
    axes.barh(row, value, height=0.72, facecolor=fill, edgecolor=colour, linewidth=0.6, zorder=2)
    if bar.error:
        axes.errorbar(value, row, xerr=bar.error, color="#222222", elinewidth=0.6, capsize=1.2, capthick=0.6)
