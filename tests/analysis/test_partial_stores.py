"""Sweeps of which little is there: nothing run, all failed, only measured, odd records. Every table, every figure and
the page can be made of each, without an error or a warning."""

from __future__ import annotations

import io
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from analysis.figures.drawing import draw
from analysis.figures.kinds import FIGURES as FIGURE_KINDS
from analysis.page.page import page
from analysis.page.report import render
from analysis.statistics.sources import load
from analysis.tables import rendering
from analysis.tables.paper import make_tables
from analysis.tables.terminal import CellsTable, FittingTable
from tests.support.filler import FIGURES, Filler


def look_at(filler: Filler, folder: Path, *, figures: bool) -> None:
    """Make whatever a person may ask for."""
    console = Console(width=60, file=io.StringIO())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = load(filler.store, filler.name)
        for table in make_tables(source, []).values():
            for form in (rendering.markdown, rendering.latex, rendering.csv):
                assert form(table)
            console.print(FittingTable(table))
        console.print(CellsTable(source.table))
        assert render(page(filler.store, source, folder), {})
        for kind in FIGURE_KINDS if figures else ():
            draw(kind, source)


@pytest.mark.parametrize("figures", [False, pytest.param(True, marks=pytest.mark.long)])
def test_failures_alone_can_be_looked_at(filler: Filler, tmp_path: Path, figures: bool) -> None:
    for step in filler.plan["steps"]:
        filler.fail(step, "boom $x$ | <b>\nand more", "log")
    look_at(filler, tmp_path, figures=figures)


@pytest.mark.parametrize("figures", [False, pytest.param(True, marks=pytest.mark.long)])
def test_measurements_alone_can_be_looked_at(filler: Filler, tmp_path: Path, figures: bool) -> None:
    for i, label in enumerate(filler.figures):
        filler.measure(label, batches=(1, 8) if i % 2 else (), failed=(64,))
    look_at(filler, tmp_path, figures=figures)


VALUES = (0.0, 1.0, 0.5, -1.0, 1e200, 5e-324, 0.3, None)


def odd_metrics(kind: str, drawn: random.Random) -> list[dict[str, Any]]:
    if kind == "measure":
        names = drawn.sample(["cache_bytes", "cache_bytes_per_token", "tokens_per_second", "oom", "peak_bytes"], 3)
        where = {"batch": drawn.choice([1, 8, 0]), "context": drawn.choice([None, 0, 256])}
    else:
        names, where = [drawn.choice(["acc", "bits_per_byte", "glorp", "loss"])], {}
    return [
        {
            "metric": name,
            "value": drawn.choice(VALUES),
            "stderr": drawn.choice([None, 0.0, 0.01, 1e150]),
            "n": drawn.choice([None, 0, 1, 100]),
            **where,
        }
        for name in names
    ]


def look_at_random(seed: int, folder: Path, *, figures: bool) -> None:
    drawn = random.Random(seed)
    chosen = drawn.sample(list(FIGURES), drawn.randint(1, 5))
    filler = Filler(folder / "store", {label: FIGURES[label] for label in FIGURES if label in chosen})
    for step, planned in filler.plan["steps"].items():
        chance = drawn.random()
        if chance > 0.3:
            filler.done(step, odd_metrics(planned["kind"], drawn) if drawn.random() < 0.9 else [])
        elif chance > 0.2:
            filler.fail(step, drawn.choice(["", "boom", "a\nb"]))
    look_at(filler, folder, figures=figures)


@pytest.mark.parametrize("seed", range(2))
def test_odd_records_can_be_looked_at(seed: int, tmp_path: Path) -> None:
    look_at_random(seed, tmp_path, figures=False)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 40))
def test_any_odd_records_can_be_looked_at(seed: int, tmp_path: Path) -> None:
    look_at_random(seed, tmp_path, figures=seed % 4 == 0)
