"""The loss figure: training loss of the variants, smoothed over raw. Of published runs the few losses told."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analysis.data import frame
from analysis.figures.canvas import QUIET, EndName, evenly, name_ends, new_figure, note, styled
from analysis.figures.cloud import main_cloud
from analysis.figures.style import look
from analysis.figures.throughput import shaded
from analysis.figures.ticks import nice_ticks, round_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.data.frame import Row
    from analysis.statistics.sources import Source

LOSS = "train/loss"
MOST_CURVES = 10
SETTLED = 0.08
"""The vertical axis leaves out what came before this share of the steps: the first losses would squeeze all others."""
_TOLD = re.compile(r"loss_at_step_(\d+)")


@dataclass(frozen=True)
class Curve:
    """Losses (nats per token) by optimizer step. `ended` is false while the step still runs or stopped early."""

    variant: str
    family: str | None
    budget: int
    steps: list[int]
    losses: list[float]
    ended: bool = True

    def smoothed(self) -> list[float]:
        """The mean over a window around each step, a sixth of the curve wide and cut off at its ends."""
        half = len(self.losses) // 12
        windows = [self.losses[max(0, i - half) : i + half + 1] for i in range(len(self.losses))]
        return [math.fsum(window) / len(window) for window in windows]


def curves_of(source: Source) -> list[Curve]:
    """The uptraining loss of chosen variants (baseline, front, then evenly over the budgets), largest budget first."""
    rows = [row for row in frame.records(source.table) if row["kind"] == "uptrain"]
    by_variant: dict[str, list[Row]] = {}
    for row in rows:
        if row["step"] is None or row["state"] != "PENDING":
            by_variant.setdefault(row["variant"], []).append(row)
    chosen = _chosen(source, by_variant)
    found = [_told(rows) if rows[0]["step"] is None else _logged(source, rows[0]) for rows in chosen]
    return sorted((curve for curve in found if curve.steps), key=lambda curve: -curve.budget)


def _chosen(source: Source, by_variant: dict[str, list[Row]]) -> list[list[Row]]:
    if len(by_variant) <= MOST_CURVES:
        return list(by_variant.values())
    cloud = main_cloud(source.results)
    leaders = {point.variant for point in (cloud.points if cloud else []) if point.baseline or point.on_front}
    leading = [name for name, rows in by_variant.items() if {name, rows[0]["replicate_of"]} & leaders][:MOST_CURVES]
    others = sorted(by_variant.keys() - set(leading), key=lambda name: by_variant[name][0]["budget"] or 0)
    return [by_variant[name] for name in [*leading, *evenly(others, MOST_CURVES - len(leading))]]


def _curve(row: Row, points: list[tuple[int, float]], ended: bool) -> Curve:
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    return Curve(row["variant"], row["family"], row["budget"] or 0, steps, losses, ended)


def _told(rows: list[Row]) -> Curve:
    told = [(int(found[1]), row["value"]) for row in rows if (found := _TOLD.fullmatch(row["metric"] or ""))]
    return _curve(rows[0], sorted((step, loss) for step, loss in told if loss is not None), True)


def _logged(source: Source, row: Row) -> Curve:
    history = source.steps.history(row["step"]) if source.steps else []
    points = [(at, float(logged[LOSS])) for at, logged in history if LOSS in logged and _finite(logged[LOSS])]
    return _curve(row, points, row["state"] == "DONE")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


@styled
def curves_figure(source: Source, beside: Source | None = None) -> Figure | None:
    """Loss against optimizer steps, or None where nothing was trained. Published runs are grey and dashed."""
    own, others = curves_of(source), curves_of(beside) if beside else []
    if not own:
        return None
    figure, axes = new_figure()
    told_only = any(len(curve.steps) < 8 and curve.steps[-1] > 1000 for curve in own + others)
    _frame(axes, own + others, told_only)
    colours = shaded([(curve.variant, curve.family) for curve in own])
    for curve in own:
        _draw(axes, curve, colours[curve.variant], "-")
    for curve in others:
        _draw(axes, curve, QUIET, "--")
    if told := _remarks(source, own, others):
        note(axes, told)
    names = [_end_name(curve, look(curve.family).colour) for curve in own]
    name_ends(figure, axes, names + [_end_name(curve, QUIET) for curve in others])
    return figure


def _remarks(source: Source, own: list[Curve], others: list[Curve]) -> str:
    trained = source.table[source.table["kind"] == "uptrain"]["variant"].nunique()
    some = [f"{len(own)} of {trained} variants"] if len(own) < trained else []
    return "   ".join([*some, *(["grey: published"] if others else [])])


def _end_name(curve: Curve, colour: str) -> EndName:
    text = curve.variant if curve.ended else f"{curve.variant} at {curve.steps[-1]:,}"
    return EndName(text, curve.smoothed()[-1], colour)


def _frame(axes: Axes, drawn: list[Curve], told_only: bool) -> None:
    """Linear axes; logarithmic ones for published losses, which are the first and the last ones."""
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("training loss, nats per token")
    axes.grid(True)
    losses = [loss for curve in drawn for loss in _settled(curve, 0.0 if told_only else SETTLED)]
    low, high = min(losses), max(losses)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    if told_only:
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = low / 1.1, high * 1.1
        ticks = round_ticks(low, high, 6)
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    else:
        low, high = low - margin, high + margin
        ticks, digits = nice_ticks(low, high, 5)
        axes.set_yticks(ticks, [f"{tick:.{digits}f}" for tick in ticks])
        last = max(curve.steps[-1] for curve in drawn)
        axes.set_xlim(0, last)
        whole = [step for step in nice_ticks(0, last, 4)[0] if abs(step - round(step)) < 1e-6]
        axes.set_xticks(whole, [f"{step:,.0f}" for step in whole])
    axes.set_ylim(low, high)
    axes.minorticks_off()


def _settled(curve: Curve, share: float) -> list[float]:
    start = min(int(share * len(curve.losses)), len(curve.losses) - 1)
    return curve.smoothed()[start:]


def _draw(axes: Axes, curve: Curve, colour: str, dashes: str) -> None:
    axes.plot(curve.steps, curve.losses, color=colour, linewidth=0.5, alpha=0.3, zorder=2)
    axes.plot(curve.steps, curve.smoothed(), dashes, color=colour, linewidth=1.0, zorder=3)
    if len(curve.steps) < 8 or not curve.ended:
        shape = look(curve.family)
        marked = curve if curve.ended else replace(curve, steps=curve.steps[-1:], losses=curve.smoothed()[-1:])
        axes.plot(marked.steps, marked.losses, shape.marker, color=colour, markersize=3, zorder=4)
