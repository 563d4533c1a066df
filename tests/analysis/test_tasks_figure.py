"""The figure of each task's difference from the baseline."""

from __future__ import annotations

import math

import pytest

from analysis.data import frame
from analysis.figures.tasks import panels, tasks_figure
from analysis.statistics.results import results
from analysis.statistics.sources import published_source
from tests.support.read_back import present


def test_a_bar_is_full_only_beyond_noise() -> None:
    source = published_source("mlkv")
    drawn = {panel.title: panel for panel in panels(source.results)}
    full = {title: {bar.variant for bar in panel.bars if bar.beyond_noise} for title, panel in drawn.items()}
    assert full["PIQA"] == set()
    assert full["LAMBADA"] >= {"MLKV-1", "MLKV-2", "GQA-48"}
    assert drawn["ARC-e"].score == "43.94"
    (bar,) = [bar for bar in drawn["SciQ"].bars if bar.variant == "MLKV-1"]
    assert bar.error == pytest.approx(math.hypot(1.4, 1.6), abs=0.2)
    faces = [patch.get_facecolor() for patch in present(tasks_figure(source)).axes[2].patches]
    assert set(faces) == {(1.0, 1.0, 1.0, 1.0)}


def test_from_scratch_bars_are_differences_from_the_largest_cache() -> None:
    rows = [("A", 512, 0.40), ("B", 1024, 0.52), ("C", 2048, 0.50)]
    same = {"kind": "evaluate", "task": "t", "metric": "acc", "state": "DONE", "in_accuracy": True, "stderr": 0.01}
    cells = [{**same, "variant": name, "kv_bytes_per_token": size, "value": value} for name, size, value in rows]
    (panel,) = panels(results(frame.make(cells)))
    assert (panel.baseline, panel.score) == ("C", "50.00")
    assert [(bar.variant, bar.beyond_noise) for bar in panel.bars] == [("A", True), ("B", False)]
    assert [bar.difference for bar in panel.bars] == pytest.approx([-10, 2])
