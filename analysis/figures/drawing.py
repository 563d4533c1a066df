"""`mlkv figure`: any of the figures of any results (a sweep, a published set, imported files) as PNG, PDF and SVG."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.figures.cloud import MEMORY, SPEED, Cloud, Cost, accuracy_score, cloud, loss_score
from analysis.figures.kinds import FIGURES
from analysis.figures.layouts import layouts_figure
from analysis.figures.memory import memory_figure
from analysis.figures.pareto import cloud_figure
from analysis.figures.spectrum import spectrum_figure
from analysis.figures.tasks import tasks_figure
from analysis.figures.throughput import throughput_figure
from analysis.figures.training import curves_figure
from analysis.statistics.results import Results
from analysis.statistics.scores import ScoreColumn
from analysis.statistics.sources import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG_DPI = 300
FORMATS = ("png", "pdf", "svg")


class CannotDraw(ValueError):
    """A figure that was asked for by name and cannot be drawn; the message says why, in one line."""


@dataclass(frozen=True)
class _Kind:
    """`draw` gives None where there is nothing to draw, and then `lacks` says what is missing."""

    draw: Callable[[Source, Source | None], Figure | None]
    lacks: str


def write_figures(source: Source, kinds: Sequence[str], out_dir: Path, beside: Source | None = None) -> list[Path]:
    """Write the figures called `kinds`, or all that there is something to draw for, and return the files.

    `beside` are published results that the Pareto figures and the loss curves show as well. Raises CannotDraw for an
    unknown kind, and for a named one without anything to draw.
    """
    drawn = draw_all(source, beside) if not kinds else {kind: _named(source, kind, beside) for kind in kinds}
    if not drawn:
        raise CannotDraw(f"{source.name}: nothing to draw yet; `mlkv status {source.name}` says where its steps stand")
    out_dir.mkdir(parents=True, exist_ok=True)
    return [put(out_dir / f"{kind}.{form}", saved(figure, form)) for kind, figure in drawn.items() for form in FORMATS]


def draw_all(source: Source, beside: Source | None = None) -> dict[str, Figure]:
    """Every figure that there is something to draw for, but no two alike."""
    alike = _same_cloud(source.results)
    drawn = {kind: _KINDS[kind].draw(source, beside) for kind in FIGURES if not (alike and kind == "pareto_loss")}
    return {kind: _settled(figure) for kind, figure in drawn.items() if figure}


def _same_cloud(results: Results) -> bool:
    """Whether the plan has no accuracy, so that the main axis is the loss."""
    return accuracy_score(results) == loss_score(results)


def _named(source: Source, kind: str, beside: Source | None) -> Figure:
    if kind not in _KINDS:
        raise CannotDraw(f"figure = {kind}: choose from {', '.join(FIGURES)}")
    if figure := _KINDS[kind].draw(source, beside):
        return _settled(figure)
    raise CannotDraw(f"figure = {kind}: nothing to draw for {source.name}: {_KINDS[kind].lacks}")


def _settled(figure: Figure) -> Figure:
    """With its layout worked out once for all formats."""
    figure.draw_without_rendering()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _pareto(score_of: Callable[[Results], ScoreColumn | None], cost: Cost) -> Callable[..., Figure | None]:
    def draw(source: Source, beside: Source | None) -> Figure | None:
        score = score_of(source.results)
        own = cloud(source.results, score, cost) if score else None
        if own is None or not own.points:
            return None
        return cloud_figure(own, _comparable(own, score_of, beside))

    return draw


def _comparable(own: Cloud, score_of: Callable[[Results], ScoreColumn | None], beside: Source | None) -> Cloud | None:
    """The other results' cloud where it is of the same metric: no perplexity belongs on an axis of accuracies."""
    score = score_of(beside.results) if beside else None
    if beside is None or score is None or score.metric != own.metric_name:
        return None
    return cloud(beside.results, score, own.cost)


_NO_SCORE = "no variant has a score yet, or none is planned"
_NO_CELLS = "no measure step has finished, or none is planned"
_KINDS = {
    "pareto": _Kind(_pareto(accuracy_score, MEMORY), _NO_SCORE),
    "pareto_throughput": _Kind(_pareto(accuracy_score, SPEED), "no variant has both a score and a measured speed"),
    "pareto_loss": _Kind(_pareto(loss_score, MEMORY), "no variant has a loss or bits per byte"),
    "memory": _Kind(lambda source, _: memory_figure(source.table), _NO_CELLS),
    "throughput": _Kind(lambda source, _: throughput_figure(source.table), _NO_CELLS),
    "curves": _Kind(curves_figure, "no training step has logged a loss"),
    "spectrum": _Kind(
        lambda source, _: spectrum_figure(source.results),
        "it needs scores of two numbers of KV layers with equally many heads",
    ),
    "layouts": _Kind(lambda source, _: layouts_figure(source), "the layouts are not known"),
    "tasks": _Kind(
        lambda source, _: tasks_figure(source.results), "it needs a baseline's scores and another variant's"
    ),
}


def saved(figure: Figure, form: str) -> bytes:
    """The file's bytes; equal figures give equal ones."""
    import matplotlib

    from analysis.figures.canvas import STYLE

    buffer = BytesIO()
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(form)
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=form, dpi=PNG_DPI, metadata=undated)
    return buffer.getvalue()


def put(path: Path, data: bytes) -> Path:
    """Replace `path` by `data` in one step."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return path
