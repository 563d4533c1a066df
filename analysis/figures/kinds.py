"""The figures that `mlkv figure` and the report draw, a row each. Listing them loads neither matplotlib nor pandas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlkv.registry import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.statistics.sources import Source

    DrawFigure = Callable[[Source, Source | None], Figure | None]


@dataclass(frozen=True)
class FigureKind:
    """A figure.

    `title` is what it shows, in one line: help, documentation and the report print it. `draw` is a function, or
    `module:function` as text where importing the module should wait until the figure is drawn. It is called with two
    arguments. The first is the Source (analysis/statistics/sources.py): `source.results.frame` has a row per layout,
    `source.table` one per measured or scored cell. The second is the published Source that `--published` names, or
    None. It returns a figure that it made with `new_figure()` of analysis/figures/canvas.py, or None where there is
    nothing to draw; the message then says what the figure `needs`.

    `repeats` is a function of the Source, in the same form, that says whether another figure already shows the same:
    the figure is then drawn only if it is named.
    """

    title: str
    draw: str | DrawFigure
    needs: str
    repeats: str | Callable[[Source], bool] | None = None


_SCORES = "a variant with a score"
_CACHES = "a finished measure step with a cache of more than 0 bytes"
_SPEEDS = "a finished measure step with a speed above 0"

FIGURES: Registry[FigureKind] = Registry(
    "figure",
    {
        "difference": FigureKind(
            "difference from the baseline, with its interval, against KV bytes per token",
            "analysis.figures.difference:difference_figure",
            "scores of a baseline and of another variant",
        ),
        "pareto": FigureKind(
            "accuracy (or the sweep's main axis) against KV bytes per token",
            "analysis.figures.pareto:accuracy_by_memory",
            _SCORES,
        ),
        "pareto_throughput": FigureKind(
            "accuracy (or the sweep's main axis) against the decode speed of the fastest batch size",
            "analysis.figures.pareto:accuracy_by_speed",
            "a variant with both a score and a measured speed",
        ),
        "pareto_loss": FigureKind(
            "bits per byte, perplexity or loss against KV bytes per token",
            "analysis.figures.pareto:loss_by_memory",
            "a variant with a loss, a perplexity or bits per byte",
            repeats="analysis.figures.pareto:has_no_accuracy",
        ),
        "memory": FigureKind(
            "KV cache against batch size, with what ran out of memory",
            "analysis.figures.memory:memory_figure",
            _CACHES,
        ),
        "throughput": FigureKind(
            "decode speed against batch size, with what ran out of memory",
            "analysis.figures.throughput:throughput_figure",
            _SPEEDS,
        ),
        "roofline": FigureKind(
            "operations per second of decoding against operations per byte, below what copying memory gives",
            "analysis.figures.roofline:roofline_figure",
            "a finished measure step whose steps and copies were timed",
        ),
        "curves": FigureKind(
            "training loss of each variant, smoothed over raw",
            "analysis.figures.curves:curves_figure",
            "a training step that has logged a loss",
        ),
        "recovery": FigureKind(
            "loss, accuracy and agreement with the base against tokens of uptraining",
            "analysis.figures.recovery:recovery_figure",
            "scores after two lengths of uptraining",
        ),
        "spectrum": FigureKind(
            "quality against the number of KV layers at fixed heads",
            "analysis.figures.spectrum:spectrum_figure",
            "scores of two numbers of KV layers with equally many heads",
        ),
        "layouts": FigureKind(
            "each layout: which layers own KV heads, and which layers read them",
            "analysis.figures.layouts:layouts_figure",
            "a plan, or a published set whose layouts are known",
        ),
        "tasks": FigureKind(
            "each task's difference from the baseline, with error bars",
            "analysis.figures.tasks:tasks_figure",
            "scores of a baseline and of another variant",
        ),
        "damage_by_distance": FigureKind(
            "what each layout loses against the untouched base, by distance in tokens",
            "analysis.figures.damage:damage_by_distance",
            "scores of a base and of another layout at two distances (evaluate=range)",
        ),
        "damage_by_domain": FigureKind(
            "what each layout loses against the untouched base on code, prose and recall text",
            "analysis.figures.damage:damage_by_domain",
            "scores of a base and of another layout in a domain (evaluate=range)",
        ),
        "heads_layers": FigureKind(
            "what fewer heads with fewer owners cost together, against the sum of what each costs alone",
            "analysis.figures.heads_layers:heads_layers_figure",
            "scores of a layout with fewer heads and fewer owners, and of those with either",
        ),
        "rules": FigureKind(
            "what each rule that places owners loses, relative to chance",
            "analysis.figures.rules:rules_figure",
            "scores of two layouts with equally many owners and heads",
        ),
        "similarity": FigureKind(
            "how alike each two layers of the base are, and the damage where one reads the other",
            "analysis.figures.similarity:similarity_figure",
            "a finished similarity step (similarity=held_out)",
        ),
    },
)
