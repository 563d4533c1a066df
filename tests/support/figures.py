"""What the tests of figures share: sources in every state that results can be in, and what a figure shows."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import BboxBase

from analysis.data import frame
from analysis.figures.canvas import PAGE_WIDTH, SMALLEST, WIDTH
from analysis.figures.pareto import pareto_figure
from analysis.figures.pareto_data import ParetoData, main_pareto_data
from analysis.statistics.results import Results
from analysis.statistics.sources import Source, load
from tests.support.filler import Filler
from tests.support.read_back import points, present


def source_of(table: pd.DataFrame) -> Source:
    """The source of a table alone."""
    return Source("table", table)


def main_data(results: Results) -> ParetoData:
    return present(main_pareto_data(results))


def main_figure(results: Results) -> Figure:
    return pareto_figure(main_data(results))


def crowd(finished: Filler) -> Source:
    """The finished table with a hundred variants: one in seven has no score, every other one ran out of memory."""
    cells = frame.records(load(finished.store, finished.name).table)
    own = {label: [cell for cell in cells if cell["variant"] == label] for label in finished.figures}
    rows = [*own["untouched"], *own["MHA-36"]]
    layouts = [label for label in finished.figures if label != "untouched"]
    for i in range(100):
        label = f"{layouts[i % 8]} uptrain.lr={i:03d}"
        for cell in own[layouts[i % 8]]:
            scored = cell["kind"] == "evaluate"
            changed = {"value": None, "state": "FAILED", "reason": "x"} if scored and i % 7 == 0 else {}
            if scored and cell["task"] == "bits_per_byte" and not changed:
                changed = {"value": cell["value"] + 0.01 * math.sin(i)}
            rows.append({**cell, "variant": label, "baseline": None, **changed})
            if i % 2 and cell["metric"] == "cache_bytes" and cell["batch"] == 8:
                rows.append({**rows[-1], "metric": "oom", "batch": 64, "value": 1.0})
    return Source("crowd", frame.make(rows))


def in_progress(filler: Filler) -> Source:
    """Some done, one failed, one running."""
    filler.shared()
    for label in ("MHA-36", "MLKV-3", "MLKV-1"):
        filler.train(label)
        filler.evaluate(label, "bits_per_byte")
    filler.evaluate("untouched", "bits_per_byte")
    filler.evaluate("MLKV-3", "cloze")
    filler.measure("MLKV-3", failed=(64,))
    filler.fail(filler.variant("MLKV-6")["steps"]["convert"], "must divide 6")
    log_losses(filler, "GQA-12", [5.0, 4.5, float("nan"), 4.4])
    return load(filler.store, filler.name)


def log_losses(filler: Filler, label: str, losses: list[float], step: int = 10) -> None:
    """Let a variant's uptraining run and log losses, one every `step` steps."""
    claim = present(filler.store.step(filler.variant(label)["steps"]["uptrain"]).claim())
    rows = [{"step": (i + 1) * step, "steps": 100, "loss": loss} for i, loss in enumerate(losses)]
    claim.attempt.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def single(tmp_path: Path, filler: Filler) -> Source:
    one = type(filler)(tmp_path / "one", {"MLKV-3": filler.figures["MLKV-3"]})
    one.everything()
    return load(one.store, one.name)


def drawn_points(figure: Figure) -> set[tuple[float, float]]:
    """Data coordinates of the markers; lines and the caps of error bars have none."""
    artists = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", "_")]
    return {(x, y) for line in artists for x, y in points(line)}


def names_of(figure: Figure) -> list[Text]:
    return [text for text in figure.axes[0].texts if text.get_text()]


def texts_of(figure: Figure) -> list[tuple[Text, BboxBase]]:
    """Every text that is printed, with its box; labels of ticks beyond the axes are not."""
    figure.draw_without_rendering()
    beyond = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            beyond |= {tick.label1 for tick in ticks if not low <= float(tick.get_loc()) <= high}
    hidden = {text for axes in figure.axes if not axes.get_visible() for text in axes.findobj(Text)}
    shown = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return [
        (text, Text.get_window_extent(text))  # of an annotation without its arrow
        for text in shown
        if text.get_text().strip() and text.get_visible() and text not in beyond | hidden
    ]


def assert_readable(figure: Figure) -> None:
    """One or two columns wide, nothing small, nothing cut off, no text on another, and a number on every axis."""
    assert figure.get_figwidth() in (WIDTH, PAGE_WIDTH)
    texts, page = texts_of(figure), figure.bbox
    assert all(float(text.get_fontsize()) >= SMALLEST for text, _ in texts)
    for text, box in texts:
        inside = box.x0 > -1 and box.y0 > -1 and box.x1 < page.x1 + 1 and box.y1 < page.y1 + 1
        assert inside, f"{text.get_text()} is cut off"
    for (a, box_a), (b, box_b) in itertools.combinations(texts, 2):
        width, height = (
            min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0),
            min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0),
        )
        assert width < 1 or height < 1, f"{a.get_text()} and {b.get_text()} overlap"
