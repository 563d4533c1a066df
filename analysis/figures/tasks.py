"""The task figure: what each variant loses on each task against its baseline. Full bars are beyond noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analysis.data.frame import Row
from analysis.data.metrics import METRICS
from analysis.figures.canvas import QUIET, SMALLEST, WIDTH, evenly, new_panels, note, short, styled
from analysis.figures.style import look
from analysis.figures.ticks import nice_ticks
from analysis.statistics.compare import corrected_p
from analysis.statistics.estimate import ALPHA, Difference, difference
from analysis.statistics.estimates import Estimates
from analysis.statistics.results import Results
from analysis.statistics.scores import ScoreColumn, shown_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TASKS, ACROSS = 12, 4
OWN = "each one's own baseline"
_LETTER, _LEAST_WIDTH = 3.7, 46.0
"""Points: a letter of a name or title, and the narrowest panel whose marks stay apart."""
_ROW, _PANEL, _TALLEST = 0.13, 0.52, 8.5
"""Inches of a bar, of what stands above and below a panel's bars, and of the whole."""


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
    the range of their scores, and `OWN`."""

    title: str
    baseline: str
    name: str
    bars: list[Bar]


def panels(results: Results) -> list[Panel]:
    """One for each score that has a baseline's value; with a single score that one, else the parts of the accuracy.

    The baseline is the base trained on equally where the sweep has it, else the untouched one, else (from scratch) the
    variant with the largest cache.
    """
    rows = [row for row in results.rows() if row["kv_bytes_per_token"]]
    kinds = {row["baseline"] for row in rows}
    name = next((kind for kind in ("mha", "untouched") if kind in kinds), None)
    if name is None and rows:
        name = "largest"
        largest = max(rows, key=lambda row: row["kv_bytes_per_token"])
        rows = [{**row, name: largest["variant"], "baseline": name if row is largest else None} for row in rows]
    estimates = results.estimates
    found = [_panel(rows, score, name, estimates) for score in _task_scores(results)[:MOST_TASKS] if name]
    return [panel for panel in found if panel and any(bar.difference is not None for bar in panel.bars)]


def _task_scores(results: Results) -> list[ScoreColumn]:
    shown = [score for score in shown_scores(results) if score.metric in METRICS]
    parts = [score for score in shown if score.column not in ("quality", "accuracy")]
    lead = [score for score in shown if score.column == "quality" and score.metric != "accuracy"]
    return [*lead, *parts]


def _panel(rows: list[Row], score: ScoreColumn, baseline: str, estimates: Estimates) -> Panel | None:
    """Errors and p-values are those of the tables: of the same samples where they were kept."""
    by_name = {row["variant"]: row for row in rows}
    base = next((row for row in rows if row["baseline"] == baseline and row[score.column] is not None), None)
    if base is None:
        return None
    contenders = [row for row in rows if row["baseline"] is None]
    own = [by_name.get(row[baseline] or base["variant"], base) for row in contenders]
    found = [_difference(row, base, score.column, estimates) for row, base in zip(contenders, own, strict=True)]
    p = _p_values(contenders, f"{score.column}_vs_{baseline}_p", found)
    scale = METRICS[score.metric].scale
    bars = [_bar(row, each, chance, scale) for row, each, chance in zip(contenders, found, p, strict=True)]
    used = list({row["variant"]: row for row in own}.values()) or [base]
    return Panel(score.label, _range(used, score), _named(used), bars)


def _difference(row: Row, base: Row, column: str, estimates: Estimates) -> Difference | None:
    ours, theirs = estimates.of(row, column), estimates.of(base, column)
    return None if ours is None or theirs is None else difference(ours, theirs)


def _p_values(rows: list[Row], column: str, found: list[Difference | None]) -> list[float | None]:
    """Those of the table, which has them of the main axis; else corrected in the same way."""
    if rows and column in rows[0]:
        return [row[column] for row in rows]
    return corrected_p([None if each is None else each.p for each in found])


def _bar(row: Row, found: Difference | None, p: float | None, scale: float) -> Bar:
    if found is None:
        return Bar(row["variant"], row["family"], None, None)
    error = None if found.error is None else found.error * scale
    return Bar(row["variant"], row["family"], found.value * scale, error, p)


def _range(baselines: list[Row], score: ScoreColumn) -> str:
    """The baseline's score; of several, from the lowest to the highest."""
    metric, values = METRICS[score.metric], [row[score.column] for row in baselines if row[score.column] is not None]
    return " to ".join(dict.fromkeys(metric.text(value) for value in (min(values), max(values))))


