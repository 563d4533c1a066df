"""The loss figure: training loss of the variants, smoothed over raw. Of published runs the few losses in the paper."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analysis.data import frame
from analysis.data.numbers import on_axis, on_log_axis
from analysis.figures.canvas import footer, new_figure, set_axes
from analysis.figures.geometry import (
    count_scale,
    evenly,
    linear_scale,
    log_scale,
    not_drawn,
    round_ticks,
)
from analysis.figures.names import EndName, name_ends
from analysis.figures.pareto_data import main_pareto_data
from analysis.figures.style import MUTED, family_style, shades_by_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.data.frame import Row
    from analysis.statistics.sources import Source

LOSS, CROSS_ENTROPY = "train/loss", "train/cross_entropy"
"""A run that learns from a teacher logs both, and of these the cross-entropy is what other runs call their loss."""
MOST_CURVES = 10
SETTLED = 0.08
"""The vertical axis leaves out what came before this share of the steps: the first losses would squeeze all others."""
_FEW = 8
"""Losses: a curve of fewer has a marker at each."""
_LAST_STEP = 2**53
_PUBLISHED_LOSS = re.compile(r"loss_at_step_(\d+)")


@dataclass(frozen=True)
class Curve:
    """Losses (nats per token) by optimizer step. `ended` is false while the step still runs or stopped early;
    `without_place` has the losses that the axis has no place for, None for those that are not finite."""

    variant: str
    family: str | None
    budget: int
    steps: list[int]
    losses: list[float]
    ended: bool = True
    without_place: tuple[float | None, ...] = ()

    def smoothed(self) -> list[float]:
        """The mean over a window around each step, a sixth of the curve wide and cut off at its ends."""
        half = len(self.losses) // 12
        windows = [self.losses[max(0, i - half) : i + half + 1] for i in range(len(self.losses))]
        return [math.fsum(window) / len(window) for window in windows]

    @property
    def is_sparse(self) -> bool:
        """Whether it has only the few losses that a paper prints: those of the first steps, and the last."""
        return len(self.steps) < _FEW and self.steps[-1] > 1000

    def on_log_axes(self) -> Curve:
        """What logarithmic axes have a place for."""
        points = list(zip(self.steps, self.losses, strict=True))
        drawn = [point for point in points if all(map(on_log_axis, point))]
        left_out = [loss for step, loss in points if on_log_axis(step) and not on_log_axis(loss)]
        steps, losses = [step for step, _ in drawn], [loss for _, loss in drawn]
        return replace(self, steps=steps, losses=losses, without_place=(*self.without_place, *left_out))


def curves_of(source: Source) -> list[Curve]:
    """The uptraining loss of chosen variants (baseline, front, then evenly over the budgets), largest budget first."""
    rows = [row for row in frame.records(source.table) if row["kind"] == "uptrain"]
    by_variant: dict[str, list[Row]] = {}
    for row in rows:
        if row["step"] is None or row["state"] not in ("PENDING", "STOPPED"):
            by_variant.setdefault(row["variant"], []).append(row)
    curves = [
        _published_curve(rows) if rows[0]["step"] is None else _logged_curve(source, rows[0])
        for rows in _chosen(source, by_variant)
    ]
    return sorted((curve for curve in curves if curve.steps), key=lambda curve: -curve.budget)


def _chosen(source: Source, by_variant: dict[str, list[Row]]) -> list[list[Row]]:
    if len(by_variant) <= MOST_CURVES:
        return list(by_variant.values())
    data = main_pareto_data(source.results)
    leaders = {point.variant for point in (data.points if data else []) if point.baseline or point.on_front}
    leading = [name for name, rows in by_variant.items() if {name, rows[0]["replicate_of"]} & leaders][:MOST_CURVES]
    others = [name for name in by_variant if name not in leading]
    others.sort(key=lambda name: by_variant[name][0]["budget"] or 0)
    return [by_variant[name] for name in [*leading, *evenly(others, MOST_CURVES - len(leading))]]


def _curve(row: Row, points: list[tuple[int, float]], ended: bool) -> Curve:
    drawn = [(step, loss) for step, loss in points if 0 <= step <= _LAST_STEP and on_axis(loss)]
    left_out = [loss if math.isfinite(loss) else None for _, loss in points if not on_axis(loss)]
    steps, losses = [step for step, _ in drawn], [loss for _, loss in drawn]
    return Curve(row["variant"], row["family"], row["budget"] or 0, steps, losses, ended, tuple(left_out))


def _published_curve(rows: list[Row]) -> Curve:
    matches = [(_PUBLISHED_LOSS.fullmatch(row["metric"] or ""), row["value"]) for row in rows]
    points = [(int(match[1]), value) for match, value in matches if match and value is not None]
    return _curve(rows[0], sorted(points), True)


def _logged_curve(source: Source, row: Row) -> Curve:
    losses = [(at, logged.get(CROSS_ENTROPY, logged.get(LOSS))) for at, logged in source.history(row["step"])]
    points = [
        (at, math.inf if loss > sys.float_info.max else float(loss))
        for at, loss in losses
        if isinstance(loss, int | float)
    ]
    return _curve(row, points, row["state"] == "DONE")


def curves_figure(source: Source, published: Source | None = None) -> Figure | None:
    """Loss against optimizer steps, or None where nothing was trained. Published runs are grey and dashed."""
    own, others = curves_of(source), curves_of(published) if published else []
    sparse = any(curve.is_sparse for curve in own + others)
    if sparse:
        own, others = ([curve.on_log_axes() for curve in curves] for curves in (own, others))
    left_out = [loss for curve in own for loss in curve.without_place]
    own, others = ([curve for curve in curves if curve.steps] for curves in (own, others))
    if not own:
        return None
    figure, axes = new_figure()
    _set_axes(axes, own + others, sparse)
    colours = shades_by_name([(curve.variant, curve.family) for curve in own])
    for curve in own:
        _draw(axes, curve, colours[curve.variant], "-")
    for curve in others:
        _draw(axes, curve, MUTED, "--")
    footer(figure, [*_remarks(source, own, others), *not_drawn(("loss", loss) for loss in left_out)])
    names = [_end_name(curve, family_style(curve.family).colour) for curve in own]
    name_ends(figure, axes, names + [_end_name(curve, MUTED) for curve in others])
    return figure


def _remarks(source: Source, own: list[Curve], others: list[Curve]) -> list[str]:
    trained = source.table[source.table["kind"] == "uptrain"]["variant"].nunique()
    some = [f"{len(own)} of {trained} variants"] if len(own) < trained else []
    return [*some, *(["grey: published"] if others else [])]


def _end_name(curve: Curve, colour: str) -> EndName:
    text = curve.variant if curve.ended else f"{curve.variant} at {curve.steps[-1]:,}"
    return EndName(text, curve.smoothed()[-1], colour)


def _set_axes(axes: Axes, drawn: list[Curve], sparse: bool) -> None:
    """Linear axes; logarithmic ones beside published losses, which are the first and the last ones."""
    losses = [loss for curve in drawn for loss in _after(curve, 0.0 if sparse else SETTLED)]
    if sparse:
        steps = log_scale([step for curve in drawn for step in curve.steps], round_ticks)
        scale = log_scale(losses, round_ticks)
    else:
        steps = count_scale(max(curve.steps[-1] for curve in drawn))
        scale = linear_scale(losses)
    set_axes(axes, steps, "optimizer steps", scale, "training loss, nats per token")


def _after(curve: Curve, share: float) -> list[float]:
    """The smoothed losses after this share of the steps: at least the last one."""
    start = min(int(share * len(curve.losses)), len(curve.losses) - 1)
    return curve.smoothed()[start:]


def _draw(axes: Axes, curve: Curve, colour: str, dashes: str) -> None:
    axes.plot(curve.steps, curve.losses, color=colour, linewidth=0.5, alpha=0.3, zorder=2)
    axes.plot(curve.steps, curve.smoothed(), dashes, color=colour, linewidth=1.0, zorder=3)
    if len(curve.steps) < _FEW or not curve.ended:
        marked = curve if curve.ended else replace(curve, steps=curve.steps[-1:], losses=curve.smoothed()[-1:])
        marker = family_style(curve.family).marker
        axes.plot(marked.steps, marked.losses, marker, color=colour, markersize=3, zorder=4)