def _named(baselines: list[Row]) -> str:
    return str(baselines[0]["variant"]) if len(baselines) == 1 else OWN


@styled
def tasks_figure(results: Results) -> Figure | None:
    """Bars of the differences from the baseline by task, or None where no task has a baseline and another score."""
    drawn = panels(results)
    if not drawn:
        return None
    across = _across(drawn)
    down = -(-len(drawn) // across)
    whole = len(drawn[0].bars)
    count = min(whole, int((_TALLEST / down - _PANEL) / _ROW))
    drawn = [replace(panel, bars=evenly(panel.bars, count)) for panel in drawn]
    figure, axes = new_panels(down, across, down * (count * _ROW + _PANEL) + 0.3)
    for i, place in enumerate(axes):
        if i < len(drawn):
            _draw(place, drawn[i], named=i % across == 0)
        else:
            place.set_visible(False)
    some = f"\n{count} of {whole} variants" if count < whole else ""
    above = "scores" if drawn[0].name == OWN else "its score"
    told = f"difference from {short(drawn[0].name)} ({above} above); full bars: beyond noise, p ≤ {ALPHA:.2g}"
    note(axes[0], f"{told}{some}")
    return figure


def _across(drawn: list[Panel]) -> int:
    """How many panels stand side by side beside the variants' names."""
    names = max(len(short(bar.variant)) for bar in drawn[0].bars) * _LETTER
    wanted = max(_LEAST_WIDTH, *(len(panel.title) * _LETTER for panel in drawn))
    return max(1, min(ACROSS, len(drawn), int((WIDTH * 72 - names) / wanted)))


def _draw(axes: Axes, panel: Panel, *, named: bool) -> None:
    axes.axvline(0, color=QUIET, linewidth=0.7, zorder=3)
    for row, bar in enumerate(panel.bars):
        if bar.difference is None:
            axes.annotate("–", (0, row), (3, 0), textcoords="offset points", va="center", fontsize=6, color=QUIET)
        else:
            _draw_bar(axes, row, bar.difference, bar)
    axes.set_title(f"{panel.title}\n{panel.baseline}", fontsize=6.5, linespacing=1.15)
    axes.set_ylim(len(panel.bars) - 0.4, -0.6)
    axes.set_yticks(range(len(panel.bars)), [short(bar.variant) for bar in panel.bars])
    axes.tick_params(axis="y", length=0, labelleft=named)
    axes.tick_params(axis="x", labelsize=SMALLEST)
    _few_ticks(axes)
    axes.grid(True, axis="x")
    axes.spines["left"].set_visible(False)


def _few_ticks(axes: Axes) -> None:
    """Zero, and a round number far from it on either side where the bars reach so far."""
    low, high = axes.get_xlim()
    ticks, digits = nice_ticks(low, high, 2)
    shown = [tick for tick in ticks if round(tick, 9) == 0 or abs(tick) >= 0.4 * (high - low)]
    axes.set_xticks(shown, [f"{tick:.{digits}f}".replace("-", "−") if round(tick, 9) else "0" for tick in shown])


def _draw_bar(axes: Axes, row: int, difference: float, bar: Bar) -> None:
    colour = look(bar.family).colour
    axes.barh(
        row,
        difference,
        height=0.72,
        facecolor=colour if bar.beyond_noise else "white",
        edgecolor=colour,
        linewidth=0.6,
        zorder=2,
    )
    if bar.error:
        axes.errorbar(difference, row, xerr=bar.error, color="#222222", elinewidth=0.6, capsize=1.2, capthick=0.6)
